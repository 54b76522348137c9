"""Anomaly detection in the harness: one record per image, pixel metrics of each class beside its first image.

    {"id", "class", "specie", "label", "score"}     and, in the first record of a class,
    "pixel": {evaluator: {metric: value or null}}   and "pixels": [height, width] of the maps

The first anomalous images of each kind also keep a coarse map, "heat", which the picture beside a result is drawn from.
Image metrics follow from the records. Pixel metrics follow from maps of a quarter of a megabyte an image, which are not
kept: a class is predicted, scored while its maps are in memory, and let go, so that a test set of any size fits.
Values are fractions with twelve significant digits; null is what cannot be defined (docs/models/mambaad.md lists when).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.anomaly.transforms import class_masks
from hybridzoo.errors import ConfigError, unknown
from hybridzoo.eval.metrics.anomaly import EVALUATORS, IMAGE_METRICS, SEVEN, score_class
from hybridzoo.eval.metrics.bootstrap import bootstrap_errors
from hybridzoo.eval.metrics.ranking import average_precision, f1_max, roc_auc
from hybridzoo.eval.schema import Metric, ResultError
from hybridzoo.eval.tasks.anomaly import COMMON

COARSE = 32  # side of the maps that are kept
SHOWN = 15  # images of the picture beside a result
_RANKINGS = {"i_auroc": roc_auc, "i_ap": average_precision, "i_f1max": f1_max}


def score_records(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], *, seed: int = 0, resamples: int = 500
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Metrics and details of records: per class, then the plain mean over the classes.

    Args:
        rows: one record per image.
        metrics: of the task.
        seed, resamples: of the bootstrap over each class's images (image metrics); 0 leaves standard errors out.

    Returns:
        name -> Metric in %, without those that no class defines; and details: metrics per class, and which classes a
        metric leaves out because it is not defined there.

    Raises:
        ResultError: no record.
    """
    if not rows:
        raise ResultError("no records to score")
    classes: dict[str, dict[str, float]] = {}
    images: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in dict.fromkeys(row["class"] for row in rows):
        mine = [row for row in rows if row["class"] == name]
        scores = np.array([row["score"] for row in mine], np.float64)
        labels = np.array([row["label"] for row in mine])
        images[name] = scores, labels
        values = {metric: rank(scores, labels) for metric, rank in _RANKINGS.items()}
        for evaluator, pixel in (mine[0].get("pixel") or {}).items():
            own = {k: math.nan if v is None else float(v) for k, v in pixel.items()}
            values |= {k if k in COMMON else f"{k}_{evaluator}": v for k, v in own.items()}
            values[f"mad_{evaluator}"] = float(np.mean([own.get(k, values.get(k, math.nan)) for k in SEVEN]))
        classes[name] = values
    errors = _errors(images, seed, resamples) if resamples else {}
    made, left_out = {}, {}
    for metric in metrics:
        of_class = {name: values.get(metric, math.nan) for name, values in classes.items()}
        defined = [v for v in of_class.values() if not math.isnan(v)]
        if len(defined) < len(of_class) and any(metric in values for values in classes.values()):
            left_out[metric] = [name for name, v in of_class.items() if math.isnan(v)]
        if defined:
            error = errors.get(metric)
            made[metric] = Metric(
                value=round(100 * float(np.mean(defined)), 6), stderr=None if error is None else round(100 * error, 6)
            )
    if not made:
        raise ResultError(
            "no metric is defined: the test images are all normal, or all anomalous. A test needs both kinds."
        )
    details: dict[str, Any] = {
        "per_class": {
            name: {k: round(100 * v, 4) for k, v in values.items() if not math.isnan(v)}
            | {"normal": int((images[name][1] == 0).sum()), "anomalous": int((images[name][1] > 0).sum())}
            for name, values in classes.items()
        },
        "evaluators": "ader: F1 over 21 thresholds, AU-PRO over 100, rates below 0.3 stretched; exact: all thresholds",
    }
    if left_out:
        details["undefined"] = left_out
    return made, details


def _errors(images: Mapping[str, tuple[np.ndarray, np.ndarray]], seed: int, resamples: int) -> dict[str, float]:
    """Standard errors of the means over classes; each class's images are drawn anew."""
    total: dict[str, float] = dict.fromkeys(IMAGE_METRICS, 0.0)
    used = 0
    for scores, labels in images.values():
        normal, strange = np.flatnonzero(labels == 0), np.flatnonzero(labels > 0)
        if not len(normal) or not len(strange):
            continue
        used += 1

        # Each kind is drawn by itself, so that no draw is without one.
        def metrics(rows: np.ndarray, data: Any = (scores, labels, normal, strange)) -> dict[str, float]:
            scores, labels, normal, strange = data
            cut = len(normal)
            chosen = np.concatenate([normal[rows[:cut] % cut], strange[rows[cut:] % len(strange)]])
            return {name: rank(scores[chosen], labels[chosen]) for name, rank in _RANKINGS.items()}

        for name, error in bootstrap_errors(metrics, len(labels), seed=seed, resamples=resamples).items():
            total[name] += error**2
    return {name: math.sqrt(v) / used for name, v in total.items()} if used else {}


