"""Which detection is which object: COCO's and LVIS's greedy matching, vectorised over images, thresholds and areas.

Shapes: G ground truths, N detections, A area ranges, T = 10 IoU thresholds, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridzoo.data.detection.split import Target
from hybridzoo.errors import ConfigError, InputError, unknown

STYLES = ("coco", "lvis")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
FALSE, TRUE, IGNORED = 0, 1, 2  # what a detection is at one threshold and area range
_CELLS = 4_000_000  # numbers of one block of the matching


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image.

    Attributes:
        boxes: (M, 4) float corners in pixels.
        scores: (M,) float.
        labels: (M,) int.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        m = len(self.scores)
        if self.boxes.shape != (m, 4) or self.labels.shape != (m,):
            raise InputError(
                f"detections of {m} scores need boxes ({m}, 4) and labels ({m},); got {self.boxes.shape}, "
                f"{self.labels.shape}"
            )
        if not np.isfinite(self.boxes).all() or not np.isfinite(self.scores).all():
            raise InputError("detections with NaN or infinite boxes or scores cannot be scored")


@dataclass(frozen=True)
class Matched:
    """Every detection that counts, in scoring order, with what it is.

    Attributes:
        image, label, score, rank: (N,); rank counts the better detections of that class in that image.
        state: (A, T, N) uint8: FALSE, TRUE or IGNORED.
        truths: (A, K) number of ground truths that count.
        truth_image, truth_label, truth_counts: (G,), (G,) and (A, G) bool, the ground truths one by one.
        images: how many images were scored.
        max_detections: per class and image (COCO), or per image (LVIS).
    """

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    state: np.ndarray
    truths: np.ndarray
    truth_image: np.ndarray
    truth_label: np.ndarray
    truth_counts: np.ndarray
    images: int
    max_detections: int


def match(
    targets: Sequence[Target],
    detections: Sequence[Detections],
    num_classes: int,
    *,
    style: str = "coco",
    max_detections: int = 100,
) -> Matched:
    """Assign detections to ground truths, greedily by score, for all thresholds and area ranges; arguments as above."""
    if style not in STYLES:
        raise ConfigError(unknown("style of scoring", style, STYLES))
    if len(targets) != len(detections):
        raise InputError(f"{len(targets)} images have a ground truth, but {len(detections)} have detections")
    truth = _Flat(targets, num_classes, [t.labels for t in targets])
    found = _Flat(detections, num_classes, [d.labels for d in detections])
    boxes_t = np.concatenate([t.boxes for t in targets]).astype(np.float64) if targets else np.zeros((0, 4))
    boxes_d = np.concatenate([d.boxes for d in detections]).astype(np.float64) if detections else np.zeros((0, 4))
    score = np.concatenate([d.scores for d in detections]).astype(np.float64) if detections else np.zeros(0)
    area_t = np.concatenate([t.area for t in targets]) if targets else np.zeros(0)
    crowd = np.concatenate([t.crowd for t in targets]) if targets else np.zeros(0, bool)
    keep = np.ones(len(score), bool)
    if style == "lvis":
        keep = _best_per_image(found.image, score, max_detections) & _looked_for(found, targets, num_classes)
    order = np.flatnonzero(keep)
    order = order[np.lexsort((order, -score[order], found.group[order]))]
    rank = _rank(found.group[order])
    if style == "coco":
        order, rank = order[rank < max_detections], rank[rank < max_detections]
    ranges = np.array(list(AREAS.values()))
    counts_not = crowd[None] | (area_t[None] < ranges[:, :1]) | (area_t[None] > ranges[:, 1:])  # (A, G)
    state = _assign(boxes_d[order], found.group[order], rank, boxes_t, truth.group, crowd, counts_not, style == "coco")
    sides = boxes_d[order, 2:] - boxes_d[order, :2]
    area_d = sides[:, 0] * sides[:, 1]
    out = (area_d[None] < ranges[:, :1]) | (area_d[None] > ranges[:, 1:])  # (A, N)
    if style == "lvis":
        out |= _listed(found.image[order], found.label[order], [t.not_exhaustive for t in targets], num_classes)[None]
    state = np.where((state == FALSE) & out[:, None], IGNORED, state).astype(np.uint8)
    truths = np.stack([np.bincount(truth.label[~row], minlength=num_classes) for row in counts_not])
    return Matched(
        image=found.image[order],
        label=found.label[order],
        score=score[order],
        rank=rank,
        state=state,
        truths=truths,
        truth_image=truth.image,
        truth_label=truth.label,
        truth_counts=~counts_not,
        images=len(targets),
        max_detections=max_detections,
    )


class _Flat:
    """Objects of all images in one row: image, label and group (one per image and class)."""

    def __init__(self, parts: Sequence[Any], num_classes: int, labels: Sequence[np.ndarray]):
        counts = [len(x) for x in labels]
        self.image = np.repeat(np.arange(len(parts)), counts)
        self.label = np.concatenate([np.asarray(x, np.int64) for x in labels]) if parts else np.zeros(0, np.int64)
        bad = (self.label < 0) | (self.label >= num_classes)
        if bad.any():
            where = int(self.image[bad][0])
            raise InputError(
                f"image {where} has the label {int(self.label[bad][0])}, but there are {num_classes} classes: "
                f"labels run from 0 to {num_classes - 1}"
            )
        self.group = self.image * num_classes + self.label


def _rank(group: np.ndarray) -> np.ndarray:
    """Position within each run of equal values."""
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(group) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[starts, len(group)])
    return np.arange(len(group)) - np.repeat(starts, lengths)


def _best_per_image(image: np.ndarray, score: np.ndarray, limit: int) -> np.ndarray:
    order = np.lexsort((np.arange(len(score)), -score, image))
    keep = np.zeros(len(score), bool)
    keep[order[_rank(image[order]) < limit]] = True
    return keep


def _looked_for(found: _Flat, targets: Sequence[Target], num_classes: int) -> np.ndarray:
    """Detections of a class that occurs in the image or is known to be absent from it."""
    allowed = [
        None if t.negative is None else t.negative | {int(label) for label in np.unique(t.labels)} for t in targets
    ]
    everything = np.array([a is None for a in allowed], bool)
    listed = _listed(found.image, found.label, [a or frozenset() for a in allowed], num_classes)
    return listed | (everything[found.image] if len(found.image) else np.zeros(0, bool))


def _listed(image: np.ndarray, label: np.ndarray, lists: Sequence[frozenset[int]], num_classes: int) -> np.ndarray:
    """Whether each (image, label) is in the image's list."""
    keys = np.array([i * num_classes + c for i, classes in enumerate(lists) for c in classes], np.int64)
    return np.isin(image * num_classes + label, keys)


