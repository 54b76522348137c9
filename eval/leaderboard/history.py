"""Scores that moved: two results of one model on one task that differ by more than chance need a reason."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from hybridzoo.eval.leaderboard.rows import PER_SEED_SETTINGS, Entry, cohort_key, row_name
from hybridzoo.eval.schema import Metric, Result

# The newer result carries this word in `provenance.notes`, and after it the reason.
EXPLAINED = "explained:"
SAME_WEIGHTS = 0.25  # share of the standard error that the same weights may move by (other machines, other kernels)
RETRAINED = 3.0  # likewise, of weights trained anew by the same recipe from the same seed
WITHOUT_ERROR = {True: 0.01, False: 0.1}  # same weights? -> share of the value, where no error is stated


def moved_scores(entries: Iterable[Entry], results: Path) -> Iterator[tuple[Entry, str]]:
    """(newer entry, text) for each pair of successive measurements whose ranking metric moved without a reason."""
    gone = {(results / e.result.supersedes).resolve() for e in entries if e.result.supersedes and explained(e.result)}
    runs: dict[tuple, list[Entry]] = {}
    for entry in entries:
        if entry.result.run is not None and entry.path.resolve() not in gone:
            runs.setdefault(_subject(entry.result), []).append(entry)
    for group in runs.values():
        group.sort(key=lambda e: (e.result.run.date if e.result.run else "", str(e.path)))
        for older, newer in pairwise(group):
            if not explained(newer.result):
                yield from ((newer, text) for text in _moves(older, newer))


def explained(result: Result) -> bool:
    """Whether the notes of a result give a reason for its score."""
    _, word, reason = result.provenance.notes.lower().partition(EXPLAINED)
    return bool(word) and len(reason.split()) >= 2


def _subject(result: Result) -> tuple:
    """What two results must share to be measurements of the same thing."""
    run = result.run
    assert run is not None
    settings = {k: v for k, v in result.model.settings.items() if k not in PER_SEED_SETTINGS}
    how = (run.recipe, run.training_seed, run.dtype, json.dumps(settings, sort_keys=True))
    return (*cohort_key(result), row_name(result), *how)


def _moves(older: Entry, newer: Entry) -> Iterator[str]:
    a, b = older.result, newer.result
    primary = b.task.primary
    if primary not in a.metrics or primary not in b.metrics:
        return
    weights = [r.model.weights.sha256 if r.model.weights else None for r in (a, b)]
    same = weights[0] == weights[1]
    before, after = a.metrics[primary], b.metrics[primary]
    limit = allowed_move(before, after, same_weights=same)
    if abs(after.value - before.value) > limit:
        what = "the same weights" if same else "weights of the same recipe and seed"
        yield (
            f"{primary} moved from {before.value:g} to {after.value:g} (allowed: {limit:.3g}) since {older.path.name}, "
            f"with {what}; write '{EXPLAINED} REASON' into provenance.notes of a new result that supersedes this one"
        )


def allowed_move(before: Metric, after: Metric, *, same_weights: bool) -> float:
    """By how much a metric may differ between two measurements of one thing."""
    errors = [m.stderr for m in (before, after) if m.stderr is not None]
    rounding = 1e-3 * max(1.0, abs(before.value)) if same_weights else 0.0
    if not errors:
        return max(rounding, WITHOUT_ERROR[same_weights] * max(abs(before.value), 1e-6))
    return max(rounding, (SAME_WEIGHTS if same_weights else RETRAINED) * max(errors))