class AnomalyKind:
    """Anomaly detection, as `hybridzoo.eval.kinds` asks for it."""

    def predictor(self, model: Any, spec: Any, device: Any, dtype: str, options: dict[str, Any]) -> AnomalyPredictor:
        """A detector that scores pixels class by class."""
        for key in options:
            raise ConfigError(unknown("option of an anomaly-detection task", key, ("batch_size", "dtype", "device")))
        return AnomalyPredictor(model, device, dtype)

    def head(self, bundle: Any, spec: Any) -> dict[str, Any]:
        """Nothing: a record says of which class it is."""
        return {}

    def score(
        self, file: Any, task: Any, *, seed: int = 0, resamples: int = 500
    ) -> tuple[dict[str, Metric], dict[str, Any]]:
        """Metrics of a records file."""
        return score_records(file.rows, task.metrics, seed=seed, resamples=resamples)

    def pictures(self, file: Any, result: Any, stem: Path, bundle: Any, errors: int) -> list[Path]:
        """The first anomalous images, their heat maps and what is truly anomalous, one below the other."""
        from hybridzoo.inference.anomaly import heat_sheet

        split = bundle[result.task.dataset.split]
        index = {name: i for i, name in enumerate(split.ids)}
        shown = [(split[index[row["id"]]], _from_text(row["heat"])) for row in file.rows if "heat" in row]
        if not shown:
            return []
        path = stem.with_name(f"{stem.name}.heat.jpg")
        heat_sheet(shown).save(path, quality=88)
        return [path]


class AnomalyPredictor:
    """A detector with what the result says about it."""

    def __init__(self, model: Any, device: Any, dtype: str):
        from hybridzoo.inference.anomaly import AnomalyDetector

        self.detector = AnomalyDetector(model, device=device, dtype=dtype)
        self.device = self.detector.device
        names = ("image_size", "interpolation", "gaussian_sigma", "threshold", "pixel_threshold")
        self.settings = {name: getattr(self.detector.config, name) for name in names}

    def records(
        self, bundle: Any, split: Any, *, batch_size: int, num_workers: int, progress: bool
    ) -> list[dict[str, Any]]:
        """One record per image, class by class."""
        side, rows = self.detector.config.image_size, []
        limit = self.detector.pixel_threshold
        for c, name in enumerate(split.class_names):
            part = split.of_class(name)
            shown = _shown(part, c, len(split.class_names))
            maps = np.empty((len(part), side, side), np.float32)
            judged = self.detector.judge(part, batch_size, num_workers=num_workers, progress=progress)
            mine: list[dict[str, Any]] = []
            for i, (entry, one) in enumerate(zip(part.entries, judged)):
                maps[i] = one["map"]
                label = int(entry.anomaly > 0)
                mine.append({"id": entry.img_path, "class": name, "specie": entry.specie_name, "label": label})
                mine[-1]["score"] = _number(one["score"], entry.img_path)
                if i in shown:
                    mine[-1]["heat"] = _to_text(one["map"], 2 * limit if limit else float(one["map"].max()))
            mine[0] |= _pixel_metrics(maps, class_masks(part, side))
            rows += mine
        return rows


def _shown(part: Any, number: int, classes: int) -> set[int]:
    """Samples of a class for the picture: the first of each kind of defect, other kinds in other classes if many."""
    first: dict[str, int] = {}
    for i, entry in enumerate(part.entries):
        if entry.anomaly:
            first.setdefault(entry.specie_name, i)
    found, room = list(first.values()), max(1, SHOWN // classes) if number < SHOWN else 0
    return {found[(number * room + k) % len(found)] for k in range(min(room, len(found)))}


def _to_text(one: np.ndarray, high: float) -> str:
    """A map as COARSE x COARSE bytes in base64; 255 is `high`."""
    from PIL import Image

    small = Image.fromarray(one.astype(np.float32)).resize((COARSE, COARSE), Image.Resampling.BOX)
    levels = np.clip(np.asarray(small) / max(high, 1e-12), 0, 1) * 255
    return base64.b64encode(np.rint(levels).astype(np.uint8).tobytes()).decode()


def _from_text(text: str) -> np.ndarray:
    """(COARSE, COARSE) float32 in 0 … 1."""
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(COARSE, COARSE).astype(np.float32) / 255


def _pixel_metrics(maps: np.ndarray, masks: np.ndarray | None) -> dict[str, Any]:
    """What the first record of a class says of its pixels; nothing without masks."""
    if masks is None:
        return {}
    pixel = {}
    for evaluator in EVALUATORS:
        last = evaluator == EVALUATORS[-1]
        values = score_class(maps, masks, evaluator=evaluator, overwrite=last)
        pixel[evaluator] = {
            k: None if math.isnan(v) else float(f"{v:.12g}") for k, v in values.items() if k in SEVEN[3:]
        }
    return {"pixel": pixel, "pixels": list(maps.shape[1:])}


def _number(score: float, name: str) -> float:
    if not math.isfinite(score):
        raise ResultError(f"the model gave the score {score} for image {name}; nothing was scored")
    return float(f"{score:.9g}")
