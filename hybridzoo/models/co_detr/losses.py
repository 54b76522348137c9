"""Matching and losses of the query head.

Names and weights are the original's: class loss (quality focal for Co-DINO, focal for Co-Deformable-DETR), L1 of
normalised cxcywh boxes (weight 5), GIoU of pixel boxes (weight 2); the same three in the cost of the matching.

Shapes: D layers, B images, Q queries, K classes, n objects of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hybridzoo.layers.boxes import aligned_iou, box_iou, cxcywh_to_xyxy
from hybridzoo.models.co_detr.anchors import from_host

CLASS_COST, L1_WEIGHT, GIOU_WEIGHT, FOCAL_WEIGHT = 2.0, 5.0, 2.0, 2.0
ALPHA, GAMMA = 0.25, 2.0


@dataclass
class Objects:
    """The objects of a batch.

    Attributes:
        labels: per image (n_i,) int64.
        boxes: per image (n_i, 4) cxcywh relative to the image.
        limits: (B, 4) width, height, width, height of the images in pixels.
    """

    labels: list[Tensor]
    boxes: list[Tensor]
    limits: Tensor

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """Labels (B, n) and fp32 boxes (B, n, 4), images with fewer objects filled up with zeros."""
        return pad_sequence(self.labels, batch_first=True), pad_sequence(self.boxes, batch_first=True).float()

    @property
    def counts(self) -> list[int]:
        """Objects of each image."""
        return [len(x) for x in self.labels]


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a scalar over the processes of a distributed run; the value itself otherwise."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value


def at_least_one(count: Tensor | float, like: Tensor) -> Tensor:
    """A count averaged over processes, at least 1."""
    value = count.detach().float() if isinstance(count, Tensor) else torch.full((), float(count), device=like.device)
    return mean_over_processes(value).clamp(min=1.0)


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, objects: Objects) -> Tensor:
    """Optimal one-to-one matching of every layer.

    Args:
        logits: (D, B, Q, K).
        boxes: (D, B, Q, 4) cxcywh.
        objects: of the batch.

    Returns:
        (D, B, Q) int64 index of the object that a query is matched to, -1 for background.
    """
    depth, batch, queries, _ = logits.shape
    index = np.full((depth, batch, queries), -1, dtype=np.int64)
    counts = objects.counts
    if not any(counts):
        return torch.full(index.shape, -1, device=logits.device)
    # The whole batch at once, images with fewer objects padded, and one transfer to the host.
    labels, gt = objects.padded
    limit = objects.limits[:, None]  # (B, 1, 4)
    p = logits.float().sigmoid().gather(3, labels[None, :, None].expand(depth, -1, queries, -1))  # (D, B, Q, n)
    negative = -(1 - p + 1e-12).log() * (1 - ALPHA) * p.pow(GAMMA)
    positive = -(p + 1e-12).log() * ALPHA * (1 - p).pow(GAMMA)
    found = boxes.float()
    l1 = (found[..., None, :] - gt[:, None]).abs().sum(-1)
    corners, gt_corners = cxcywh_to_xyxy(found) * limit, cxcywh_to_xyxy(gt) * limit
    giou = box_iou(corners, gt_corners.expand(depth, -1, -1, -1), generalized=True)
    cost = CLASS_COST * (positive - negative) + L1_WEIGHT * l1 - GIOU_WEIGHT * giou
    # A model that has diverged gives NaN, which the solver refuses; the trainer reports the loss.
    matrices = cost.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy()
    for b, count in enumerate(counts):
        for d in range(depth if count else 0):
            rows, columns = linear_sum_assignment(matrices[d, b, :, :count])
            index[d, b, rows] = columns
    return from_host(torch.from_numpy(index), logits.device)


def query_losses(
    logits: Tensor, boxes: Tensor, object_index: Tensor, objects: Objects, *, quality: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The three losses of every layer for a given assignment.

    Args:
        logits: (D, B, Q, K).
        boxes: (D, B, Q, 4) cxcywh.
        object_index: (D, B, Q), or (B, Q) for all layers: index of a query's object in its image, -1 for background.
        objects: of the batch.
        quality: quality focal loss instead of focal loss.

    Returns:
        Class, L1 and GIoU loss, (D,) each, fp32.
    """
    index = object_index.expand(logits.shape[:-1])
    labels, targets = objects.padded
    where = (index >= 0).nonzero(as_tuple=True)  # layer, image, query
    which = where[1], index[where]
    return losses_of_targets(
        logits,
        boxes,
        where,
        labels[which],
        targets[which],
        objects.limits,
        positives=(index[0] >= 0).sum(),
        quality=quality,
    )


def losses_of_targets(
    logits: Tensor,
    boxes: Tensor,
    where: tuple[Tensor, ...],
    labels: Tensor,
    targets: Tensor,
    limits: Tensor,
    *,
    positives: Tensor | float,
    quality: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `query_losses`, for m positives listed as (layer, image, query) with label (m,) and cxcywh target (m, 4)."""
    depth = len(logits)
    logits, boxes = logits.float(), boxes.float()
    average = at_least_one(positives, logits)
    found = boxes[where]  # (m, 4)
    found_xyxy, target_xyxy = cxcywh_to_xyxy(found), cxcywh_to_xyxy(targets)
    if quality:
        per_class = quality_focal(logits, where, labels, aligned_iou(found_xyxy.detach(), target_xyxy))
        class_loss = per_class.flatten(1).sum(1) / average
    else:
        one_hot = torch.zeros_like(logits).index_put((*where, labels), logits.new_ones(()))
        class_loss = FOCAL_WEIGHT * sigmoid_focal(logits, one_hot).flatten(1).sum(1) / average
    limit = limits[where[1]]
    l1 = (found - targets).abs().sum(-1)
    giou = 1 - aligned_iou(found_xyxy * limit, target_xyxy * limit, generalized=True)
    zero = boxes.flatten(1).sum(1) * 0  # keeps the graph whole where no query is positive
    l1_loss = zero.index_add(0, where[0], l1) * L1_WEIGHT / average
    giou_loss = zero.index_add(0, where[0], giou) * GIOU_WEIGHT / average
    assert class_loss.shape == (depth,)
    return class_loss, l1_loss, giou_loss


def quality_focal(logits: Tensor, where: tuple[Tensor, ...], labels: Tensor, quality: Tensor) -> Tensor:
    """Quality focal loss (https://arxiv.org/abs/2006.04388) with beta 2: (..., K) -> (..., K).

    The target is 0, and the overlap of box and object at (positive, label); each entry is weighted with its squared
    error.
    """
    background = F.softplus(logits) * logits.sigmoid().square()
    at = (*where, labels)
    chosen = logits[at]
    positive = F.binary_cross_entropy_with_logits(chosen, quality, reduction="none")
    return background.index_put(at, positive * (quality - chosen.sigmoid()).square())


def sigmoid_focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss (https://arxiv.org/abs/1708.02002), alpha 0.25 and gamma 2, entry by entry."""
    p = logits.sigmoid()
    error = torch.where(targets > 0, 1 - p, p)
    alpha = torch.where(targets > 0, ALPHA, 1 - ALPHA)
    return alpha * error.square() * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
