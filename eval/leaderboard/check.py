"""`hybridzoo leaderboard check`: what is invalid, doubled, not reproducible or stale, all of it in one run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hybridzoo.errors import HybridzooError
from hybridzoo.eval.kinds import RecordFile, record_kind
from hybridzoo.eval.leaderboard.build import Outputs, default_outputs, default_results, render_all
from hybridzoo.eval.leaderboard.history import EXPLAINED, explained, moved_scores
from hybridzoo.eval.leaderboard.render import web_only
from hybridzoo.eval.leaderboard.rows import Entry, same_run
from hybridzoo.eval.leaderboard.samples import EMBEDDED
from hybridzoo.eval.predictions import PredictionFile, score
from hybridzoo.eval.schema import Result, check_location
from hybridzoo.eval.tasks import list_tasks, load_task


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, where, and what to do."""

    kind: str  # invalid | duplicate | data | track | source | predictions | metric | moved | stale | orphan
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
    return [*check_results(results, rescore=rescore), *_stale(results, outputs, repository)]


def check_results(results: Path, *, rescore: bool = True) -> list[Problem]:
    """All problems of a folder of results alone."""
    entries, problems = _read(results)
    problems += _duplicates(entries)
    problems += _supersedes(entries, results)
    problems += _data(entries)
    problems += [Problem("moved", entry.path, text) for entry, text in moved_scores(entries, results)]
    for entry in entries:
        problems += _task(entry)
        problems += _source(entry)
        if entry.result.provenance.status == "measured" and rescore:
            problems += _predictions(entry)
    problems += _orphans(results, entries)
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


def _source(entry: Entry) -> Iterator[Problem]:
    """A number from a paper names the place in it, and leads there."""
    found = entry.result.provenance
    if found.status != "paper":
        return
    if web_only(found.source_url) is None:
        yield Problem("source", entry.path, f"source_url {found.source_url!r} is no address on the web")
    if len((found.source or "").strip()) < 4:
        yield Problem("source", entry.path, f"source {found.source!r} must name the table or page of the number")
    if found.predictions is not None or entry.result.efficiency is not None:
        yield Problem("source", entry.path, "a paper row holds predictions or speeds: nothing of it was measured here")


def _data(entries: list[Entry]) -> Iterator[Problem]:
    """The data are those of the task: its track, the embedded file's hash, and one hash for all of its results."""
    from hybridzoo.data import data_spec

    hashes: dict[tuple, tuple[str, Path]] = {}
    for entry in entries:
        result, data = entry.result, entry.result.task.dataset
        if result.task.name not in list_tasks() or result.run is None:
            continue
        task = load_task(result.task.name)
        spec = data_spec(task.data)
        wanted = "mini" if spec.track == "mini" else "full"
        if result.track not in (wanted, "subset"):
            text = f"track {result.track!r}, but the data of task {task.name!r} are of the {wanted} track"
            yield Problem("track", entry.path, text)
        if result.task.version < task.version or explained(result):
            continue  # of an older task, or with a reason
        embedded = None if spec.needs else _embedded_sha256(task.data, task.protocol)
        if embedded and data.sha256 and data.sha256 != embedded:
            text = f"data sha256 {data.sha256[:12]}…, but the embedded set {task.data!r} has {embedded[:12]}…"
            yield Problem("data", entry.path, text)
        key = (task.name, result.task.protocol, data.split, data.sha256_of)
        known = hashes.setdefault(key, (data.sha256 or "", entry.path))
        if spec.needs and spec.source != "local folder" and (data.sha256 or "") != known[0]:
            text = f"measured on other data (sha256 {(data.sha256 or 'not stated')[:12]}…) than {known[1]}"
            yield Problem("data", entry.path, f"{text}; say why with '{EXPLAINED} REASON' in provenance.notes")


@cache
def _embedded_sha256(name: str, protocol: str) -> str | None:
    from hybridzoo.data import load_data

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of splits that share samples; results state it
        return load_data(name, protocol=protocol).info.sha256


def _predictions(entry: Entry) -> Iterator[Problem]:
    """Score the stored predictions again; every metric, error and detail must be the one in the file."""
    result = entry.result
    reference, run = result.provenance.predictions, result.run
    assert reference is not None  # the schema demands both of a measured row
    assert run is not None
    try:
        task = load_task(result.task.name)
        kind = record_kind(task.kind)
        path = entry.path.parent / reference.path
        if kind is None:
            file: PredictionFile | RecordFile = PredictionFile.read(path, reference.sha256)
            assert isinstance(file, PredictionFile)
            count = len(file.test.ids)
            metrics, details = score(file, task, seed=run.seed)
        else:
            file = RecordFile.read(path, reference.sha256)
            count = sum(row.get("id") != "set" for row in file.rows)  # "set": measured of all samples together
            metrics, details = kind.score(file, task, seed=run.seed)
    except HybridzooError as error:
        yield Problem("predictions", entry.path, str(error))
        return
    made = task.kind == "image-generation"  # samples that the model made, of any number
    if count != result.task.dataset.n_used and not made:
        text = f"n_used = {result.task.dataset.n_used}, but there are {count} predictions"
        yield Problem("predictions", entry.path, text)
    for name, stated in result.metrics.items():
        again = metrics.get(name)
        if again is None:
            yield Problem("metric", entry.path, f"{name} = {stated.value} cannot be computed from the predictions")
        elif not _close(again.value, stated.value):
            yield Problem("metric", entry.path, f"{name} = {stated.value}, but the predictions give {again.value}")
        # lm-evaluation-harness computes its errors from samples that a records file does not keep
        elif again.stderr is None and result.task.name.startswith("lm_eval_"):
            continue
        elif not _close(again.stderr or 0.0, stated.stderr or 0.0, relative=1e-3):
            text = f"{name} has the error {stated.stderr}, but the predictions give {again.stderr}"
            yield Problem("metric", entry.path, text)
    for name, text in (("confusion_matrix", "the confusion matrix"), ("per_class", "the table of classes")):
        if name in result.details and not _same(result.details[name], details.get(name)):
            yield Problem("metric", entry.path, f"{text} is not the one that the predictions give")


def _same(a: Any, b: Any) -> bool:
    """Equal plain JSON, numbers as `_close` takes them."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return _close(a, b, relative=1e-4)
    return a == b


def _close(a: float, b: float, relative: float = 1e-6) -> bool:
    """Equal but for rounding in the sixth digit and other builds of numpy."""
    return abs(a - b) <= relative * max(1.0, abs(a), abs(b))


def _orphans(results: Path, entries: list[Entry]) -> Iterator[Problem]:
    """Predictions and pictures that no result names are left over from a removed or renamed result."""
    named = {
        entry.path.parent / entry.result.provenance.predictions.path
        for entry in entries
        if entry.result.provenance.predictions
    }
    stems = {path.with_suffix("") for path in results.rglob("*.json")} if results.is_dir() else set()
    broken = {path.parent for path in results.rglob("*.json")} - {e.path.parent for e in entries}
    for path in sorted(results.rglob("*.*")) if results.is_dir() else []:
        if path.suffix == ".json" or path.parent == results or path.parent in broken or path.parent.suffix == ".errors":
            continue
        if path.is_dir() and path.suffix != ".errors":
            continue
        if path.name.endswith(".predictions.jsonl.gz"):
            if path not in named:
                yield Problem("orphan", path, "no result file names these predictions; remove them")
        elif not any(path.name.startswith(f"{stem.name}.") for stem in stems if stem.parent == path.parent):
            yield Problem("orphan", path, "belongs to no result file; remove it")


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
