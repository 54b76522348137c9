"""Result files -> tables. Decides which results may be compared, joins the seeds of a model, and ranks.

A *cohort* is a set of results that may be ranked against each other: same task and version, protocol, split, data,
status and track. Runs of one model in a cohort that differ only in the seed of training become one *row*.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hybridzoo.eval.schema import Metric, Result, ResultError, read_results
from hybridzoo.eval.tasks import LOWER_IS_BETTER, list_tasks, load_task

# The order in which a task's tables stand.
KINDS = {
    "measured-full": ("Measured, full test set", "predictions stored and scores recomputed from them"),
    "measured-mini": ("Measured, mini track", "small embedded data set; not comparable with any other track"),
    "measured-subset": ("Measured, subset", "a part of the test set; not comparable with full runs"),
    "paper": ("From papers", "as published by their authors, not measured here, not ranked"),
}
LABELS = {
    "top1": "Top-1",
    "top5": "Top-5",
    "f1": "F1",
    "nll": "NLL",
    "ece": "ECE",
    "brier": "Brier score",
    "auroc": "AUROC",
    "map": "mAP",
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "i": "Image",
    "p": "Pixel",
    "f1max": "F1-max",
    "aupro": "AU-PRO",
    "mad": "mAD",
    "ader": "(ADer)",
    "exact": "(exact)",
    "fid": "FID",
    "kid": "KID",
    "fd": "FD",
    "kd": "KD",
    "efflite": "(EffLite)",
}
DIGITS = {"%": 2, "": 3, "nats": 3, "mm": 2, "px": 2}
# Facts of a run that describe one set of weights and not the model, so that seeds still join.
PER_SEED_SETTINGS = ("temperature", "threshold", "pixel_threshold")
# Reported beside the scores, and none of the model themselves: fitted values, what the judge of samples is worth.
NOT_SCORES = ("temperature", "class_accuracy_real")
# Metrics that stay behind a button on the page and out of LEADERBOARD.md, unless they rank; the CSV has all.
SECONDARY = ("precision_", "recall_", "brier")


@dataclass(frozen=True)
class Column:
    """A metric of a task."""

    name: str
    label: str
    unit: str
    digits: int
    higher_is_better: bool
    main: bool = True  # shown at first sight


@dataclass(frozen=True)
class Score:
    """A row's value in a metric: one run and its bootstrap error, or the mean of seeds and their standard deviation."""

    value: float
    error: float | None
    kind: str  # "stderr" or "sd"


@dataclass(frozen=True)
class Entry:
    """One result file that counts (superseded and repeated ones do not)."""

    path: Path
    result: Result


@dataclass
class Row:
    """A model in a cohort."""

    label: str
    model: str
    family: str
    entries: list[Entry]  # newest run of each seed, by seed
    scores: dict[str, Score]
    rank: int | None = None
    best: tuple[str, ...] = ()
    at_chance: bool = False  # in the primary metric, see `_at_chance`

    @property
    def first(self) -> Result:
        return self.entries[0].result

    @property
    def params(self) -> int | None:
        return self.first.model.params

    @property
    def recipe(self) -> str | None:
        return self.first.run.recipe if self.first.run else None

    def efficiency(self, name: str) -> float | None:
        """Mean over the entries that state it."""
        stated = [e.result.efficiency for e in self.entries if e.result.efficiency]
        values = [getattr(s, name) for s in stated if getattr(s, name) is not None]
        return statistics.fmean(values) if values else None


@dataclass
class Cohort:
    """Rows that may be ranked against each other."""

    key: str
    kind: str  # a key of KINDS
    label: str
    note: str
    rows: list[Row]


@dataclass
class Table:
    """Everything known about one task."""

    name: str
    title: str
    about: str
    primary: str
    columns: list[Column]
    cohorts: list[Cohort]

    @property
    def rows(self) -> Iterable[tuple[Cohort, Row]]:
        return ((cohort, row) for cohort in self.cohorts for row in cohort.rows)


def load_tables(results: Path) -> list[Table]:
    """Tables of every task that has results, in the order of `list_tasks`.

    Raises:
        ResultError: a file is invalid or lies in the wrong place, or a task or family does not exist.
    """
    entries = [Entry(path, result) for path, result in read_results(results)] if results.is_dir() else []
    return make_tables(entries, results)


def make_tables(entries: list[Entry], results: Path) -> list[Table]:
    """As `load_tables`, from results that were read already."""
    known = list_tasks()
    for entry in entries:
        if entry.result.task.name not in known:
            raise ResultError(
                f"{entry.path}: there is no task {entry.result.task.name!r}; known are {', '.join(known)}"
            )
    counted = current(entries, results)
    by_task = {name: [e for e in counted if e.result.task.name == name] for name in known}
    return [_table(name, chosen) for name, chosen in by_task.items() if chosen]


