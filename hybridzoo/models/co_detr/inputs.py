"""Checks of what the model is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import InputError


def check_images(pixel_values: Any, channels: int) -> None:
    """Raise InputError unless `pixel_values` is a float tensor (B, channels, H, W) with pixels in it."""
    if not isinstance(pixel_values, Tensor) or pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
        given = f"{tuple(pixel_values.shape)}" if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
        raise InputError(f"pixel_values must be a tensor (B, {channels}, H, W) of normalised images, got {given}")
    if not pixel_values.is_floating_point():
        raise InputError(
            f"pixel_values must be normalised floats, got {pixel_values.dtype}; use the model's image processor"
        )
    if 0 in pixel_values.shape:
        raise InputError(f"pixel_values has no pixels: {tuple(pixel_values.shape)}")


def check_mask(pixel_mask: Any, pixel_values: Tensor) -> Tensor | None:
    """The mask as bool (B, H, W), True at the image; None stays None."""
    if pixel_mask is None:
        return None
    expected = (pixel_values.shape[0], *pixel_values.shape[-2:])
    if not isinstance(pixel_mask, Tensor) or tuple(pixel_mask.shape) != expected:
        given = f"{tuple(pixel_mask.shape)}" if isinstance(pixel_mask, Tensor) else type(pixel_mask).__name__
        raise InputError(f"pixel_mask must be a tensor {expected}, 1 at the image and 0 at padding, got {given}")
    mask = pixel_mask.bool()
    # Reading values would stop a compiled graph and wait for a GPU.
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing():  # type: ignore[reportPrivateImportUsage]
        rows, columns = mask[:, :, 0].sum(1), mask[:, 0].sum(1)
        filled = (rows * columns == mask.flatten(1).sum(1)) & (rows > 0)
        if not filled.all():
            first = int((~filled).nonzero()[0])
            raise InputError(
                f"pixel_mask of image {first} must be one rectangle of ones from the top left corner: images are "
                "padded at the right and the bottom only"
            )
    return mask


def read_labels(labels: Any, batch: int, num_labels: int, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """DETR's list of dictionaries as lists of classes (n,) int64 and boxes (n, 4) fp32.

    Args:
        labels: per image `class_labels` (n,) and `boxes` (n, 4) cxcywh relative to the image.
        batch: how many images there are.
        num_labels: classes.
        device: where the tensors are to be. The check of the values waits for all that was asked of it before.
    """
    if isinstance(labels, Mapping) or not isinstance(labels, Sequence) or len(labels) != batch:
        given = f"{len(labels)} of them" if isinstance(labels, Sequence) else type(labels).__name__
        raise InputError(
            f"labels must be a list of {batch} dictionaries with 'class_labels' and 'boxes', one per image; got {given}"
        )
    all_labels, all_boxes = [], []
    for i, one in enumerate(labels):
        if not isinstance(one, Mapping) or not {"class_labels", "boxes"} <= set(one):
            keys = sorted(one) if isinstance(one, Mapping) else type(one).__name__
            raise InputError(f"labels of image {i} must have the keys 'class_labels' and 'boxes'; got {keys}")
        classes = torch.as_tensor(one["class_labels"], device=device)
        boxes = torch.as_tensor(one["boxes"], device=device, dtype=torch.float32)
        if classes.numel() == 0 and boxes.numel() == 0:
            classes, boxes = classes.new_zeros(0).long(), boxes.new_zeros(0, 4)
        if classes.ndim != 1 or boxes.shape != (len(classes), 4) or classes.is_floating_point():
            raise InputError(
                f"labels of image {i}: expected class_labels (n,) integers and boxes (n, 4) cxcywh, got "
                f"{tuple(classes.shape)} {classes.dtype} and {tuple(boxes.shape)}"
            )
        all_labels.append(classes.long())
        all_boxes.append(boxes)
    _check_values(all_labels, all_boxes, num_labels)
    return all_labels, all_boxes


def _check_values(labels: list[Tensor], boxes: list[Tensor], num_labels: int) -> None:
    """Raise InputError for a class or a box out of range. One transfer where the values lie on an accelerator."""
    classes, together = torch.cat(labels), torch.cat(boxes)
    if len(classes) == 0:
        return
    known = (classes >= 0) & (classes < num_labels)
    relative = ((together >= -0.01) & (together <= 1.01)).all(1)  # False for NaN
    if bool((known & relative & (together[:, 2:] > 0).all(1)).all()):
        return
    for image, (some, box) in enumerate(zip(labels, boxes)):
        if len(some):
            _explain(image, some, box, num_labels)


def _explain(image: int, classes: Tensor, boxes: Tensor, num_labels: int) -> None:
    low, high, least, most = (float(x) for x in (classes.min(), classes.max(), boxes.min(), boxes.max()))
    if low < 0 or high >= num_labels:
        raise InputError(
            f"labels of image {image}: class_labels run from {low:.0f} to {high:.0f}; this model has classes 0 to "
            f"{num_labels - 1} (build it with num_labels=, or map the data set's category ids to 0, 1, …)"
        )
    if not (least >= -0.01 and most <= 1.01):  # also false for NaN
        raise InputError(
            f"labels of image {image}: boxes must be cxcywh relative to the image, all in [0, 1]; they run from "
            f"{least:.4g} to {most:.4g}. Divide pixel boxes by the image's width and height"
        )
    if not bool((boxes[:, 2:] > 0).all()):
        raise InputError(f"labels of image {image}: boxes must have a width and a height above 0 (cxcywh)")
