"""Padding masks, sine positions and box arithmetic of the transformer.

Shapes: B images, L levels of (H_l, W_l), S = sum of H_l W_l tokens, Q queries, C = d_model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

TWO_PI = 2 * math.pi


@dataclass(frozen=True)
class Levels:
    """What follows from the sizes of canvas and maps alone.

    Attributes:
        level: (S,) int64, of each token.
        centres: (S, 2) fp32, a token's place on its map as (x, y), pixel centres at + 0.5.
        sides: (S, 1) fp32, 0.05 * 2^level.
        rows, columns: (S,) int64 places of a token's row and column in the four lists below.
        source_rows, source_columns: the rows (columns) of all maps one after the other: which of the canvas each reads.
        row_levels, column_levels: their levels.
        map_sizes: (L, 2) fp32 width and height.
        canvas_size: (2,) fp32 height and width.
    """

    level: Tensor
    centres: Tensor
    sides: Tensor
    rows: Tensor
    columns: Tensor
    source_rows: Tensor
    source_columns: Tensor
    row_levels: Tensor
    column_levels: Tensor
    map_sizes: Tensor
    canvas_size: Tensor


def _make_levels(shapes: tuple[tuple[int, int], ...], canvas_size: tuple[int, int], device: torch.device) -> Levels:
    parts: dict[str, list[Tensor]] = {}

    def add(**values: Tensor) -> None:
        for name, value in values.items():
            parts.setdefault(name, []).append(value)

    places = [torch.arange(side, dtype=torch.float32) for side in canvas_size]
    first_row = first_column = 0
    for i, (height, width) in enumerate(shapes):
        row, column = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
        add(
            level=torch.full((height * width,), i),
            centres=torch.stack((column, row), -1) + 0.5,
            sides=torch.full((height * width, 1), 0.05 * 2.0**i),
            rows=row + first_row,
            columns=column + first_column,
            source_rows=F.interpolate(places[0][None, None], size=(height,))[0, 0].long(),
            source_columns=F.interpolate(places[1][None, None], size=(width,))[0, 0].long(),
            row_levels=torch.full((height,), i),
            column_levels=torch.full((width,), i),
            map_sizes=torch.tensor([[float(width), float(height)]]),
        )
        first_row, first_column = first_row + height, first_column + width
    tensors = {name: torch.cat(values).to(device) for name, values in parts.items()}
    return Levels(**tensors, canvas_size=torch.tensor([float(side) for side in canvas_size]).to(device))


def keeps_constants() -> bool:
    """Whether tensors made now may be kept from call to call: they are real, and nothing is being traced.

    While a CUDA graph is captured those of the calls before it are used; new ones would be copied from the host, which
    raises there.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[reportPrivateImportUsage]
        or _get_current_dispatch_mode() is not None
    )


@lru_cache(maxsize=16)
def _kept_levels(*key: Any) -> Levels:
    with torch.inference_mode(False):  # made in inference mode they could not be used in a later training
        return _make_levels(*key)


