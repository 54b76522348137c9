"""Anchors, box deltas, assigners and samplers of the auxiliary heads.

torchvision's own anchors are rounded and its coder clamps otherwise, so that both would change the losses.

Shapes: A anchors of all levels, n objects of an image. Boxes are xyxy in pixels of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hybridzoo.layers.boxes import aligned_iou, box_iou
from hybridzoo.models.co_detr.geometry import keeps_constants

LARGEST = 2**26  # overlaps held at a time
MAX_LOG_SCALE = abs(math.log(16 / 1000))


def grid_anchors(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    scales: Sequence[float],
    ratios: Sequence[float],
    device: torch.device,
) -> list[Tensor]:
    """Anchors of every level, (H_l * W_l * len(ratios) * len(scales), 4), centred at (x, y) * stride.

    The side is scale * stride, ratios are height / width; at one place the ratios vary slowest.
    """
    key = tuple(shapes), tuple(strides), tuple(scales), tuple(ratios), device
    return list(_kept_anchors(*key) if keeps_constants() else _make_anchors(*key))


def _make_anchors(shapes: Any, strides: Any, scales: Any, ratios: Any, device: torch.device) -> tuple[Tensor, ...]:
    levels = []
    root, sizes = torch.tensor(ratios).sqrt(), torch.tensor(scales)
    for (height, width), stride in zip(shapes, strides, strict=True):
        sides = stride * sizes
        w, h = (sides[None] / root[:, None]).flatten(), (sides[None] * root[:, None]).flatten()
        base = torch.stack((-0.5 * w, -0.5 * h, 0.5 * w, 0.5 * h), -1).to(device)
        y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
        shift = torch.stack((x, y, x, y), -1).reshape(-1, 1, 4) * stride
        levels.append((shift + base).reshape(-1, 4))
    return tuple(levels)


@lru_cache(maxsize=4)
def _kept_anchors(*key: Any) -> tuple[Tensor, ...]:
    with torch.inference_mode(False):
        return _make_anchors(*key)


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers as fp32 on a device, kept: a copy from the host would wait for the device each time."""
    with torch.inference_mode(False):  # one made in inference mode could not be used in a later training
        return torch.tensor(values, device=device)


def encode(anchors: Tensor, boxes: Tensor, stds: Sequence[float]) -> Tensor:
    """Deltas (…, 4) that lead from anchors to boxes."""
    aw, ah = anchors[..., 2] - anchors[..., 0], anchors[..., 3] - anchors[..., 1]
    bw, bh = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    dx = ((boxes[..., 0] + boxes[..., 2]) * 0.5 - (anchors[..., 0] + anchors[..., 2]) * 0.5) / aw
    dy = ((boxes[..., 1] + boxes[..., 3]) * 0.5 - (anchors[..., 1] + anchors[..., 3]) * 0.5) / ah
    return torch.stack((dx, dy, (bw / aw).log(), (bh / ah).log()), -1) / constant(tuple(stds), anchors.device)


def decode(anchors: Tensor, deltas: Tensor, stds: Sequence[float], limit: Tensor | None = None) -> Tensor:
    """Boxes (…, 4) from anchors and deltas; sizes change by a factor of 62.5 at most.

    Args:
        limit: (4,) or (…, 4) width, height, width, height to clip to.
    """
    deltas = deltas * constant(tuple(stds), deltas.device)
    size = torch.stack((anchors[..., 2] - anchors[..., 0], anchors[..., 3] - anchors[..., 1]), -1)
    centre = (anchors[..., :2] + anchors[..., 2:]) * 0.5 + size * deltas[..., :2]
    half = size * deltas[..., 2:].clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() * 0.5
    boxes = torch.cat((centre - half, centre + half), -1)
    return boxes if limit is None else torch.minimum(boxes.clamp(min=0), limit)


