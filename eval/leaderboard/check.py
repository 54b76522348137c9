"""`hybridzoo leaderboard check`: what is invalid, doubled, not reproducible or stale, all of it in one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybridzoo.errors import HybridzooError
from hybridzoo.eval.leaderboard.build import Outputs, default_outputs, default_results, render_all
from hybridzoo.eval.leaderboard.rows import Entry, same_run
from hybridzoo.eval.leaderboard.samples import EMBEDDED
from hybridzoo.eval.schema import Result, check_location
from hybridzoo.eval.tasks import list_tasks, load_task


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, where, and what to do."""

    kind: str  # invalid | duplicate | predictions | metric | stale | orphan
    path: Path
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.path}: {self.text}"


def check(
    results: Path | None = None,
    outputs: Outputs | None = None,
    *,
    repository: str | None = None,
    rescore: bool = True,
) -> list[Problem]:
    """All problems of a folder of results and of the files generated from it; an empty list means that all is well.

    Args:
        results: folder of result files; `eval/results` if left out.
        outputs: the generated files; the repository's if left out.
        repository: as given to `build`.
        rescore: compute every measured result's metrics again from its predictions.
    """
    results, outputs = results or default_results(), outputs or default_outputs()
    entries, problems = _read(results)
    problems += _duplicates(entries)
    problems += _supersedes(entries, results)
    for entry in entries:
        problems += _task(entry)
        if entry.result.provenance.status == "measured" and rescore:
            problems += _predictions(entry)
    problems += _orphans(results, entries)
    problems += _stale(results, outputs, repository)
    return problems


def _read(results: Path) -> tuple[list[Entry], list[Problem]]:
    entries, problems = [], []
    for path in sorted(results.rglob("*.json")) if results.is_dir() else []:
        try:
            result = Result.from_json(path)
            check_location(result, path, results)
            entries.append(Entry(path, result))
        except HybridzooError as error:
            problems.append(Problem("invalid", path, str(error)))
    return entries, problems


def _duplicates(entries: list[Entry]) -> Iterator[Problem]:
    seen: dict[tuple, Path] = {}
    for entry in entries:
        key = same_run(entry)
        if key in seen:
            text = f"the same weights were measured on the same task at the same commit in {seen[key]}; remove one"
            yield Problem("duplicate", entry.path, text)
        seen.setdefault(key, entry.path)


def _supersedes(entries: list[Entry], results: Path) -> Iterator[Problem]:
    for entry in entries:
        old = entry.result.supersedes
        if old and not (results / old).is_file():
            yield Problem("invalid", entry.path, f"supersedes {old!r}, which is not below {results}")


def _task(entry: Entry) -> Iterator[Problem]:
    from hybridzoo import registry

    ref = entry.result.task
    if ref.name not in list_tasks():
        yield Problem("invalid", entry.path, f"there is no task {ref.name!r} (known: {', '.join(list_tasks())})")
        return
    task = load_task(ref.name)
    # A reader may say more behind a comma: "paper, train half" is the task's protocol on a part of its data.
    if ref.protocol.split(",")[0] != task.protocol:
        yield Problem("invalid", entry.path, f"protocol {ref.protocol!r}, but task {ref.name!r} is {task.protocol!r}")
    if ref.version > task.version:
        yield Problem("invalid", entry.path, f"task version {ref.version} is newer than this code's {task.version}")
    if ref.primary != task.primary:
        yield Problem("invalid", entry.path, f"primary metric {ref.primary!r}, but the task ranks by {task.primary!r}")
    family = entry.result.model.family
    if family and family not in registry.families() and not entry.result.model.name.startswith("baseline_"):
        status = entry.result.provenance.status
        if status == "measured":
            yield Problem(
                "invalid", entry.path, f"unknown family {family!r}; measured rows are of the zoo or baselines"
            )


def _predictions(entry: Entry) -> Iterator[Problem]:
    """Score the stored predictions again; every metric, error and confusion count must be the one in the file."""
    from hybridzoo.eval.predictions import PredictionFile, score

    result = entry.result
    reference, run = result.provenance.predictions, result.run
    assert reference is not None  # the schema demands both of a measured row
    assert run is not None
    try:
        file = PredictionFile.read(entry.path.parent / reference.path, reference.sha256)
        metrics, details = score(file, load_task(result.task.name), seed=run.seed)
    except HybridzooError as error:
        yield Problem("predictions", entry.path, str(error))
        return
    if len(file.test.ids) != result.task.dataset.n_used:
        text = f"n_used = {result.task.dataset.n_used}, but there are {len(file.test.ids)} predictions"
        yield Problem("predictions", entry.path, text)
    for name, stated in result.metrics.items():
        again = metrics.get(name)
        if again is None:
            yield Problem("metric", entry.path, f"{name} = {stated.value} cannot be computed from the predictions")
        elif not _close(again.value, stated.value):
            yield Problem("metric", entry.path, f"{name} = {stated.value}, but the predictions give {again.value}")
        elif not _close(again.stderr or 0.0, stated.stderr or 0.0, relative=1e-3):
            text = f"{name} has the error {stated.stderr}, but the predictions give {again.stderr}"
            yield Problem("metric", entry.path, text)
    matrix = "confusion_matrix"
    if matrix in result.details and result.details[matrix] != details.get(matrix):
        yield Problem("metric", entry.path, "the confusion matrix is not the one that the predictions give")


def _close(a: float, b: float, relative: float = 1e-6) -> bool:
    """Equal but for rounding in the sixth digit and other builds of numpy."""
    return abs(a - b) <= relative * max(1.0, abs(a), abs(b))


def _orphans(results: Path, entries: list[Entry]) -> Iterator[Problem]:
    """Predictions that no result names are left over from a removed or renamed result."""
    named = {
        entry.path.parent / entry.result.provenance.predictions.path
        for entry in entries
        if entry.result.provenance.predictions
    }
    broken = {path.parent for path in results.rglob("*.json")} - {e.path.parent for e in entries}
    for path in sorted(results.rglob("*.predictions.jsonl.gz")) if results.is_dir() else []:
        if path not in named and path.parent not in broken:
            yield Problem("orphan", path, "no result file names these predictions; remove them")


def _stale(results: Path, outputs: Outputs, repository: str | None) -> Iterator[Problem]:
    try:
        expected = render_all(results, outputs, repository=repository)
    except HybridzooError:
        return  # already reported as invalid
    for path, text in expected.items():
        if not path.is_file():
            yield Problem("stale", path, "does not exist; run `hybridzoo leaderboard build`")
        elif EMBEDDED.sub("", path.read_text(encoding="utf-8")) != EMBEDDED.sub("", text):
            yield Problem("stale", path, "differs from what the results give; run `hybridzoo leaderboard build`")
