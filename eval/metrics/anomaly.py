"""Image and pixel metrics of anomaly detection, of one class: n maps of H x W, one score per pixel, larger = stranger.

Two evaluators, whose numbers differ and never rank together:

- `ader`: as ADer's `util/metric.py` (https://github.com/zhangzjn/ADer), which MambaAD's tables use: pixel F1 over 21
  thresholds of the normalised maps, AU-PRO over 100 thresholds, false-positive rates below 0.3, rescaled to [0, 1].
- `exact`: pixel F1 and AU-PRO over every threshold; AU-PRO is the area up to a false-positive rate of 0.3, interpolated
  there, divided by 0.3.

The other metrics are the same in both and exact: they agree with scikit-learn.

What cannot be defined is NaN (one class of images or pixels only, constant maps, no false-positive rate to integrate
over); average precision without a positive is 0, as in scikit-learn.

Memory: maps stay float32; with `overwrite=True` they are sorted in place, so that the peak is well below twice the
maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hybridzoo.errors import InputError, unknown
from hybridzoo.eval.metrics.anomaly_regions import label_regions
from hybridzoo.eval.metrics.ranking import average_precision, f1_max, roc_auc, trapezoid

EVALUATORS = ("ader", "exact")
IMAGE_METRICS = ("i_auroc", "i_ap", "i_f1max")
PIXEL_METRICS = ("p_auroc", "p_ap", "p_f1max", "aupro")
SEVEN = IMAGE_METRICS + PIXEL_METRICS
MAX_FPR = 0.3
PRO_STEPS = 100
F1_THRESHOLDS = 21
EPS = 1e-8


@dataclass(frozen=True)
class Regions:
    """Where the anomalous pixels of a class lie.

    Attributes:
        areas: (R,) pixels of each connected region, over all images.
        first: (n,) number of the image's first region.
    """

    areas: np.ndarray
    first: np.ndarray


def score_class(
    maps: np.ndarray,
    masks: np.ndarray | None,
    *,
    labels: np.ndarray | None = None,
    evaluator: str = "ader",
    steps: int = PRO_STEPS,
    pooling: int | None = None,
    overwrite: bool = False,
) -> dict[str, float]:
    """The seven metrics of one class as fractions, and `mad`, their mean.

    Args:
        maps: (n, H, W) float anomaly maps.
        masks: (n, H, W), not 0 where a pixel is anomalous; None: no masks are known, only the image metrics are given.
        labels: (n,) whether an image is anomalous; left out, one with an anomalous pixel is.
        evaluator: "ader" or "exact".
        steps: thresholds of AU-PRO for "ader".
        pooling: side of an average-pooling window (stride 1) before the image score; None: the plain maximum.
        overwrite: `maps` may be destroyed, which saves a copy.

    Raises:
        InputError: shapes that do not fit, no image, maps that are not finite, an unknown evaluator.
    """
    maps, masks, labels = _check(maps, masks, labels, evaluator)
    scores = image_scores(maps, pooling)
    metrics = {"i_auroc": roc_auc(scores, labels), "i_ap": average_precision(scores, labels)}
    metrics["i_f1max"] = f1_max(scores, labels)
    if masks is None:
        return metrics
    regions = find_regions(masks)
    if evaluator == "ader":
        pro = aupro_ader(maps, masks, regions, steps)
        f1 = threshold_metrics(maps, masks)["f1_max"]
    positives = _positives(maps, masks, regions)
    negatives = _sorted_negatives(maps if overwrite else maps.copy(), masks)
    counts = PixelRanking(*positives, negatives, len(regions.areas))
    metrics |= {"p_auroc": counts.auroc(), "p_ap": counts.average_precision()}
    if evaluator == "exact":
        pro, f1 = counts.aupro(MAX_FPR), counts.f1_max()
    metrics |= {"p_f1max": f1, "aupro": pro}
    return metrics | {"mad": float(np.mean([metrics[name] for name in SEVEN]))}


def _check(
    maps: np.ndarray, masks: np.ndarray | None, labels: np.ndarray | None, evaluator: str
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    if evaluator not in EVALUATORS:
        raise InputError(unknown("evaluator", evaluator, EVALUATORS))
    if maps.ndim != 3 or 0 in maps.shape:
        raise InputError(f"maps must be (images, height, width) with at least one image, got {maps.shape}")
    bad = [i for i, m in enumerate(maps) if not np.isfinite(m).all()]
    if bad:
        raise InputError(
            f"the anomaly maps of {len(bad)} images are not finite (first: number {bad[0]}); the model diverged, or "
            "its input holds NaN: look at the loss curve and the images"
        )
    if masks is not None:
        if masks.shape != maps.shape:
            raise InputError(f"masks {masks.shape} and maps {maps.shape} differ in shape; resize the masks to the maps")
        masks = masks.astype(bool, copy=False)
    if labels is None and masks is None:
        raise InputError("neither masks nor labels were given: nothing to score against")
    given = masks.any(axis=(1, 2)) if labels is None else labels  # type: ignore[union-attr]
    bad_images: np.ndarray = np.array(np.asarray(given) > 0)
    if bad_images.shape != maps.shape[:1]:
        raise InputError(f"labels must be ({len(maps)},), one per map, got {bad_images.shape}")
    return maps, masks, bad_images


def image_scores(maps: np.ndarray, pooling: int | None = None) -> np.ndarray:
    """(n,) maximum of each map, or of its averages over windows of `pooling` x `pooling` pixels."""
    if pooling is None:
        return maps.max(axis=(1, 2)).astype(np.float64)
    if not 1 <= pooling <= min(maps.shape[1:]):
        raise InputError(f"pooling={pooling} must be between 1 and the side of the maps, {min(maps.shape[1:])}")
    scores = []
    for one in maps:
        total = np.pad(one.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        k = pooling
        windows = total[k:, k:] - total[:-k, k:] - total[k:, :-k] + total[:-k, :-k]
        scores.append(windows.max() / k**2)
    return np.array(scores)


def find_regions(masks: np.ndarray) -> Regions:
    """Connected regions (8 neighbours) of all masks."""
    areas, first, total = [], [], 0
    for mask in masks:
        numbers, count = label_regions(mask)
        first.append(total)
        areas.append(np.bincount(numbers[mask], minlength=count + 1)[1:].astype(np.int32))
        total += count
    return Regions(np.concatenate(areas) if areas else np.zeros(0, np.int32), np.array(first))


def _images(
    maps: np.ndarray, masks: np.ndarray, regions: Regions
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per image: the map (H, W), the mask, and the region number of each anomalous pixel."""
    for one, mask, first in zip(maps, masks, regions.first, strict=True):
        numbers = label_regions(mask)[0][mask] - 1 + first if mask.any() else np.zeros(0, np.int64)
        yield one, mask, numbers