def current(entries: list[Entry], results: Path) -> list[Entry]:
    """Without superseded results, and of repeated runs of the same weights only the newest."""
    gone = {(results / e.result.supersedes).resolve() for e in entries if e.result.supersedes}
    newest: dict[tuple, Entry] = {}
    for entry in sorted(entries, key=lambda e: (_date(e.result), str(e.path))):
        if entry.path.resolve() not in gone:
            newest[(*_row_key(entry.result), _seed_key(entry))] = entry
    return sorted(newest.values(), key=lambda e: str(e.path))


def _date(result: Result) -> str:
    return result.run.date if result.run else ""


def cohort_key(result: Result) -> tuple:
    """Equal for results that may be ranked against each other."""
    data, status = result.task.dataset, result.provenance.status
    if status == "paper":
        return (result.task.name, "paper", result.task.protocol, data.split, "", result.task.version, 0)
    kind = f"measured-{result.track}"
    source = data.sha256 or data.revision or ""
    return (result.task.name, kind, result.task.protocol, data.split, source, result.task.version, data.n_used)


def _row_key(result: Result) -> tuple:
    settings = {k: v for k, v in result.model.settings.items() if k not in PER_SEED_SETTINGS}
    recipe = result.run.recipe if result.run else None
    source = result.provenance.source if result.run is None else None
    dtype = result.run.dtype if result.run else None
    return (*cohort_key(result), row_name(result), recipe, source, dtype, json.dumps(settings, sort_keys=True))


def row_name(result: Result) -> str:
    """The name that the seeds of a row share: a run of a recipe carries its run folder as tag, one folder per seed."""
    run = result.run
    return result.model.name if run and run.recipe and run.training_seed is not None else result.model.full_name


def _seed_key(entry: Entry) -> tuple:
    result = entry.result
    if result.run is None:
        return (entry.path.name,)
    weights = result.model.weights.sha256 if result.model.weights else None
    return (weights, result.run.training_seed) if weights else (None, result.run.training_seed, result.run.seed)


def same_run(entry: Entry) -> tuple:
    """Equal for two files that hold the same measurement: same cohort, weights and seeds, at the same commit."""
    run = entry.result.run
    how = (run.git_commit, run.seed, run.dtype, run.device) if run else ()
    return (*_row_key(entry.result), _seed_key(entry), how)


# Tables -----------------------------------------------------------------------------------------------------------


def _table(name: str, entries: list[Entry]) -> Table:
    task = load_task(name)
    columns = _columns(task.metrics, task.primary, entries)
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(cohort_key(entry.result), []).append(entry)
    order = list(KINDS)
    keys = sorted(groups, key=lambda k: (order.index(k[1]), k))
    labels = _cohort_labels(keys)
    cohorts = []
    for key in keys:
        rows = _rank(_rows(groups[key]), columns, task.primary, ranked=key[1] != "paper")
        for row in rows:
            row.at_chance = _at_chance(row.scores.get(task.primary), task.chance)
        ident = re.sub(r"[^\w.-]", "-", "-".join([*key[1:4], key[4][:8], f"v{key[5]}", str(key[6])]))
        cohorts.append(Cohort(key=ident, kind=key[1], label=labels[key], note=KINDS[key[1]][1], rows=rows))
    return Table(
        name=name,
        title=task.title,
        about=_about(entries, task.primary, columns, task.chance),
        primary=task.primary,
        columns=columns,
        cohorts=cohorts,
    )


def _columns(order: tuple[str, ...], primary: str, entries: list[Entry]) -> list[Column]:
    units: dict[str, str] = {}
    for entry in entries:
        for name, metric in entry.result.metrics.items():
            if name not in NOT_SCORES:
                units.setdefault(name, metric.unit)
    names = [n for n in order if n in units] + sorted(set(units) - set(order))
    return [
        Column(
            name=name,
            label=metric_label(name),
            unit=units[name],
            digits=DIGITS[units[name]],
            higher_is_better=name not in LOWER_IS_BETTER,
            main=name == primary or not name.startswith(SECONDARY),
        )
        for name in names
    ]


