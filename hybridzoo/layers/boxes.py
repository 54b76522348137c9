"""Boxes of detectors: formats, overlaps, soft-NMS, and from a DETR's outputs to detections.

Formats stand in the names: `xyxy` corners in pixels (or any one unit), `cxcywh` centre and size. Soft-NMS follows Bodla
et al. 2017 (https://arxiv.org/abs/1704.04503) with the details of mmcv's operator, which published Co-DETR figures use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hybridzoo.errors import ConfigError, InputError, unknown

NMS_ORDERS = ("sensex", "mmdet")
_METHODS = ("linear", "gaussian", "naive", "hard")


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size -> (..., 4) corners."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h), -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) centre and size."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), -1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) -> (...)."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def aligned_iou(a_xyxy: Tensor, b_xyxy: Tensor, *, generalized: bool = False, eps: float = 1e-6) -> Tensor:
    """Overlap of boxes pair by pair, with broadcasting: (..., 4), (..., 4) -> (...).

    Args:
        a_xyxy, b_xyxy: corners in the same unit.
        generalized: GIoU (https://arxiv.org/abs/1902.09630) instead of IoU.
        eps: least union and least enclosing area.
    """
    inner = (torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])).clamp(0)
    overlap = inner[..., 0] * inner[..., 1]
    union = (box_area(a_xyxy) + box_area(b_xyxy) - overlap).clamp(min=eps)
    iou = overlap / union
    if not generalized:
        return iou
    outer = (torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])).clamp(0)
    enclosing = (outer[..., 0] * outer[..., 1]).clamp(min=eps)
    return iou - (enclosing - union) / enclosing


def box_iou(a_xyxy: Tensor, b_xyxy: Tensor, *, generalized: bool = False, eps: float = 1e-6) -> Tensor:
    """Overlap of every box of `a` with every box of `b`: (..., N, 4), (..., M, 4) -> (..., N, M)."""
    return aligned_iou(a_xyxy[..., :, None, :], b_xyxy[..., None, :, :], generalized=generalized, eps=eps)


def soft_nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    iou_threshold: float,
    method: str = "linear",
    sigma: float = 0.5,
    min_score: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Greedy suppression that lowers the scores of overlapping boxes instead of removing them.

    The box of the highest current score is kept, and every other score is multiplied by a weight of their overlap:
    `1 - IoU` from `iou_threshold` on (linear), `exp(-IoU^2 / sigma)` (gaussian), or 0 from `iou_threshold` on (naive;
    `hard` is plain NMS, where the threshold itself does not suppress and no score is too low). Boxes that fall below
    `min_score` are dropped.

    Args:
        boxes_xyxy: (N, 4).
        scores: (N,).
        labels: (N,) integers; boxes of different labels do not see each other.
        iou_threshold: see above.
        method: "linear", "gaussian", "naive" or "hard".
        sigma: of gaussian.
        min_score: see above.

    Returns:
        `kept` (M,) int64 indices in the order in which they were kept, and their final scores (M,).

    Raises:
        ConfigError: no such method.
        InputError: shapes that do not fit.
    """
    if method not in _METHODS:
        raise ConfigError(unknown("method of soft_nms", method, _METHODS))
    if boxes_xyxy.ndim != 2 or boxes_xyxy.shape[-1] != 4 or scores.shape != boxes_xyxy.shape[:1]:
        raise InputError(
            f"soft_nms: expected boxes (N, 4) and scores (N,), got {tuple(boxes_xyxy.shape)} and {tuple(scores.shape)}"
        )
    count = len(scores)
    if count == 0:
        return torch.zeros(0, dtype=torch.long, device=scores.device), scores
    boxes = boxes_xyxy.detach().float()
    if labels is not None:  # moved apart by label in fp32, as mmcv does it: the rounding belongs to published results
        boxes = boxes + (labels.to(boxes) * (boxes.max() + 1))[:, None]
    # One box after the other: a loop of small steps, which runs far faster on the CPU than on an accelerator.
    weights = _weights(boxes.cpu(), iou_threshold, method, sigma).numpy()
    current = scores.detach().float().cpu().numpy().copy()
    alive, order = np.ones(count, dtype=bool), []
    least = -np.inf if method == "hard" else min_score
    while alive.any():
        best = int(np.where(alive, current, -np.inf).argmax())
        order.append(best)
        alive[best] = False
        current = np.where(alive, current * weights[best], current)
        if method == "hard":
            alive &= weights[best] > 0
        else:
            alive &= current >= least
    kept = torch.tensor(order, device=scores.device)
    return kept, torch.from_numpy(current[order]).to(scores)


def _weights(boxes: Tensor, threshold: float, method: str, sigma: float) -> Tensor:
    """(N, N): what a kept box (row) leaves of another's score (column)."""
    far = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    inner = (far - torch.maximum(boxes[:, None, :2], boxes[None, :, :2])).clamp(0)
    overlap = inner[..., 0] * inner[..., 1]
    area = box_area(boxes)
    union = area[:, None] + area[None] - overlap
    iou = torch.where(union > 0, overlap / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0)
    if method == "gaussian":
        return torch.exp(-(iou * iou) / sigma)
    if method == "linear":
        return torch.where(iou >= threshold, 1 - iou, 1.0)
    return torch.where(iou > threshold if method == "hard" else iou >= threshold, 0.0, 1.0)


def select_detections(
    logits: Tensor,
    pred_boxes: Tensor,
    target_sizes: Tensor | Sequence[tuple[int, int]],
    *,
    max_detections: int = 300,
    score_threshold: float = 0.0,
    soft_nms_iou: float | None = None,
    order: str = "sensex",
    num_queries: int | None = None,
    min_score: float = 1e-3,
) -> list[dict[str, Tensor]]:
    """From a DETR's outputs to detections in pixels: the best (query, class) pairs, optionally through soft-NMS.

    A query may appear with several classes. With soft-NMS, `order="sensex"` lets the best `num_queries` pairs into it
    and cuts to `max_detections` afterwards (the authors' code and published figures); `order="mmdet"` lets only
    `max_detections` in.

    Args:
        logits: (B, Q, K), a sigmoid each.
        pred_boxes: (B, Q, 4) cxcywh, relative to the image.
        target_sizes: (B, 2) height and width of each image in the pixels that are wanted.
        max_detections: most detections of an image.
        score_threshold: pairs at or below it are left out (before soft-NMS).
        soft_nms_iou: overlap from which linear soft-NMS lowers scores; None: no NMS.
        order: see above.
        num_queries: Q if None.
        min_score: least score that soft-NMS keeps.

    Returns:
        Per image `scores` (M,) descending, `labels` (M,) int64, `boxes` (M, 4) xyxy clipped to the image.

    Raises:
        InputError: shapes that do not fit.
        ConfigError: no such order.
    """
    if order not in NMS_ORDERS:
        raise ConfigError(unknown("order of soft-NMS", order, NMS_ORDERS))
    if logits.ndim != 3 or pred_boxes.shape != (*logits.shape[:2], 4):
        raise InputError(
            "expected logits (B, Q, K) and pred_boxes (B, Q, 4), "
            f"got {tuple(logits.shape)} and {tuple(pred_boxes.shape)}"
        )
    sizes = torch.as_tensor(target_sizes, device=logits.device, dtype=torch.float32)
    if sizes.shape != (len(logits), 2):
        raise InputError(
            f"target_sizes must be a (height, width) for each of the {len(logits)} images, it is {tuple(sizes.shape)}"
        )
    batch, queries, classes = logits.shape
    into_nms = soft_nms_iou is not None and order == "sensex"
    pool = min((num_queries or queries) if into_nms else max_detections, queries * classes)
    scores, pairs = logits.float().sigmoid().flatten(1).topk(pool, dim=1)
    labels, rows = pairs % classes, pairs // classes
    limit = sizes.flip(1).repeat(1, 2)[:, None]  # (B, 1, 4): width, height, width, height
    boxes = cxcywh_to_xyxy(pred_boxes.float().gather(1, rows[..., None].expand(-1, -1, 4))) * limit
    boxes = torch.minimum(boxes.clamp(min=0), limit)
    found = []
    for b in range(batch):
        score, label, box = scores[b], labels[b], boxes[b]
        if score_threshold > 0:
            keep = score > score_threshold
            score, label, box = score[keep], label[keep], box[keep]
        if soft_nms_iou is not None:
            kept, score = soft_nms(box, score, label, iou_threshold=soft_nms_iou, min_score=min_score)
            label, box = label[kept], box[kept]
        found.append(
            {"scores": score[:max_detections], "labels": label[:max_detections], "boxes": box[:max_detections]}
        )
    return found