def aupro_ader(maps: np.ndarray, masks: np.ndarray, regions: Regions, steps: int = PRO_STEPS) -> float:
    """Area under per-region overlap against false-positive rate as ADer computes it.

    Thresholds from the smallest to the largest value in `steps` equal steps; a pixel is found where its value exceeds
    the threshold; points with a rate below 0.3 are kept and their rates stretched to [0, 1].
    """
    low, high = float(maps.min()), float(maps.max())
    normal = maps.size - int(regions.areas.sum())
    if not high > low or not len(regions.areas) or not normal:
        return float("nan")
    thresholds = np.arange(low, high, (high - low) / steps)
    bins = len(thresholds) + 1
    of_region, of_normal = np.zeros((len(regions.areas), bins), np.int64), np.zeros(bins, np.int64)
    for one, mask, numbers in _images(maps, masks, regions):
        below = np.searchsorted(thresholds, one.astype(np.float64), side="left")  # thresholds that a value exceeds
        of_normal += np.bincount(below[~mask], minlength=bins)
        np.add.at(of_region, (numbers, below[mask]), 1)
    # found at threshold j: values that exceed more than j thresholds
    found = of_region[:, ::-1].cumsum(1)[:, ::-1][:, 1:]
    overlap = (found / regions.areas[:, None]).mean(0)
    rate = of_normal[::-1].cumsum()[::-1][1:] / normal
    keep = rate < MAX_FPR
    rate, overlap = rate[keep], overlap[keep]
    span = rate.max() - rate.min() if len(rate) else 0.0
    if not span > 0:
        return float("nan")
    return abs(trapezoid(overlap, (rate - rate.min()) / span))


def threshold_metrics(maps: np.ndarray, masks: np.ndarray, thresholds: np.ndarray | None = None) -> dict[str, float]:
    """ADer's pixel metrics over a few thresholds of the maps, normalised to [0, 1] over the class.

    Args:
        maps, masks: (n, H, W).
        thresholds: of the normalised maps; left out, 0, 0.05, …, 1.

    Returns:
        Maximum (`f1_max`) and mean (`f1_mean`) over the thresholds of f1, iou, dice and acc (recall); all NaN for
        constant maps.
    """
    masks = np.asarray(masks) != 0
    thresholds = np.linspace(0, 1, F1_THRESHOLDS) if thresholds is None else np.asarray(thresholds, np.float64)
    low, high = float(maps.min()), float(maps.max())
    names = [f"{name}_{how}" for name in ("f1", "iou", "dice", "acc") for how in ("max", "mean")]
    if not high > low:
        return dict.fromkeys(names, float("nan"))
    bins = len(thresholds) + 1
    of_true, of_all = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    for one, mask in zip(maps, masks, strict=True):
        normalised = (one.astype(np.float64) - low) / (high - low)
        below = np.searchsorted(thresholds, normalised, side="left")
        of_all += np.bincount(below.ravel(), minlength=bins)
        of_true += np.bincount(below[mask], minlength=bins)
    true = of_true[::-1].cumsum()[::-1][1:].astype(np.float64)
    predicted = of_all[::-1].cumsum()[::-1][1:].astype(np.float64)
    real = float(of_true.sum())
    precision, recall = true / (predicted + EPS), true / (real + EPS)
    curves = {
        "f1": 2 * precision * recall / (precision + recall + EPS),
        "iou": true / (predicted + real - true + EPS),
        "dice": 2 * true / (predicted + real + EPS),
        "acc": recall,
    }
    return {
        f"{name}_{how}": float(getattr(np, how)(curve)) for name, curve in curves.items() for how in ("max", "mean")
    }


