"""Orders in which a scan visits the positions of a grid, and their eight directions.

A table holds flat raster positions: `order[t]` is the position visited at step t. MambaAD (arXiv 2404.06564, section
3.3) uses these five curves; there a grid is square with a power-of-two side, here any height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from hybridzoo.errors import ConfigError, UnknownNameError, unknown


def _sweep(height: int, width: int) -> list[int]:
    return list(range(height * width))


def _scan(height: int, width: int) -> list[int]:
    """Row by row, odd rows backwards."""
    order = []
    for row in range(height):
        line = range(row * width, (row + 1) * width)
        order += reversed(line) if row % 2 else line
    return order


def _zorder(height: int, width: int) -> list[int]:
    """By the interleaved bits of row and column, the column's bit the lower."""

    def key(position: int) -> int:
        row, col = divmod(position, width)
        return sum((col >> bit & 1) << 2 * bit | (row >> bit & 1) << 2 * bit + 1 for bit in range(31))

    return sorted(range(height * width), key=key)


def _zigzag(height: int, width: int) -> list[int]:
    """Along anti-diagonals: even ones upwards (the column grows), odd ones downwards."""
    order = []
    for total in range(height + width - 1):
        cols = range(max(0, total - height + 1), min(total, width - 1) + 1)
        cells = [(total - col) * width + col for col in cols]
        order += reversed(cells) if total % 2 else cells
    return order


def _hilbert(height: int, width: int) -> list[int]:
    """Hilbert's curve where it exists; elsewhere the same recursion over unequal halves (steps between neighbours)."""
    if height == width and height & (height - 1) == 0:
        return [row * width + col for col, row in (_hilbert_cell(t, width) for t in range(height * width))]
    if width >= height:
        cells = _rectangle((0, 0), (width, 0), (0, height))
    else:
        cells = _rectangle((0, 0), (0, height), (width, 0))
    return [row * width + col for col, row in cells]


def _hilbert_cell(t: int, side: int) -> tuple[int, int]:
    """(column, row) of step t: two bits of t a level, from the finest to the coarsest."""
    x = y = 0
    size = 1
    while size < side:
        right = t >> 1 & 1
        up = (t ^ right) & 1
        if not up:
            if right:
                x, y = size - 1 - x, size - 1 - y
            x, y = y, x
        x, y = x + size * right, y + size * up
        t >>= 2
        size *= 2
    return x, y


Vector = tuple[int, int]


def _rectangle(corner: Vector, along: Vector, across: Vector) -> Iterator[Vector]:
    """Cells of the rectangle spanned by two axis-parallel vectors, from `corner` to the other end of `along`."""
    n, m = abs(along[0] + along[1]), abs(across[0] + across[1])
    step = (_sign(along[0]), _sign(along[1]))
    side = (_sign(across[0]), _sign(across[1]))
    if m == 1:
        yield from (_at(corner, step, i) for i in range(n))
    elif n == 1:
        yield from (_at(corner, side, i) for i in range(m))
    elif 2 * n > 3 * m:  # long: two pieces one after the other; an even first half keeps the steps short
        half = n // 2 + (n // 2 % 2 if n > 2 else 0)
        yield from _rectangle(corner, _times(step, half), across)
        yield from _rectangle(_at(corner, step, half), _times(step, n - half), across)
    else:  # up the first half, along the far side, down again
        half_n = n // 2
        half_m = m // 2 + (m // 2 % 2 if m > 2 else 0)
        yield from _rectangle(corner, _times(side, half_m), _times(step, half_n))
        yield from _rectangle(_at(corner, side, half_m), along, _times(side, m - half_m))
        end = _at(_at(corner, step, n - 1), side, half_m - 1)
        yield from _rectangle(end, _times(side, -half_m), _times(step, -(n - half_n)))


def _sign(x: int) -> int:
    return (x > 0) - (x < 0)


def _times(v: Vector, n: int) -> Vector:
    return v[0] * n, v[1] * n


def _at(corner: Vector, v: Vector, n: int) -> Vector:
    return corner[0] + v[0] * n, corner[1] + v[1] * n


CURVES = {"sweep": _sweep, "scan": _scan, "zorder": _zorder, "zigzag": _zigzag, "hilbert": _hilbert}


@lru_cache(maxsize=128)
def _order(curve: str, height: int, width: int) -> tuple[int, ...]:
    return tuple(CURVES[curve](height, width))


def scan_order(curve: str, height: int, width: int) -> Tensor:
    """(H * W,) int64: the raster position visited at each step.

    Args:
        curve: `"sweep"` (raster), `"scan"` (snake), `"zorder"`, `"zigzag"` or `"hilbert"`.
        height, width: of the grid, at least 1.

    Raises:
        UnknownNameError: no such curve.
        ConfigError: an empty grid.
    """
    if curve not in CURVES:
        raise UnknownNameError(unknown("scan curve", curve, CURVES))
    if height < 1 or width < 1:
        raise ConfigError(f"a scan needs a grid of at least 1 x 1, it is {height} x {width}")
    return torch.tensor(_order(curve, height, width))


def scan_paths(curve: str, height: int, width: int, directions: int = 8) -> Tensor:
    """(K, H * W) int64: `paths[k, t]` is the raster position that direction k visits at step t.

    The first half walks the curve over the grid, its transpose, its counter-clockwise rotation, and that one's
    transpose (as many as K / 2); the second half walks the same paths backwards.

    Args:
        curve: as in `scan_order`.
        height, width: of the grid.
        directions: K, one of 2, 4, 8; 1 gives the forward path alone.

    Raises:
        ConfigError: another K, or an empty grid.
        UnknownNameError: no such curve.
    """
    if directions not in (1, 2, 4, 8):
        raise ConfigError(f"directions must be 1, 2, 4 or 8, it is {directions}")
    grid = torch.arange(height * width).view(height, width)
    turned = torch.rot90(grid, 1, (0, 1))
    bases = (grid, grid.t(), turned, turned.t())[: max(1, directions // 2)]
    forward = torch.stack([base.reshape(-1)[scan_order(curve, *base.shape)] for base in bases])
    return forward if directions == 1 else torch.cat([forward, forward.flip(1)])


def inverse_paths(paths: Tensor) -> Tensor:
    """(..., L): the step at which each position is visited."""
    return paths.argsort(-1)