def _assign(
    boxes_d: np.ndarray,
    group_d: np.ndarray,
    rank: np.ndarray,
    boxes_t: np.ndarray,
    group_t: np.ndarray,
    crowd: np.ndarray,
    ignored: np.ndarray,
    crowd_rule: bool,
) -> np.ndarray:
    """(A, T, N) states before the area rule of unmatched detections.

    All groups (an image and a class) that have both go through their detections together, best first. Groups of similar
    size share a block, padded to its largest number of ground truths.
    """
    areas = len(ignored)
    state = np.full((areas, len(IOU_THRESHOLDS), len(group_d)), FALSE, np.uint8)
    order_t = np.argsort(group_t, kind="stable")
    groups, first_t, count_t = np.unique(group_t[order_t], return_index=True, return_counts=True)
    groups_d, first_d, count_d = np.unique(group_d, return_index=True, return_counts=True)
    both, at_t, at_d = np.intersect1d(groups, groups_d, assume_unique=True, return_indices=True)
    if not len(both):
        return state
    first_t, count_t, first_d, count_d = first_t[at_t], count_t[at_t], first_d[at_d], count_d[at_d]
    size = np.lexsort((-count_d, np.ceil(np.log2(count_t))))  # by bucket of ground truths, long groups first
    bucket = np.ceil(np.log2(count_t[size])).astype(int)
    for width in np.unique(bucket):
        rows = size[bucket == width]
        most = int(count_t[rows].max())
        step = max(_CELLS // (areas * len(IOU_THRESHOLDS) * most), 1)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            columns = np.arange(most)
            real = columns[None] < count_t[part, None]  # (n, most)
            picked = order_t[np.where(real, first_t[part, None] + columns[None], first_t[part, None])]
            _assign_block(
                boxes_d, first_d[part], count_d[part], boxes_t[picked], real, crowd[picked] & crowd_rule,
                ignored[:, picked].transpose(1, 0, 2), state,
            )  # fmt: skip
    return state


def _assign_block(
    boxes_d: np.ndarray,
    first: np.ndarray,
    count: np.ndarray,
    truths: np.ndarray,
    real: np.ndarray,
    crowd: np.ndarray,
    ignored: np.ndarray,
    state: np.ndarray,
) -> None:
    """Fill `state` for n groups; truths (n, g, 4), real and crowd (n, g), ignored (n, A, g); count does not
    increase.
    """
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[None, None, :, None]
    taken = np.zeros((len(first), ignored.shape[1], len(IOU_THRESHOLDS), truths.shape[1]), bool)
    area_t = (truths[..., 2] - truths[..., 0]) * (truths[..., 3] - truths[..., 1])
    last = truths.shape[1] - 1
    for step in range(int(count[0])):
        n = int((count > step).sum())
        at = first[:n] + step
        iou = _overlaps(boxes_d[at], truths[:n], area_t[:n], crowd[:n])  # (n, g)
        free = real[:n, None, None] & (~taken[:n] | crowd[:n, None, None])
        fits = free & (iou[:, None, None] >= thresholds)  # (n, A, T, g)
        counts = fits & ~ignored[:n, :, None]
        has = np.asarray(counts.any(-1))
        # One that counts is preferred to one that does not; of equal overlaps the last is taken.
        usable = np.where(has[..., None], counts, fits)
        value = np.where(usable, iou[:, None, None], -1.0)
        choice = last - value[..., ::-1].argmax(-1)  # (n, A, T)
        matched = fits.any(-1)
        row, area, threshold = np.nonzero(matched)
        taken[row, area, threshold, choice[matched]] = True
        result = np.where(matched, np.where(has, TRUE, IGNORED), FALSE).astype(np.uint8)
        state[:, :, at] = result.transpose(1, 2, 0)


def _overlaps(boxes: np.ndarray, truths: np.ndarray, area_t: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of (n, 4) with (n, g, 4); of a crowd region, the share of the detection that lies in it."""
    low = np.maximum(boxes[:, None, :2], truths[..., :2])
    high = np.minimum(boxes[:, None, 2:], truths[..., 2:])
    sides = high - low
    inner = np.where((sides > 0).all(-1), sides[..., 0] * sides[..., 1], 0.0)
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))[:, None]
    union = np.where(crowd, area, area + area_t - inner)
    return np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