def _positives(maps: np.ndarray, masks: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the anomalous pixels, ascending, and the area of each one's region."""
    scores, areas = [np.zeros(0, maps.dtype)], [np.zeros(0, np.int32)]
    for one, mask, numbers in _images(maps, masks, regions):
        scores.append(one[mask])
        areas.append(regions.areas[numbers])
    values, sizes = np.concatenate(scores), np.concatenate(areas)
    order = values.argsort(kind="stable")
    return values[order], sizes[order]


def _sorted_negatives(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Scores of the normal pixels, ascending; `maps` is overwritten."""
    maps = np.ascontiguousarray(maps)
    flat, end = maps.reshape(-1), 0
    for one, mask in zip(maps, masks, strict=True):
        kept = one[~mask]  # a copy, so that writing over the rows already read is safe
        flat[end : end + len(kept)] = kept
        end += len(kept)
    flat[:end].sort()
    return flat[:end]


@dataclass(frozen=True)
class PixelRanking:
    """Sorted scores of anomalous and normal pixels: what every exact pixel metric needs.

    Attributes:
        positives: (m,) ascending.
        areas: (m,) of the region of each.
        negatives: (k,) ascending.
        regions: their number.
    """

    positives: np.ndarray
    areas: np.ndarray
    negatives: np.ndarray
    regions: int

    @property
    def defined(self) -> bool:
        """Whether there are pixels of both kinds."""
        return bool(len(self.positives) and len(self.negatives))

    def auroc(self) -> float:
        """Share of (anomalous, normal) pairs in the right order, ties by half."""
        if not self.defined:
            return float("nan")
        below = np.searchsorted(self.negatives, self.positives, side="left").sum(dtype=np.float64)
        upto = np.searchsorted(self.negatives, self.positives, side="right").sum(dtype=np.float64)
        return float((below + upto) / 2 / len(self.positives) / len(self.negatives))

    def _at_positives(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """At each distinct anomalous score as the threshold: how many it adds, all found true, all found false."""
        values, first, added = np.unique(self.positives, return_index=True, return_counts=True)
        true = len(self.positives) - first
        false = len(self.negatives) - np.searchsorted(self.negatives, values, side="left")
        return added, true, false

    def average_precision(self) -> float:
        """Sum of precision times the gain in recall; 0 without anomalous pixels."""
        if not len(self.positives):
            return 0.0
        added, true, false = self._at_positives()
        return float((added * (true / (true + false))).sum() / len(self.positives))

    def f1_max(self) -> float:
        """Largest F1 over every threshold; NaN without anomalous pixels."""
        if not len(self.positives):
            return float("nan")
        _, true, false = self._at_positives()
        return float((2 * true / (true + false + len(self.positives))).max())

    def aupro(self, limit: float) -> float:
        """Area under per-region overlap against false-positive rate from 0 to `limit`, divided by `limit`."""
        if not self.defined:
            return float("nan")
        weights = 1.0 / (self.areas * self.regions)
        above = np.concatenate([weights[::-1].cumsum()[::-1], [0.0]])  # overlap of the positives from index i on
        total = len(self.negatives)
        allowed = limit * total  # false positives up to the limit, not a whole number
        # the threshold value inside whose group of equal scores the limit falls, and all larger ones
        edge = self.negatives[max(0, total - 1 - int(allowed))]
        start = int(np.searchsorted(self.negatives, edge, side="right"))
        area = 0.0
        for chunk in np.array_split(self.negatives[start:], max(1, (total - start) // (1 << 20))):
            strictly = above[np.searchsorted(self.positives, chunk, side="right")]
            equal = above[np.searchsorted(self.positives, chunk, side="left")]
            area += float((strictly + equal).sum()) / 2  # a group of ties is one straight piece of the curve
        rest = allowed - (total - start)
        group = start - int(np.searchsorted(self.negatives, edge, side="left"))
        if rest > 0:
            before = above[np.searchsorted(self.positives, edge, side="right")]
            after = above[np.searchsorted(self.positives, edge, side="left")]
            area += rest * (before + (after - before) * rest / group / 2)  # the first part of that straight piece
        return float(area / allowed)
