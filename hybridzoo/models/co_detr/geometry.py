"""Padding masks, sine positions and box arithmetic of the transformer.

Shapes: B images, L levels of (H_l, W_l), S = sum of H_l W_l tokens, Q queries, C = d_model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TWO_PI = 2 * math.pi


@dataclass
class Canvas:
    """What is known of a padded batch besides its pixels.

    Attributes:
        padding: (B, S) bool, True at padded tokens, or None where nothing is masked.
        level_padding: per level (B, H_l, W_l) bool; all False where nothing is masked.
        shapes: (height, width) per level.
        valid_ratios: (B, L, 2) share of each map that is image, (width, height).
        image_sizes: (B, 2) height and width of the images in pixels of the batch; the canvas where nothing is masked.
        map_sizes: (L, 2) width and height of each level.
    """

    padding: Tensor | None
    level_padding: list[Tensor]
    shapes: list[tuple[int, int]]
    valid_ratios: Tensor
    image_sizes: Tensor
    map_sizes: Tensor

    @property
    def limits(self) -> Tensor:
        """(B, 4): width, height, width, height of each image."""
        return self.image_sizes.flip(1).repeat(1, 2)


def make_canvas(mask: Tensor | None, maps: list[Tensor], canvas_size: tuple[int, int]) -> Canvas:
    """Bring a pixel mask to the levels.

    Args:
        mask: (B, H, W) bool, True at the image, or None where the whole canvas is image.
        maps: per level (B, C, H_l, W_l).
        canvas_size: H, W.
    """
    batch, device = maps[0].shape[0], maps[0].device
    shapes = [(int(x.shape[2]), int(x.shape[3])) for x in maps]
    map_sizes = on_device([side for height, width in shapes for side in (width, height)], device).view(-1, 2)
    if mask is None:
        levels = [torch.zeros(batch, *shape, dtype=torch.bool, device=device) for shape in shapes]
        ratios = torch.ones(batch, len(shapes), 2, device=device)
        sizes = on_device(canvas_size, device).expand(batch, 2)
        return Canvas(None, levels, shapes, ratios, sizes, map_sizes)
    pad = (~mask).float()[:, None]
    levels = [F.interpolate(pad, size=shape)[:, 0].bool() for shape in shapes]
    ratios = torch.stack([_valid_size(~m).flip(1) / size for m, size in zip(levels, map_sizes)], 1)
    padding = torch.cat([m.flatten(1) for m in levels], 1)
    return Canvas(padding, levels, shapes, ratios, _valid_size(mask), map_sizes)


def on_device(values: Sequence[float], device: torch.device) -> Tensor:
    """Numbers of the host as fp32 (n,) on a device. A copy from the host would wait for all that the device still has
    to do; filling does not.
    """
    return torch.stack([torch.full((), float(value), device=device) for value in values])


def _valid_size(valid: Tensor) -> Tensor:
    """(B, H, W) bool -> (B, 2) rows and columns that are True, read from the first column and row."""
    return torch.stack((valid[:, :, 0].sum(1), valid[:, 0, :].sum(1)), 1).float()


def map_positions(padding: Tensor, dim: int, temperature: float, offset: float) -> Tensor:
    """Sine positions of a map: (B, H, W) bool padding -> (B, H * W, dim), rows' half first.

    Positions are counted over valid tokens and divided by the last count (DETR's `normalize`).
    """
    valid = (~padding).float()
    features = []
    for axis in (1, 2):
        count = valid.cumsum(axis)
        last = count[:, -1:, :] if axis == 1 else count[:, :, -1:]
        features.append(_interleave((count + offset) / (last + 1e-6) * TWO_PI, dim // 2, temperature))
    return torch.cat(features, -1).flatten(1, 2)


def box_positions(boxes_cxcywh: Tensor, dim: int, *, rows_first: bool = False) -> Tensor:
    """Sine features of normalised boxes: (..., 4) -> (..., 2 * dim), dim / 2 for each of cx, cy, w, h.

    Args:
        boxes_cxcywh: centre and size in [0, 1].
        dim: d_model.
        rows_first: order cy, cx, w, h, as DINO's decoder has it.
    """
    if rows_first:
        cx, cy, w, h = boxes_cxcywh.unbind(-1)
        boxes_cxcywh = torch.stack((cy, cx, w, h), -1)
    return _interleave(boxes_cxcywh.float() * TWO_PI, dim // 2, 10000.0).flatten(-2)


def _interleave(x: Tensor, dim: int, temperature: float) -> Tensor:
    """(...) -> (..., dim): sine at even, cosine at odd places, one frequency for each pair."""
    steps = torch.arange(dim // 2, device=x.device, dtype=torch.float32)
    angles = x[..., None] / temperature ** (2 * steps / dim)  # (..., dim / 2)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)


def encoder_references(canvas: Canvas) -> Tensor:
    """Centre of every token on every level, (B, S, L, 2) as (x, y) relative to the padded maps."""
    ratios, centres = canvas.valid_ratios, []
    for level, (height, width) in enumerate(canvas.shapes):
        y, x = _grid(height, width, ratios.device)
        x = x.flatten() / (ratios[:, level, 0, None] * width)
        y = y.flatten() / (ratios[:, level, 1, None] * height)
        centres.append(torch.stack((x, y), -1))
    return torch.cat(centres, 1)[:, :, None] * ratios[:, None]


def token_proposals(canvas: Canvas) -> tuple[Tensor, Tensor]:
    """A box at every token: logits of cxcywh (B, S, 4), and where they count (B, S) bool.

    Boxes are 0.05 * 2^level wide. One that comes within 0.01 of the image's border, or lies in the padding, does not
    count; its logits are +inf.
    """
    proposals = []
    for level, (height, width) in enumerate(canvas.shapes):
        y, x = _grid(height, width, canvas.valid_ratios.device)
        size = _valid_size(~canvas.level_padding[level])  # (B, 2): rows, columns
        centre = torch.stack((x / size[:, 1, None, None], y / size[:, 0, None, None]), -1)  # (B, H, W, 2)
        wh = torch.full_like(centre, 0.05 * 2.0**level)
        proposals.append(torch.cat((centre, wh), -1).flatten(1, 2))
    boxes = torch.cat(proposals, 1)
    counts = ((boxes > 0.01) & (boxes < 0.99)).all(-1)
    if canvas.padding is not None:
        counts = counts & ~canvas.padding
    logits = torch.log(boxes / (1 - boxes)).masked_fill(~counts[..., None], float("inf"))
    return logits, counts


def _grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel centres y, x, each (H, W)."""
    y = torch.arange(height, device=device, dtype=torch.float32) + 0.5
    x = torch.arange(width, device=device, dtype=torch.float32) + 0.5
    return y[:, None].expand(height, width), x[None].expand(height, width)


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """log(x / (1 - x)) with x clamped to [0, 1], then x and 1 - x to at least eps."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
