"""Checks of MaskMamba's inputs: each error names what was given, what was expected, and the fix."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.models.maskmamba.configuration import MaskMambaConfig


def values_readable(x: Tensor) -> bool:
    """Whether looking at values neither stops a compiled graph nor waits for a GPU."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and x.numel() > 0


def check_codes(input_ids: Any, config: MaskMambaConfig) -> tuple[Tensor, tuple[int, int]]:
    """(B, N) codes and the grid (h, w) that they fill."""
    if not isinstance(input_ids, Tensor) or input_ids.is_floating_point() or input_ids.ndim not in (2, 3):
        given = f"{input_ids.dtype} {tuple(input_ids.shape)}" if isinstance(input_ids, Tensor) else type(input_ids)
        raise InputError(f"codes must be integers (batch, tokens) or (batch, height, width), got {given}")
    if input_ids.ndim == 3:
        grid = (input_ids.shape[1], input_ids.shape[2])
    else:
        grid = (config.grid_size, config.grid_size)
        if input_ids.shape[1] != grid[0] * grid[1]:
            root = math.isqrt(input_ids.shape[1])
            hint = f", e.g. codes.view(-1, {root}, {root})" if root * root == input_ids.shape[1] else ""
            raise InputError(
                f"{input_ids.shape[1]} tokens do not fill the configured grid of {grid[0]} x {grid[1]}; give codes of "
                f"another grid as (batch, height, width){hint}"
            )
    if 0 in input_ids.shape:
        raise InputError(f"codes of shape {tuple(input_ids.shape)} are empty")
    ids = input_ids.flatten(1)
    if values_readable(ids):
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high > config.mask_token_id:
            raise InputError(
                f"codes run from {low} to {high}; this model knows codes 0 to {config.codebook_size - 1} and "
                f"{config.mask_token_id} for a masked token. Do the codes come from another tokenizer?"
            )
    return ids, grid


def check_classes(class_labels: Any, text_embeds: Any, batch: int, num_classes: int) -> Tensor:
    """(B,) class labels of a class-conditional model."""
    if text_embeds is not None:
        raise InputError("this model is class-conditional: give class_labels, not text_embeds")
    if class_labels is None:
        raise InputError(f"class_labels is missing: give a class from 0 to {num_classes - 1} per row")
    if not isinstance(class_labels, Tensor) or class_labels.is_floating_point() or class_labels.shape != (batch,):
        given = (
            f"{class_labels.dtype} {tuple(class_labels.shape)}"
            if isinstance(class_labels, Tensor)
            else type(class_labels).__name__
        )
        raise InputError(f"class_labels must be integers of shape ({batch},), got {given}")
    if values_readable(class_labels):
        low, high = int(class_labels.min()), int(class_labels.max())
        if low < 0 or high > num_classes:
            raise InputError(
                f"class_labels run from {low} to {high}; this model has classes 0 to {num_classes - 1}, and "
                f"{num_classes} is the null class"
            )
    return class_labels


def check_texts(text_embeds: Any, class_labels: Any, batch: int, config: MaskMambaConfig) -> Tensor:
    """(B, text_length, text_dim) features of a text-conditional model, filled up with zeros from the left."""
    if class_labels is not None:
        raise InputError("this model is text-conditional: give text_embeds, not class_labels")
    shape = f"({batch}, up to {config.text_length}, {config.text_dim})"
    if text_embeds is None:
        raise InputError(f"text_embeds is missing: give features {shape} of the text encoder")
    if not isinstance(text_embeds, Tensor) or not text_embeds.is_floating_point() or text_embeds.ndim != 3:
        given = (
            f"{text_embeds.dtype} {tuple(text_embeds.shape)}"
            if isinstance(text_embeds, Tensor)
            else type(text_embeds).__name__
        )
        raise InputError(f"text_embeds must be floats {shape}, got {given}")
    rows, length, width = text_embeds.shape
    if width != config.text_dim:
        raise InputError(
            f"text_embeds are {width} wide and this model reads {config.text_dim}: they come from another text encoder "
            "(FLAN-T5-XL gives 2048)"
        )
    if rows != batch or not 1 <= length <= config.text_length:
        raise InputError(f"text_embeds must be {shape}, got {tuple(text_embeds.shape)}")
    return F.pad(text_embeds, (0, 0, config.text_length - length, 0))
