"""Matching and losses of the query head.

Names and weights are the original's: class loss (quality focal for Co-DINO, focal for Co-Deformable-DETR), L1 of
normalised cxcywh boxes (weight 5), GIoU of pixel boxes (weight 2); the same three in the cost of the matching.

Shapes: D layers, B images, Q queries, K classes, n objects of an image, m positives.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """The mean of a tensor over the processes of a distributed run; the value itself otherwise."""
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
def match(logits: Tensor, boxes: Tensor, objects: Objects) -> np.ndarray:
    """Optimal one-to-one matching of every layer, on the host.

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
        return index
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
    return index


@dataclass
class Predictions:
    """Predictions with their targets.

    Attributes:
        logits: (D, B, Q, K).
        boxes: (D, B, Q, 4) cxcywh.
        index: (D, B, Q) on the host: which of the image's targets a query stands for, -1 for background.
        labels: (B, n) int64 of the targets.
        targets: (B, n, 4) cxcywh.
    """

    logits: Tensor
    boxes: Tensor
    index: np.ndarray
    labels: Tensor
    targets: Tensor


def query_losses(predictions: Sequence[Predictions], limits: Tensor, *, quality: bool) -> Tensor:
    """The three losses of every layer of some predictions, computed together.

    Args:
        predictions: S layers in all. A layer's losses are divided by the positives of the first of its `Predictions`.
        limits: (B, 4) width, height, width, height of the images in pixels.
        quality: quality focal loss instead of focal loss.

    Returns:
        (3, S) fp32: class, L1 and GIoU loss.
    """
    device = limits.device
    logits = torch.cat([p.logits.float().flatten(0, 2) for p in predictions])  # (R, K), a row a query of a layer
    boxes = torch.cat([p.boxes.float().flatten(0, 2) for p in predictions])
    rows, layers, images, places, counts = [], [], [], [], []
    row = place = 0
    for one in predictions:
        where = (one.index >= 0).nonzero()
        rows.append(np.ravel_multi_index(where, one.index.shape) + row)
        layers.append(where[0] + len(counts))
        images.append(where[1])
        places.append(where[1] * one.labels.shape[1] + one.index[where] + place)
        counts += [float((one.index[0] >= 0).sum())] * len(one.index)
        row, place = row + one.index.size, place + one.labels.numel()
    columns = np.stack([np.concatenate(x) for x in (rows, layers, images, places)])
    at, layer, image, which = from_host(torch.from_numpy(columns), device)
    average = mean_over_processes(from_host(torch.tensor(counts), device)).clamp(min=1.0)  # (S,)
    label = torch.cat([p.labels.flatten() for p in predictions])[which]
    target = torch.cat([p.targets.float().flatten(0, 1) for p in predictions])[which]  # (m, 4)
    found = boxes[at]
    found_xyxy, target_xyxy = cxcywh_to_xyxy(found), cxcywh_to_xyxy(target)
    if quality:
        per_class = quality_focal(logits, at, label, aligned_iou(found_xyxy.detach(), target_xyxy))
    else:
        one_hot = torch.zeros_like(logits).index_put((at, label), logits.new_ones(()))
        per_class = FOCAL_WEIGHT * sigmoid_focal(logits, one_hot)
    parts = per_class.sum(1).split([one.index.size for one in predictions])
    class_loss = torch.cat([x.view(len(one.index), -1).sum(1) for x, one in zip(parts, predictions)])
    l1 = (found - target).abs().sum(-1) * L1_WEIGHT
    limit = limits[image]
    giou = (1 - aligned_iou(found_xyxy * limit, target_xyxy * limit, generalized=True)) * GIOU_WEIGHT
    zero = (boxes.sum() * 0).expand(2, len(average))  # keeps the graph whole where no query is positive
    box_losses = zero.index_add(1, layer, torch.stack((l1, giou)))
    return torch.cat((class_loss[None], box_losses)) / average


def quality_focal(logits: Tensor, rows: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
    """Quality focal loss (https://arxiv.org/abs/2006.04388) with beta 2: (R, K) -> (R, K).

    The target is 0, and the overlap of box and object at (row, label); each entry is weighted with its squared
    error.
    """
    background = F.softplus(logits) * logits.sigmoid().square()
    at = rows, labels
    chosen = logits[at]
    positive = F.binary_cross_entropy_with_logits(chosen, quality, reduction="none")
    return background.index_put(at, positive * (quality - chosen.sigmoid()).square())


def sigmoid_focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss (https://arxiv.org/abs/1708.02002), alpha 0.25 and gamma 2, entry by entry."""
    p = logits.sigmoid()
    error = torch.where(targets > 0, 1 - p, p)
    alpha = torch.where(targets > 0, ALPHA, 1 - ALPHA)
    return alpha * error.square() * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
