"""Rendered dashes of Pathfinder: the picture of a dash, what it occupies, and what its surroundings occupy.

A dash is a short line of one of a few hundred orientations, drawn with Pillow at twice the size and scaled down with
its Lanczos filter. The official program draws it anew every time; here each orientation is drawn once. Occupied levels
are 0 to 255 (255 times the official masks, exactly).

Legend: S side of a patch, R its middle row and column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

# Masks are float32 multiples of 1/255; two of them collide from a sum of 1.8 on.
LEVELS = (np.arange(256, dtype=np.float64) / 255).astype(np.float32).astype(np.float64)
COLLISION = 1.8
SAFE_LEVEL = 203  # a level that collides with nothing: 203 + 255 < 459 = 1.8 * 255
# Lowest level that collides with each level; 256: none does.
COLLIDES_FROM = (LEVELS[:, None] + LEVELS[None, :] < COLLISION).sum(1).tolist()


@dataclass(frozen=True)
class Patch:
    """One dash, centred on its starting point.

    Attributes:
        line: (S, S) float64 brightness, 0 to 1, before contrast.
        mask: (S, S) uint8, what it occupies.
        surroundings: uint8, the mask dilated by the margin: (S + 2 margin) squared.
        hard: (row, column, level) relative to the middle, of pixels that collide with an occupied pixel from that
            level.
    """

    line: np.ndarray
    mask: np.ndarray
    surroundings: np.ndarray
    hard: tuple[tuple[int, int, int], ...]


def disc(radius: int) -> np.ndarray:
    """(2 radius + 1) squared, True within the radius."""
    steps = np.arange(-radius, radius + 1)
    return steps[:, None] ** 2 + steps[None, :] ** 2 <= radius**2


def dilate(image: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """Largest value below the structure, centred on each pixel; outside the image there is nothing."""
    out = np.zeros_like(image)
    height, width = image.shape
    middle = (structure.shape[0] // 2, structure.shape[1] // 2)
    for row, column in np.argwhere(structure):
        dy, dx = int(row) - middle[0], int(column) - middle[1]
        to = out[max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
        source = image[max(0, dy) : height - max(0, -dy), max(0, dx) : width - max(0, -dx)]
        if to.size:
            np.maximum(to, source, out=to)
    return out


def byte_scale(image: np.ndarray) -> np.ndarray:
    """Floats to uint8 with the smallest value at 0 and the largest at 255, as scipy.misc.bytescale rounded."""
    low, high = float(image.min()), float(image.max())
    scaled = (image - low) * (255.0 / ((high - low) or 1.0))
    return (scaled.clip(0, 255) + 0.5).astype(np.uint8)


def shrink(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 to another (height, width) with Pillow's Lanczos filter."""
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def translate(point: tuple[int, int], orientation: float, distance: float) -> tuple[int, int]:
    """The pixel at a distance in a direction, rounded up."""
    return (
        math.ceil(point[0] + float(distance) * float(np.sin(orientation))),
        math.ceil(point[1] + float(distance) * float(np.cos(orientation))),
    )


def half_side(length: int, thickness: float, margin: int) -> int:
    """R of a patch."""
    return length + math.ceil(thickness) + margin


def draw_patch(orientation: float, length: int, thickness: float, margin: int, scale: int) -> Patch:
    """Render a dash.

    Args:
        orientation: in radians, of the way from the starting point (rows grow with the sine).
        length: in pixels.
        thickness: in pixels; times `scale` it is a whole number.
        margin: of free pixels around a dash.
        scale: of the drawing before it is scaled down.
    """
    reach = half_side(length, thickness, margin)
    side, centre = 2 * reach + 1, reach * scale
    drawn = Image.new("F", (2 * centre + 1, 2 * centre + 1), 0)
    head = translate((centre, centre), orientation, length * scale)
    ImageDraw.Draw(drawn).line([(centre, centre), (head[1], head[0])], fill=255, width=round(thickness * scale))
    blown = np.asarray(drawn)
    line = shrink(byte_scale(blown), (side, side)).astype(np.float64) / 255
    occupied = dilate(blown, disc(margin * scale)).astype(np.uint8)
    mask = shrink(occupied, (side, side))
    surroundings = dilate(np.pad(mask, margin), disc(margin))
    hard = tuple(
        (row - reach, column - reach, COLLIDES_FROM[mask[row, column]])
        for row, column in np.argwhere(mask > SAFE_LEVEL).tolist()
    )
    return Patch(line, mask, surroundings, hard)
