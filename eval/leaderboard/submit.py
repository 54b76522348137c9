"""`hybridzoo leaderboard submit`: the results of a run as a folder, a patch and a text for a pull request."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hybridzoo.errors import ConfigError
from hybridzoo.eval.harness import rescore, write_result
from hybridzoo.eval.leaderboard.check import Problem, check_results
from hybridzoo.eval.leaderboard.history import EXPLAINED
from hybridzoo.eval.leaderboard.render import markdown_score
from hybridzoo.eval.leaderboard.rows import Entry, Row, Table, make_tables, metric_label, row_name
from hybridzoo.eval.leaderboard.samples import sample_files
from hybridzoo.eval.schema import FILE_NAME, Result, ResultError, read_results

PATCH, TEXT = "submission.patch", "PULL_REQUEST.md"
REFERENCES = 2  # rows of the board that a new one is shown beside, in addition to the best
MOST_BYTES = 20 * 2**20


@dataclass(frozen=True)
class Submission:
    """Where everything lies: `folder` mirrors the repository, `patch` applies to it with `git apply`."""

    folder: Path
    patch: Path | None
    text: Path
    results: list[Path]


def submit(source: str | Path, out: str | Path, *, results: Path, by: str | None = None, notes: str = "") -> Submission:
    """Prepare a submission.

    Args:
        source: a result file, a folder of results, or a run folder (its `results/`).
        out: a new folder.
        results: the board's results, which the new ones are compared with.
        by: name or address of who submits; recorded in the files.
        notes: added to the notes of each file; a moved score needs "explained: REASON".

    Raises:
        ConfigError: `out` exists and is not empty.
        ResultError: nothing to submit, or a result that the board would refuse; all reasons are named.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} exists and is not empty; give a new folder with --out")
    found = _collect(Path(source))
    below = out / "eval" / "results"
    made = [_copy(path, result, below, by, notes) for path, result in found]
    problems = _problems(made, below, results)
    if problems:
        shutil.rmtree(out, ignore_errors=True)
        lines = "\n  ".join(f"{p.kind}: {p.path.name}: {p.text}" for p in problems)
        raise ResultError(f"the board would refuse {len(problems)} thing(s) of this submission:\n  {lines}")
    size = sum(p.stat().st_size for p in below.rglob("*") if p.is_file())
    if size > MOST_BYTES:
        raise ResultError(f"the submission has {size / 2**20:.0f} MB, and {MOST_BYTES / 2**20:.0f} MB are allowed")
    text = out / TEXT
    text.write_text(_text(made, results, below), encoding="utf-8")
    return Submission(out, _patch(out), text, made)


def _collect(source: Path) -> list[tuple[Path, Result]]:
    if source.is_file():
        return [(source, Result.from_json(source))]
    if not source.is_dir():
        raise ResultError(f"{source} does not exist; give a result file, or the folder of a run")
    folder = source / "results" if (source / "results").is_dir() else source
    found = [(p, Result.from_json(p)) for p in sorted(folder.rglob("*.json")) if FILE_NAME.fullmatch(p.name)]
    if not found:
        raise ResultError(f"there is no result below {folder}; `hybridzoo eval MODEL TASK --out {folder}` writes one")
    return found


def _copy(path: Path, result: Result, below: Path, by: str | None, notes: str) -> Path:
    """Write the result and its predictions anew, under the name that its content asks for; the scores must follow."""
    if result.run is None or result.provenance.predictions is None:
        raise ResultError(f"{path} is a paper row; paper rows are added by hand (docs/leaderboard.md)")
    again = rescore(path)  # raises when predictions are missing or others
    for name, metric in result.metrics.items():
        value = again[name].value if name in again else None
        if value is None or abs(value - metric.value) > 1e-6 * max(1.0, abs(metric.value)):
            raise ResultError(f"{path}: {name} = {metric.value}, but its predictions give {value}")
    data = (path.parent / result.provenance.predictions.path).read_bytes()
    joined = "; ".join(part for part in (result.provenance.notes, notes) if part)
    provenance = replace(
        result.provenance, submitted_by=by or result.provenance.submitted_by, notes=joined,
        predictions=replace(result.provenance.predictions, sha256=hashlib.sha256(data).hexdigest()),
    )  # fmt: skip
    _, target = write_result(replace(result, provenance=provenance), data, below)
    for file, kind in sample_files(path):
        if kind != "errors":
            shutil.copyfile(file, target.with_name(f"{target.stem}{file.name.removeprefix(path.stem)}"))
    return target


