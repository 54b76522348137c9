"""Object detection in the harness: one record per image, scores as a pure function of the records.

A record holds what is annotated and what was found, so a result can be scored again without the data:

    {"id", "size": [height, width], "truth": {"boxes", "labels", "area", "crowd", …}, "boxes", "scores", "labels"}

Boxes are corners in pixels, to a hundredth of a pixel; scores have six significant digits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.detection import DetectionSplit, Target
from hybridzoo.errors import ConfigError, unknown
from hybridzoo.eval.metrics.detection import DetectionScores, bootstrap_ap, score_detections
from hybridzoo.eval.metrics.detection_matching import FALSE, TRUE, Detections
from hybridzoo.eval.schema import Metric, ResultError

CURVE_THRESHOLDS = {"50": 0, "75": 5}  # IoU thresholds whose precision-recall curves are kept


def max_detections(metrics: Sequence[str]) -> tuple[int, ...]:
    """Limits of detections that a task's metrics ask for: the numbers of its `ar_…`."""
    found = [re.fullmatch(r"ar_(\d+)", name) for name in metrics]
    return tuple(sorted(int(m[1]) for m in found if m))


def record(name: str, size: tuple[int, int], target: Target, found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The record of an image.

    Args:
        name: of the image.
        size: height and width.
        target: what is annotated.
        found: `boxes` (M, 4), `scores` (M,), `labels` (M,) in the data's classes.

    Raises:
        ResultError: the detector gave NaN or infinite numbers.
    """
    if not np.isfinite(found["boxes"]).all() or not np.isfinite(found["scores"]).all():
        raise ResultError(f"the model gave NaN or infinite boxes or scores for image {name}; nothing was scored")
    truth: dict[str, Any] = {
        "boxes": [[_number(v) for v in box] for box in target.boxes.tolist()],
        "labels": target.labels.tolist(),
        "area": [_number(v) for v in target.area.tolist()],
    }
    if target.crowd.any():
        truth["crowd"] = np.flatnonzero(target.crowd).tolist()
    if target.negative is not None:
        truth["negative"] = sorted(target.negative)
    if target.not_exhaustive:
        truth["not_exhaustive"] = sorted(target.not_exhaustive)
    return {
        "id": name,
        "size": list(size),
        "truth": truth,
        "boxes": [[round(v, 2) for v in box] for box in np.asarray(found["boxes"], np.float64).tolist()],
        "scores": [float(f"{v:.6g}") for v in np.asarray(found["scores"], np.float64).tolist()],
        "labels": [int(v) for v in found["labels"]],
    }


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def read_record(row: Mapping[str, Any]) -> tuple[Target, Detections]:
    """What is annotated and what was found, of a record."""
    truth = row["truth"]
    boxes = np.array(truth["boxes"], np.float64).reshape(-1, 4)
    crowd = np.zeros(len(boxes), bool)
    crowd[truth.get("crowd", [])] = True
    negative = truth.get("negative")
    target = Target(
        boxes=boxes,
        labels=np.array(truth["labels"], np.int64),
        area=np.array(truth["area"], np.float64),
        crowd=crowd,
        negative=None if negative is None else frozenset(negative),
        not_exhaustive=frozenset(truth.get("not_exhaustive", ())),
    )
    found = Detections(
        np.array(row["boxes"], np.float64).reshape(-1, 4),
        np.array(row["scores"], np.float64),
        np.array(row["labels"], np.int64),
    )
    return target, found


def detect_split(
    detector: Any,
    split: DetectionSplit,
    order: Sequence[int] | None,
    *,
    batch_size: int,
    num_workers: int = 0,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Records of a split, sorted as official scorers sort images: by id, numbers as numbers.

    Args:
        detector: a `hybridzoo.inference.Detector`.
        split: what is scored.
        order: position of each of the data's classes among the model's; None: the same.
    """
    found = detector.detect(split, batch_size, num_workers=num_workers, progress=progress)
    # From the model's class to the data's; a model has no class that the data lacks (`match_labels`).
    place = None if order is None else np.argsort(np.asarray(order))
    rows = []
    for i, one in enumerate(found):
        labels = one["labels"] if place is None else place[one["labels"]]
        rows.append(record(split.ids[i], one["size"], split.targets[i], {**one, "labels": labels}))
    return sorted(rows, key=_image_order)


def _image_order(row: Mapping[str, Any]) -> tuple[int, int, str]:
    name = str(row["id"])
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def score_records(
    rows: Sequence[Mapping[str, Any]],
    label_names: Sequence[str],
    metrics: Sequence[str],
    *,
    frequency: Sequence[str] = (),
    seed: int = 0,
    resamples: int = 500,
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Metrics and details of records.

    Args:
        rows: one record per image.
        label_names: of the data's classes.
        metrics: of the task; `ap_rare` among them means LVIS's rules, `ar_<n>` name the limits of detections.
        frequency: LVIS: "r", "c" or "f" of each class.
        seed: of the bootstrap.
        resamples: of the bootstrap; 0 leaves standard errors out.

    Returns:
        name -> Metric in %, metrics of which no ground truth exists left out; and details: AP per class, counts, and
        precision-recall curves (mean over classes at 101 recalls).

    Raises:
        ResultError: no record, or no ground truth at all.
    """
    if not rows:
        raise ResultError("no records to score")
    parts = [read_record(row) for row in rows]
    style = "lvis" if "ap_rare" in metrics else "coco"
    scores = score_detections(
        [target for target, _ in parts],
        [found for _, found in parts],
        len(label_names),
        style=style,
        max_detections=max_detections(metrics) or None,
        frequency=frequency,
    )
    if not np.isfinite(scores.values["ap"]):
        raise ResultError("no image has an annotated object, so there is no average precision")
    errors = bootstrap_ap(scores, seed=seed, resamples=resamples) if resamples else {}
    made = {}
    for name in metrics:
        value = scores.values[name]
        if np.isfinite(value):
            error = errors.get(name)
            made[name] = Metric(value=round(100 * value, 6), stderr=None if error is None else round(100 * error, 6))
    return made, _details(scores, label_names)


def _details(scores: DetectionScores, label_names: Sequence[str]) -> dict[str, Any]:
    m = scores.matched
    objects = m.truths[0]
    at50 = m.state[0, 0]
    rows = {}
    for k, name in enumerate(label_names):
        if objects[k]:
            mine = m.label == k
            rows[name] = {
                "ap": round(float(100 * scores.per_class["ap"][k]), 4),
                "ap50": round(float(100 * scores.per_class["ap50"][k]), 4),
                "objects": int(objects[k]),
                "right": int((at50[mine] == TRUE).sum()),
                "wrong": int((at50[mine] == FALSE).sum()),
            }
    seen = objects > 0
    curves = {
        name: [round(float(v), 5) for v in scores.precision[0, t][:, seen].mean(1)]
        for name, t in CURVE_THRESHOLDS.items()
    }
    curves["mean"] = [round(float(v), 5) for v in scores.precision[0][:, :, seen].mean((0, 2))]
    return {
        "per_class": rows,
        "precision_recall": curves,
        "images": m.images,
        "objects": int(objects.sum()),
        "objects_by_size": dict(zip(("small", "medium", "large"), m.truths[1:].sum(1).tolist())),
    }


class DetectionKind:
    """Object detection, as `hybridzoo.eval.kinds` asks for it."""

    def predictor(self, model: Any, spec: Any, device: Any, dtype: str, options: dict[str, Any]) -> DetectionPredictor:
        """A Detector that keeps every detection up to the task's limit."""
        for key in options:
            raise ConfigError(unknown("option of an object-detection task", key, ("batch_size", "dtype", "device")))
        return DetectionPredictor(model, spec, device, dtype)

    def head(self, bundle: Any, spec: Any) -> dict[str, Any]:
        """How frequent each class is, of LVIS."""
        frequency = bundle[spec.split].frequency
        return {"frequency": list(frequency)} if frequency else {}

    def score(
        self, file: Any, task: Any, *, seed: int = 0, resamples: int = 500
    ) -> tuple[dict[str, Metric], dict[str, Any]]:
        """Average precision of a records file."""
        return score_records(
            file.rows,
            file.label_names,
            task.metrics,
            frequency=file.head.get("frequency", ()),
            seed=seed,
            resamples=resamples,
        )

    def pictures(self, file: Any, result: Any, stem: Path, bundle: Any, errors: int) -> list[Path]:
        """Boxes on the first images, precision-recall curves, and if asked for the images with the most errors."""
        from hybridzoo.eval.metrics.detection_plots import save_boxes, save_error_pictures, save_precision_recall

        boxes = stem.with_name(f"{stem.name}.boxes.png")
        first = bundle[result.task.dataset.split]
        written = [boxes] if save_boxes(file.rows, first, file.label_names, boxes) else []
        curves = stem.with_name(f"{stem.name}.curves.png")
        title = f"{result.model.full_name} on {result.task.name}"
        written += [curves] if save_precision_recall(result.details, curves, title=title) else []
        if errors:
            split = bundle[result.task.dataset.split]
            folder = stem.with_name(f"{stem.name}.errors")
            written += save_error_pictures(file.rows, split, file.label_names, folder, count=errors)
        return written


class DetectionPredictor:
    """A detector with what the result says about it."""

    def __init__(self, model: Any, spec: Any, device: Any, dtype: str):
        from hybridzoo.inference.detection import Detector

        self.detector = Detector(model, device=device, dtype=dtype)
        self.device = self.detector.device
        processor = self.detector.processor
        # At least what the task counts; more is the model's own choice, as COCO's limit is per class and image.
        limit = max(*max_detections(spec.metrics), processor.max_detections)
        self.detector.max_detections = limit
        names = ("shortest_edge", "longest_edge", "pad_size", "soft_nms_iou", "nms_order", "interpolation")
        self.settings = {name: getattr(processor, name) for name in names} | {"max_detections": limit}

    def records(
        self, bundle: Any, split: Any, *, batch_size: int, num_workers: int, progress: bool
    ) -> list[dict[str, Any]]:
        """One record per image; the model's classes are matched with the data's by name."""
        from hybridzoo.eval.predictors import match_labels

        order = match_labels(self.detector.label_names, bundle.info.label_names, type(self.detector.model).__name__)
        return detect_split(
            self.detector, split, order, batch_size=batch_size, num_workers=num_workers, progress=progress
        )