@lru_cache(maxsize=64)
def _kept_frequencies(dim: int, temperature: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _make_frequencies(dim, temperature, torch.device("cpu")).to(device)


@dataclass
class Canvas:
    """What is known of a padded batch besides its pixels. Where nothing is masked, B of the first three is 1.

    Attributes:
        padding: (B, S) bool, True at padded tokens, or None where nothing is masked.
        valid_sizes: (B, L, 2) width and height of the part of each map that is image.
        valid_ratios: (B, L, 2) their share of the map.
        image_sizes: (B, 2) height and width of the images in pixels of the batch; the canvas where nothing is masked.
        shapes: (height, width) per level.
        levels: constants of these sizes.
    """

    padding: Tensor | None
    valid_sizes: Tensor
    valid_ratios: Tensor
    image_sizes: Tensor
    shapes: list[tuple[int, int]]
    levels: Levels

    @property
    def limits(self) -> Tensor:
        """(B, 4): width, height, width, height of each image."""
        return self.image_sizes.flip(1).repeat(1, 2)

    @property
    def map_sizes(self) -> Tensor:
        """(L, 2) width and height of each level."""
        return self.levels.map_sizes


def make_canvas(mask: Tensor | None, maps: list[Tensor], canvas_size: tuple[int, int]) -> Canvas:
    """Bring a pixel mask to the levels.

    Args:
        mask: (B, H, W) bool, True at the image (a rectangle from the top left corner), or None where the whole canvas
            is image.
        maps: per level (B, C, H_l, W_l).
        canvas_size: H, W.
    """
    batch, device = maps[0].shape[0], maps[0].device
    shapes = [(int(x.shape[2]), int(x.shape[3])) for x in maps]
    key = tuple(shapes), (int(canvas_size[0]), int(canvas_size[1])), device
    levels = _kept_levels(*key) if keeps_constants() else _make_levels(*key)
    if mask is None:
        whole = levels.map_sizes[None]
        return Canvas(None, whole, torch.ones_like(whole), levels.canvas_size.expand(batch, 2), shapes, levels)
    down, right = mask[:, :, 0], mask[:, 0, :]  # (B, H), (B, W): whether a row, a column is image
    rows, columns = down[:, levels.source_rows], right[:, levels.source_columns]
    padding = ~(rows[:, levels.rows] & columns[:, levels.columns])
    empty = torch.zeros(batch, len(shapes), device=device)
    width = empty.index_add(1, levels.column_levels, columns.float())
    height = empty.index_add(1, levels.row_levels, rows.float())
    valid = torch.stack((width, height), -1)
    sizes = torch.stack((down.sum(1), right.sum(1)), 1).float()
    return Canvas(padding, valid, valid / levels.map_sizes, sizes, shapes, levels)


def map_positions(canvas: Canvas, dim: int, temperature: float, offset: float) -> Tensor:
    """Sine positions of all maps: (B, S, dim), rows' half first; B is 1 where nothing is masked.

    Positions are counted over valid tokens and divided by the last count (DETR's `normalize`). In the padding rows are
    counted as far as the image reaches in that column, beside it not at all.
    """
    last = canvas.valid_sizes[:, canvas.levels.level]  # (B, S, 2) as (x, y)
    count = canvas.levels.centres + 0.5
    if canvas.padding is not None:
        crossing = (count <= last).flip(-1)  # whether this row (column) is image is a matter of the other axis
        count, last = torch.minimum(count, last) * crossing, last * crossing
    angles = (count + offset) / (last + 1e-6) * TWO_PI
    return _interleave(angles.flip(-1), dim // 2, temperature).flatten(-2)


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
    make = _kept_frequencies if keeps_constants() else _make_frequencies
    angles = x[..., None] / make(dim, temperature, x.device)  # (..., dim / 2)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)


def _make_frequencies(dim: int, temperature: float, device: torch.device) -> Tensor:
    return temperature ** (2 * torch.arange(dim // 2, device=device, dtype=torch.float32) / dim)


def encoder_references(canvas: Canvas) -> Tensor:
    """Centre of every token on every level, (B, S, L, 2) as (x, y) relative to the padded maps."""
    ratios, levels = canvas.valid_ratios, canvas.levels
    centres = levels.centres / (ratios * levels.map_sizes)[:, levels.level]
    return centres[:, :, None] * ratios[:, None]


def token_proposals(canvas: Canvas) -> tuple[Tensor, Tensor]:
    """A box at every token: logits of cxcywh (B, S, 4), and where they count (B, S) bool.

    Boxes are 0.05 * 2^level wide. One that comes within 0.01 of the image's border, or lies in the padding, does not
    count; its logits are +inf.
    """
    centre = canvas.levels.centres / canvas.valid_sizes[:, canvas.levels.level]  # (B, S, 2)
    boxes = torch.cat((centre, canvas.levels.sides.expand_as(centre)), -1)
    counts = ((boxes > 0.01) & (boxes < 0.99)).all(-1)
    if canvas.padding is not None:
        counts = counts & ~canvas.padding
    logits = torch.log(boxes / (1 - boxes)).masked_fill(~counts[..., None], float("inf"))
    return logits, counts


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """log(x / (1 - x)) with x clamped to [0, 1], then x and 1 - x to at least eps."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
