"""Evaluation tasks. A task is a data set, a protocol and metrics; results of different protocols are different
tasks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hybridzoo.data import data_spec
from hybridzoo.errors import UnknownNameError, unknown
from hybridzoo.eval.tasks.anomaly import ANOMALY_TASKS
from hybridzoo.eval.tasks.generation import GENERATION_TASKS
from hybridzoo.eval.tasks.generation import LOWER_IS_BETTER as DISTANCES
from hybridzoo.eval.tasks.language import LANGUAGE_TASKS, harness_task
from hybridzoo.eval.tasks.lra import LRA_TASKS

TEXT_METRICS = (
    "accuracy",
    "f1_macro",
    "f1_weighted",
    "precision_weighted",
    "recall_weighted",
    "precision_macro",
    "recall_macro",
    "nll",
    "brier",
    "ece",
)
IMAGE_METRICS = ("top1", "top5", "f1_macro", "nll", "brier", "ece")
COCO_METRICS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)
LVIS_METRICS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ap_rare", "ap_common", "ap_frequent"),
    *("ar_300", "ar_small", "ar_medium", "ar_large"),
)
LVIS_1000_METRICS = tuple("ar_1000" if name == "ar_300" else name for name in LVIS_METRICS)
LOWER_IS_BETTER = (
    *("bits_per_byte", "perplexity", "word_perplexity"),
    "nll",
    "brier",
    "ece",
    "nll_calibrated",
    "ece_calibrated",
    *DISTANCES,
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is measured, on what, how.

    Attributes:
        name: of the task and of its folder below `eval/results`.
        title: in words.
        data: a name of `hybridzoo.data`.
        protocol: how that set is split.
        metrics: names, in the order of a table.
        primary: the metric that ranks.
        split: the split that is scored.
        version: raised when predictions or scores would change.
        task: what a model for it does, where that is not what the data's own task says.
        chance: `primary` of guesses that ignore the input, in its unit; stated where the classes are equally frequent.
    """

    name: str
    title: str
    data: str
    protocol: str
    metrics: tuple[str, ...]
    primary: str
    split: str = "test"
    version: int = 1
    task: str | None = None
    chance: float | None = None

    @property
    def kind(self) -> str:
        """`"text-classification"` or `"image-classification"`."""
        return self.task or data_spec(self.data).task


def _text(
    name: str, title: str, data: str, protocol: str, primary: str = "accuracy", chance: float | None = None
) -> Task:
    return Task(
        name=name, title=title, data=data, protocol=protocol, metrics=TEXT_METRICS, primary=primary, chance=chance
    )


def _boxes(name: str, title: str, data: str, protocol: str, metrics: tuple[str, ...] = COCO_METRICS) -> Task:
    return Task(name=name, title=title, data=data, protocol=protocol, metrics=metrics, primary="ap")


_TASKS = (
    Task(
        name="imagenet1k",
        title="ImageNet-1k validation set",
        data="imagenet1k",
        protocol="official",
        metrics=("top1", "top5", "nll", "ece"),
        primary="top1",
        chance=0.1,
    ),
    Task(
        name="fashion_mnist",
        title="Fashion-MNIST test set",
        data="fashion_mnist",
        protocol="official",
        metrics=IMAGE_METRICS,
        primary="top1",
        chance=10.0,
    ),
    Task(
        name="fashion_mnist_mini",
        title="Fashion-MNIST, embedded subset (500 test images)",
        data="fashion_mnist_mini",
        protocol="embedded",
        metrics=IMAGE_METRICS,
        primary="top1",
        chance=10.0,
    ),
    Task(
        name="emoji",
        title="Emoji in nine categories, held-out code points",
        data="emoji",
        protocol="80/10/10",
        metrics=IMAGE_METRICS,
        primary="top1",
    ),
    _text("imdb", "IMDb, official test half", "imdb", "official", chance=50.0),
    _text("imdb_paper", "IMDb, 90/5/5 of both halves", "imdb", "paper", chance=50.0),
    _text("twitter_airline", "Twitter US Airline, 90/5/5", "twitter_airline", "paper"),
    _text("sentiment140", "Sentiment140, 90/5/5", "sentiment140", "paper", chance=50.0),
    _text("sentiment140_manual", "Sentiment140, manual test set (359 polar tweets)", "sentiment140", "official"),
    _boxes("trees_mini", "DeepForest trees, embedded tiles (5 images, 150 trees)", "trees_mini", "embedded"),
    _boxes("trees", "DeepForest trees, tiles of two photographs", "trees", "tiles"),
    _boxes("stamp_scenes", "Stamp scenes, eight classes", "stamp_scenes", "made"),
    _boxes("coco", "COCO 2017 validation set, boxes", "coco", "official"),
    _boxes("lvis", "LVIS v1 validation set, boxes, 300 detections an image", "lvis", "official", LVIS_METRICS),
    _boxes("lvis_1000", "LVIS v1 validation set, boxes, 1,000 detections", "lvis", "official", LVIS_1000_METRICS),
    _text("vader", "VADER ground truth, three classes", "vader", "80/10/10", "f1_macro"),
)
_MORE = tuple(Task(**values) for values in (*LANGUAGE_TASKS, *GENERATION_TASKS, *ANOMALY_TASKS, *LRA_TASKS))
TASKS: dict[str, Task] = {task.name: task for task in (*_TASKS, *_MORE)}


def list_tasks() -> list[str]:
    """Names of all tasks."""
    return sorted(TASKS)


def load_task(name: str, protocol: str | None = None) -> Task:
    """The task `name`; with `protocol`, the task on the same data that uses it (`imdb` + `paper` is `imdb_paper`).

    Raises:
        UnknownNameError: no such task, or no task on its data with this protocol.
    """
    if re.fullmatch(r"lm_eval_\w+_\d+shot", name):
        return Task(**harness_task(name))
    if name not in TASKS:
        raise UnknownNameError(unknown("task", name, TASKS, f"(tasks: {', '.join(sorted(TASKS))})"))
    task = TASKS[name]
    if protocol is None or protocol == task.protocol:
        return task
    same = {t.protocol: t for t in TASKS.values() if (t.data, t.kind) == (task.data, task.kind)}
    if protocol not in same:
        raise UnknownNameError(unknown(f"protocol of task {name!r}", protocol, same))
    return same[protocol]