def _problems(made: Sequence[Path], below: Path, results: Path) -> list[Problem]:
    """What `check` would say of the new results among those of the board."""
    known = [path for path in made if (results / path.relative_to(below)).exists()]
    if known:
        return [Problem("duplicate", path, "this very result is on the board already") for path in known]
    with tempfile.TemporaryDirectory(prefix="hybridzoo-submit-") as folder:
        joined = Path(folder) / "results"
        if results.is_dir():
            shutil.copytree(results, joined)
        for path in below.rglob("*"):
            target = joined / path.relative_to(below)
            if path.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        new = {joined / path.relative_to(below) for path in made}
        return [p for p in check_results(joined, rescore=False) if p.path in new]


def _patch(out: Path) -> Path | None:
    """All files as one patch, made in a repository of its own; None where git is not installed."""
    if shutil.which("git") is None:
        return None
    with tempfile.TemporaryDirectory(prefix="hybridzoo-submit-") as folder:
        shutil.copytree(out / "eval", Path(folder) / "eval")

        def git(*words: str) -> bytes:
            return subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True).stdout

        git("init", "--quiet")
        git("add", "--force", "--", "eval")
        patch = git("diff", "--cached", "--binary", "--no-color", "--no-ext-diff")
    path = out / PATCH
    path.write_bytes(patch)
    return path


# The text ----------------------------------------------------------------------------------------------------------


def _text(made: Sequence[Path], results: Path, below: Path) -> str:
    new = [Entry(path, Result.from_json(path)) for path in made]
    old = [Entry(path, result) for path, result in read_results(results)] if results.is_dir() else []
    lines = ["## Results", ""]
    for table in make_tables([*old, *new], results):
        mine = {row_name(e.result) for e in new if e.result.task.name == table.name}
        if mine:
            lines += [f"### {table.title}", "", *_beside(table, mine, {e.path for e in new}), ""]
    lines += ["## How they were made", ""]
    for entry in new:
        run = entry.result.run
        assert run is not None
        commit = f"commit `{run.git_commit}`" if run.git_commit else "no commit"
        dirty = " with local changes" if run.git_dirty else ""
        lines.append(f"- `{run.command}`, {commit}{dirty}, {run.device}, {run.date}")
    lines += [
        "",
        "## Checks",
        "",
        "- [x] scores follow from the predictions that are part of this change (recomputed by `leaderboard submit`)",
        "- [ ] `hybridzoo leaderboard verify RESULT.json` agrees on another machine",
        "- [ ] `hybridzoo leaderboard build` and `python docs/generate.py` ran; their files are part of this change",
        f"- [ ] a score that moved is explained (`{EXPLAINED} REASON` in the notes)",
        "",
    ]
    return "\n".join(lines)


def _beside(table: Table, mine: set[str], new: set[Path]) -> list[str]:
    """The new rows between the best of their group and the rows next to them."""
    column = next(c for c in table.columns if c.name == table.primary)
    lines = []
    for cohort in table.cohorts:
        rows = cohort.rows
        at = [i for i, row in enumerate(rows) if row.label in mine and any(e.path in new for e in row.entries)]
        if not at:
            continue
        shown = sorted({0, *at, *(j for i in at for j in (i - 1, i + 1) if 0 <= j < len(rows))})
        shown = [i for i in shown if i in at or i == 0 or shown.index(i) <= REFERENCES + len(at)]
        lines += [
            f"**{cohort.label}**",
            "",
            f"| # | model | {metric_label(table.primary)} | seeds | |",
            "|--:|---|--:|--:|---|",
        ]
        lines += [_line(rows[i], column, i in at) for i in shown]
    return lines


def _line(row: Row, column: object, new: bool) -> str:
    score = markdown_score(row, column)  # type: ignore[arg-type]
    return f"| {row.rank or ''} | {row.label} | {score} | {len(row.entries)} | {'**new**' if new else ''} |"