def assign_by_iou(
    boxes: Tensor, objects: Tensor, *, positive: float, negative: float, low_quality: float | None = None
) -> Tensor:
    """Index of the object that each box stands for, -1: background, -2: neither.

    A box is positive from an overlap of `positive` on, background below `negative`. With `low_quality`, an object whose
    best overlap is at least that takes every box of that overlap; a later object takes it from an earlier one.

    Args:
        boxes: (A, 4) of all images, or (B, A, 4).
        objects: (B, n, 4), filled up with empty boxes, which overlap nothing.

    Returns:
        (B, A) int64.
    """
    batch, count = objects.shape[:2]
    boxes = boxes.expand(batch, -1, -1)
    if count == 0 or boxes.shape[1] == 0:
        return objects.new_full(boxes.shape[:2], -1, dtype=torch.long)
    together = max(1, LARGEST // (count * boxes.shape[1]))  # images whose overlaps are held at the same time
    parts = zip(boxes.split(together), objects.split(together))
    return torch.cat([_assign(*part, positive, negative, low_quality) for part in parts])


def _assign(boxes: Tensor, objects: Tensor, positive: float, negative: float, low_quality: float | None) -> Tensor:
    overlaps = box_iou(objects, boxes)  # (B, n, A)
    best, index = overlaps.max(1)
    assigned = torch.where(best < negative, -1, -2)
    assigned = torch.where(best >= positive, index, assigned)
    if low_quality is not None:
        most = overlaps.amax(2, keepdim=True)
        takes = (overlaps == most) & (most >= low_quality)
        order = torch.arange(1, objects.shape[1] + 1, device=boxes.device, dtype=torch.int32)[:, None]
        last = (takes * order).amax(1)
        assigned = torch.where(last > 0, last.long() - 1, assigned)
    return assigned


def assign_atss(anchors: list[Tensor], objects: Tensor, topk: int) -> Tensor:
    """Adaptive training sample selection (https://arxiv.org/abs/1912.02424): (B, A) object index, -1 for background.

    Per object and level the `topk` anchors nearest to its centre are candidates; positive are those whose overlap
    reaches mean plus standard deviation over all candidates and whose centre lies in the object. Of several objects an
    anchor goes to the one of the highest overlap.

    Args:
        anchors: per level (A_l, 4), the same for all images.
        objects: (B, n, 4), filled up with empty boxes, in which nothing lies.
        topk: see above.
    """
    everything = torch.cat(anchors)
    if objects.shape[1] == 0:
        return everything.new_full((len(objects), len(everything)), -1, dtype=torch.long)
    boxes = objects[:, :, None]  # (B, n, 1, 4)
    centres = (everything[:, :2] + everything[:, 2:]) / 2
    # (B, n, A), axis by axis: differences of both axes of all pairs would need twice the memory
    x, y = ((boxes[..., i] + boxes[..., i + 2]) / 2 - centres[:, i] for i in (0, 1))
    distances = (x.square() + y.square()).sqrt()
    candidates, start = [], 0
    for level in anchors:
        near = distances[..., start : start + len(level)].topk(min(topk, len(level)), largest=False).indices
        candidates.append(near + start)
        start += len(level)
    chosen = torch.cat(candidates, -1)  # (B, n, candidates)
    values = aligned_iou(everything[chosen], boxes)
    good = values >= values.mean(-1, keepdim=True) + values.std(-1, keepdim=True)
    at = centres[chosen]  # (B, n, candidates, 2)
    inside = torch.cat((at - boxes[..., :2], boxes[..., 2:] - at), -1).amin(-1) > 0.01
    values = values.masked_fill(~(good & inside), -torch.inf)
    kept = torch.full_like(distances, -torch.inf).scatter(2, chosen, values)
    best, index = kept.max(1)
    return torch.where(best > -torch.inf, index, -1)


@dataclass
class Samples:
    """Chosen boxes of a batch: image by image, and in each its positives before its background.

    Attributes:
        image, index: (m,) int64, each box's image and place in it.
        positive: (p,) int64, which of the m are positive.
        counts: of each image, positives and background.
    """

    image: Tensor
    index: Tensor
    positive: Tensor
    counts: list[tuple[int, int]]


def sample(assigned: Tensor, number: int, positive_fraction: float) -> Samples:
    """Random positives and background of an assignment (B, A), at most `number` an image and that share of positives.

    Drawn with torch's default CPU generator, and only where there are too many, as in the original.
    """
    kinds = assigned >= 0, assigned == -1
    have = torch.stack([kind.sum(1) for kind in kinds], 1).tolist()
    places = torch.cat([kind.nonzero() for kind in kinds])  # (all, 2) as (image, index)
    first = [0, sum(positives for positives, _ in have)]
    chosen, where, counts, total = [], [], [], 0
    for positives, background in have:
        positive = _choose(positives, int(number * positive_fraction))
        negative = _choose(background, number - len(positive))
        chosen += [positive + first[0], negative + first[1]]
        where.append(torch.arange(total, total + len(positive)))
        first = [first[0] + positives, first[1] + background]
        counts.append((len(positive), len(negative)))
        total += sum(counts[-1])
    place = places[from_host(torch.cat(chosen), assigned.device)]
    return Samples(place[:, 0], place[:, 1], from_host(torch.cat(where), assigned.device), counts)


def _choose(have: int, number: int) -> Tensor:
    """All of `have` places, or a random `number` of them, ascending."""
    return torch.arange(have) if have <= number else torch.randperm(have)[:number].sort().values


def from_host(x: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on a device. From pageable memory the copy would wait for all that is still to do."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and x.numel() else x.to(device)