def metric_label(name: str) -> str:
    """`f1_macro` -> `Macro F1`."""
    words = name.split("_")
    if words[-1] in ("macro", "weighted", "micro") and len(words) > 1:
        words = [words[-1], *words[:-1]]
    if words[0] == "ar" and len(words) == 2:  # average recall: at so many detections, or of a size
        return f"AR at {int(words[1]):,}" if words[1].isdigit() else f"AR {words[1]}"
    shown = [LABELS.get(word, word) for word in words]
    first = shown[0] if words[0] in LABELS else shown[0][:1].upper() + shown[0][1:]
    return " ".join([first, *shown[1:]])


def _about(entries: list[Entry], primary: str, columns: list[Column], chance: float | None) -> str:
    datasets = sorted({e.result.task.dataset.id for e in entries})
    splits = sorted({e.result.task.dataset.split for e in entries})
    better = next((c for c in columns if c.name == primary), None)
    direction = "higher" if better is None or better.higher_is_better else "lower"
    guessing = "" if chance is None else f" Guessing gives {chance:g}."
    return (
        f"Data: {', '.join(datasets)}; split: {', '.join(splits)}. "
        f"Ranked by {metric_label(primary)} ({direction} is better).{guessing}"
    )


def _cohort_labels(keys: list[tuple]) -> dict[tuple, str]:
    """The kind in words, and as much more as tells the cohorts of a task apart."""
    parts = (("protocol", 2), ("split", 3), ("n =", 6), ("task version", 5), ("data", 4))
    labels = {}
    for key in keys:
        same_kind = [k for k in keys if k[1] == key[1]]
        label = KINDS[key[1]][0]
        for word, index in parts:
            # A protocol changes what the number means: name it as soon as the task has two, in any kind.
            peers = keys if word == "protocol" else same_kind
            if len({k[index] for k in peers}) > 1:
                label += f", {word} {str(key[index])[:12]}"
        labels[key] = label
    return labels


def _rows(entries: list[Entry]) -> list[Row]:
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(_row_key(entry.result), []).append(entry)
    rows = []
    for members in groups.values():
        members.sort(key=lambda e: (_seed(e.result), str(e.path)))
        model = members[0].result.model
        rows.append(
            Row(
                label=row_name(members[0].result),
                model=model.name,
                family=model.family or "other",
                entries=members,
                scores=join_scores([m.result.metrics for m in members]),
            )
        )
    # one model by two recipes, or in two precisions: both need a name
    for fact in ("recipe", "dtype"):
        found: dict[str, set[str | None]] = {}
        for row in rows:
            found.setdefault(row.label, set()).add(getattr(row.first.run, fact, None))
        for row in rows:
            if len(found[row.label]) > 1 and (value := getattr(row.first.run, fact, None)):
                row.label += f" ({value})"
    return rows


def _seed(result: Result) -> int:
    if result.run is None:
        return -1
    return result.run.training_seed if result.run.training_seed is not None else result.run.seed


def join_scores(runs: list[dict[str, Metric]]) -> dict[str, Score]:
    """Mean and standard deviation (n - 1) over runs; of a single run its value and bootstrap error.

    A metric that not every run has is left out: a mean over other runs would not be comparable.
    """
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    if len(runs) == 1:
        return {name: Score(runs[0][name].value, runs[0][name].stderr, "stderr") for name in shared}
    values = {name: [run[name].value for run in runs] for name in shared}
    return {name: Score(statistics.fmean(v), statistics.stdev(v), "sd") for name, v in values.items()}


def _at_chance(score: Score | None, chance: float | None) -> bool:
    """Whether a score is not above guessing by more than twice its error; every stated chance is of a metric that
    should be high.
    """
    return score is not None and chance is not None and score.value - 2 * (score.error or 0.0) <= chance


def _rank(rows: list[Row], columns: list[Column], primary: str, *, ranked: bool) -> list[Row]:
    """Sort by the primary metric; where rows may be ranked, number them (ties share a rank) and mark the best."""
    sign = {c.name: -1 if c.higher_is_better else 1 for c in columns}

    def order(row: Row) -> tuple:
        score = row.scores.get(primary)
        return (score is None, sign.get(primary, -1) * score.value if score else 0.0, row.label, row.recipe or "")

    rows = sorted(rows, key=order)
    if not ranked:
        return rows
    for i, row in enumerate(rows):
        if primary not in row.scores:
            continue
        tied = i > 0 and rows[i - 1].scores[primary].value == row.scores[primary].value
        row.rank = rows[i - 1].rank if tied else i + 1
    for column in columns:
        having = [r for r in rows if column.name in r.scores]
        if len(having) > 1:
            top = min(sign[column.name] * r.scores[column.name].value for r in having)
            for row in having:
                if sign[column.name] * row.scores[column.name].value == top:
                    row.best = (*row.best, column.name)
    return rows
