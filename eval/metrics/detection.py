"""COCO's and LVIS's average precision of boxes: the official scorers' numbers, vectorised over images, thresholds and
areas.

The definition is pycocotools' `COCOeval` (bbox) and the LVIS API's `LVISEval`; fixtures computed by both are
reproduced to the last digit. One thing differs on purpose: pycocotools takes a ground truth whose annotation id is 0
for "not matched"; here ids play no part.

Shapes: G ground truths, N detections, A area ranges, T = 10 IoU thresholds, R = 101 recalls, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hybridzoo.data.detection.split import Target
from hybridzoo.errors import ConfigError
from hybridzoo.eval.metrics.detection_matching import (
    AREAS,
    FALSE,
    IOU_THRESHOLDS,
    TRUE,
    Detections,
    Matched,
    match,
)

RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class DetectionScores:
    """Scores as shares (0 to 1); NaN where no ground truth is of that kind.

    Attributes:
        values: `ap` (over IoU 0.50:0.95), `ap50`, `ap75`, `ap_small|medium|large`, `ar_<max detections>`,
            `ar_small|medium|large`; of LVIS also `ap_rare|common|frequent`.
        per_class: (K,) ap and (K,) ap50 of each class.
        precision: (A, T, R, K), -1 where a class has no ground truth.
        recall: (A, T, K) at the most detections.
        matched: what the scores were computed from.
    """

    values: Mapping[str, float]
    per_class: Mapping[str, np.ndarray]
    precision: np.ndarray
    recall: np.ndarray
    matched: Matched = field(repr=False)


def score_detections(
    targets: Sequence[Target],
    detections: Sequence[Detections],
    num_classes: int,
    *,
    style: str = "coco",
    max_detections: Sequence[int] | None = None,
    frequency: Sequence[str] = (),
) -> DetectionScores:
    """Average precision and recall of a detector.

    Equal scores are ranked in the order of the images, and in the order of the detections within one: official scorers
    sort images by id.

    Args:
        targets: ground truth of each image.
        detections: of each image, in the same order.
        num_classes: K.
        style: "coco"; or "lvis", where only classes that were looked for in an image count (`Target.negative`,
            `not_exhaustive`), and the limit of detections is per image and not per class.
        max_detections: COCO: increasing limits per image and class for the recalls, the last one for everything else
            (1, 10, 100); LVIS: one limit per image (300).
        frequency: LVIS: "r", "c" or "f" of each class, for ap_rare, ap_common and ap_frequent.

    Raises:
        InputError: not one result per image, or a label that no class has.
        ConfigError: no such style, or limits that do not increase.
    """
    limits = tuple(max_detections or ((1, 10, 100) if style == "coco" else (300,)))
    matched = match(targets, detections, num_classes, style=style, max_detections=limits[-1])
    if sorted(set(limits)) != list(limits) or limits[0] < 1:
        raise ConfigError(f"max_detections={list(limits)}: give increasing numbers from 1 on")
    precision, recall = _curves(matched, num_classes)
    names = list(AREAS)
    values = {
        "ap": _mean(precision[0]),
        "ap50": _mean(precision[0, 0]),
        "ap75": _mean(precision[0, 5]),
        **{f"ap_{name}": _mean(precision[i]) for i, name in enumerate(names) if i},
    }
    for limit in limits:
        values[f"ar_{limit}"] = _mean(_recalls(matched, num_classes, limit if style == "coco" else None)[0])
    values |= {f"ar_{name}": _mean(recall[i]) for i, name in enumerate(names) if i}
    if frequency:
        for letter, name in (("r", "rare"), ("c", "common"), ("f", "frequent")):
            chosen = np.array([f == letter for f in frequency], bool)
            values[f"ap_{name}"] = _mean(precision[0][..., chosen])
    with np.errstate(invalid="ignore"):
        seen = matched.truths[0] > 0
        per_class = {
            "ap": np.where(seen, precision[0].mean((0, 1)), np.nan),
            "ap50": np.where(seen, precision[0, 0].mean(0), np.nan),
        }
    return DetectionScores(values, per_class, precision, recall, matched)


def _ranked(m: Matched, num_classes: int) -> list[np.ndarray]:
    """Detections of each class, best first."""
    order = np.lexsort((np.arange(len(m.score)), -m.score, m.label))
    return np.split(order, np.searchsorted(m.label[order], np.arange(1, num_classes)))


def _curves(
    m: Matched,
    num_classes: int,
    weights: np.ndarray | None = None,
    areas: int | None = None,
    ranked: list[np.ndarray] | None = None,
) -> tuple[Any, Any]:
    """Precision (A, T, R, K) and recall (A, T, K); with weights (images,), images count so many times."""
    areas = len(m.truths) if areas is None else areas
    shape = (areas, len(IOU_THRESHOLDS))
    precision = np.full((*shape, len(RECALLS), num_classes), -1.0)
    recall = np.full((*shape, num_classes), -1.0)
    ranked = _ranked(m, num_classes) if ranked is None else ranked
    truths = m.truths if weights is None else _weighted_truths(m, num_classes, weights)
    tiny = np.spacing(1)
    for k in range(num_classes):
        rows = ranked[k]
        counted = truths[:areas, k]
        if not counted.any():
            continue
        state = m.state[:areas, :, rows]
        weight = 1.0 if weights is None else weights[m.image[rows]]
        right = np.cumsum((state == TRUE) * weight, -1, dtype=np.float64)
        wrong = np.cumsum((state == FALSE) * weight, -1, dtype=np.float64)
        pure = right / (right + wrong + tiny)
        pure = np.maximum.accumulate(pure[..., ::-1], -1)[..., ::-1]
        for a in np.flatnonzero(counted):
            share = right[a] / counted[a]
            recall[a, :, k] = share[:, -1] if len(rows) else 0.0
            for t in range(len(IOU_THRESHOLDS)):
                at = np.searchsorted(share[t], RECALLS, side="left")
                reached = at < len(rows)
                precision[a, t, :, k] = 0.0
                precision[a, t, reached, k] = pure[a, t, at[reached]]
    return precision, recall


def _weighted_truths(m: Matched, num_classes: int, weights: np.ndarray) -> np.ndarray:
    per_truth = weights[m.truth_image]
    return np.stack([np.bincount(m.truth_label, row * per_truth, minlength=num_classes) for row in m.truth_counts])


def _recalls(m: Matched, num_classes: int, limit: int | None) -> np.ndarray:
    """(A, T, K) with at most `limit` detections per class and image."""
    rows = slice(None) if limit is None else m.rank < limit
    label, state = m.label[rows], m.state[..., rows]
    found = np.array([[np.bincount(label[s == TRUE], minlength=num_classes) for s in part] for part in state])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(m.truths[:, None] > 0, found / m.truths[:, None], -1.0)


def _mean(values: np.ndarray) -> float:
    """Mean of what exists; NaN if nothing does."""
    there = values[values > -1]
    return float(there.mean()) if there.size else float("nan")


def bootstrap_ap(scores: DetectionScores, *, seed: int = 0, resamples: int = 500) -> dict[str, float]:
    """Standard errors of ap, ap50 and ap75 over images drawn with replacement; as shares.

    The matching does not depend on the draw, so each resample only weighs images. Large sets get fewer resamples (at
    least 20): about 5e8 numbers are summed.
    """
    m, classes = scores.matched, scores.precision.shape[-1]
    if m.images < 2:
        return {}
    work = max(m.state.shape[1] * m.state.shape[2] * 3, 1) + classes * 1000
    resamples = max(min(resamples, int(5e8 // work)), 20)
    random, ranked = np.random.default_rng(seed), _ranked(m, classes)
    drawn: dict[str, list[float]] = {"ap": [], "ap50": [], "ap75": []}
    for _ in range(resamples):
        weights = np.bincount(random.integers(0, m.images, m.images), minlength=m.images).astype(np.float64)
        precision, _ = _curves(m, classes, weights, areas=1, ranked=ranked)
        for name, part in (("ap", precision[0]), ("ap50", precision[0, 0]), ("ap75", precision[0, 5])):
            value = _mean(part)
            if np.isfinite(value):
                drawn[name].append(value)
    return {name: float(np.std(v, ddof=1)) for name, v in drawn.items() if len(v) > 1}
