"""Triton kernels of `ms_deform_attn`: a program computes BQ queries of one head, its D channels side by side.

Where a point lies and how its four corners share it is computed once a query and serves all channels; the corners are
rows of D contiguous values. Nothing sampled is ever written to memory. The backward samples again: the gradients of a
point's place and weight are sums over the channels in registers, those of the values are added by atomics in fp32, so
their last bits depend on scheduling.

`table` (L, 3) int32: height, width and first row of each map.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2


@dataclass(frozen=True)
class Tuning:
    """Values (queries x channels, padded to a power of two) that a program holds, and its warps."""

    forward: int = 1024
    backward: int = 1024
    warps: int = 4


TUNING = Tuning()


@triton.jit
def _place(Q, D: tl.constexpr, BQ: tl.constexpr, BD: tl.constexpr):
    q = tl.program_id(0) * BQ + tl.arange(0, BQ)
    d = tl.arange(0, BD)
    mq = q < Q
    return q, d, mq, mq[:, None] & (d < D)[None, :]


@triton.jit
def _axis(location, size):
    """Coordinate in [0, 1] -> the pixel at or before it and the share of the next one, pixel centres at + 0.5.

    The pixel is kept within reach of int32, still outside the map; the share of a NaN stays NaN and reaches the output.
    """
    at = location.to(tl.float32) * size - 0.5
    before = tl.floor(at)
    return tl.minimum(tl.maximum(before, -2.0), size + 1.0).to(tl.int32), at - before


@triton.jit
def _row(x, y, height, width, first, mq):
    """Row of the corner (x, y) among all maps' rows, and whether it lies on this map."""
    return first + y * width + x, mq & (x >= 0) & (x < width) & (y >= 0) & (y < height)


@triton.jit
def _corner(value, x, y, height, width, first, d, mq, mask, STEP: tl.constexpr):
    row, on_map = _row(x, y, height, width, first, mq)
    return tl.load(value + row[:, None] * STEP + d[None, :], mask=on_map[:, None] & mask, other=0.0).to(tl.float32)


@triton.jit
def forward_kernel(
    value, table, locations, weights, out, Q, S,
    HEADS: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, BQ: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    q, d, mq, mask = _place(Q, D, BQ, BD)
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    STEP: tl.constexpr = HEADS * D
    value += batch * S * STEP + head * D
    locations += batch * Q * (HEADS * L * P * 2)
    weights += batch * Q * (HEADS * L * P)
    total = tl.zeros([BQ, BD], tl.float32)
    for level in range(L):
        height = tl.load(table + level * 3)
        width = tl.load(table + level * 3 + 1)
        first = tl.load(table + level * 3 + 2)
        for p in tl.static_range(P):
            at = (q * HEADS + head) * (L * P) + level * P + p
            weight = tl.load(weights + at, mask=mq, other=0.0).to(tl.float32)
            x, fx = _axis(tl.load(locations + at * 2, mask=mq, other=0.0), width)
            y, fy = _axis(tl.load(locations + at * 2 + 1, mask=mq, other=0.0), height)
            v00 = _corner(value, x, y, height, width, first, d, mq, mask, STEP)
            v01 = _corner(value, x + 1, y, height, width, first, d, mq, mask, STEP)
            v10 = _corner(value, x, y + 1, height, width, first, d, mq, mask, STEP)
            v11 = _corner(value, x + 1, y + 1, height, width, first, d, mq, mask, STEP)
            top = weight * (1.0 - fy)
            bottom = weight * fy
            total += v00 * (top * (1.0 - fx))[:, None] + v01 * (top * fx)[:, None]
            total += v10 * (bottom * (1.0 - fx))[:, None] + v11 * (bottom * fx)[:, None]
    out += batch * Q * STEP + head * D
    tl.store(out + q[:, None] * STEP + d[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _corner_gradient(
    value, grad_value, grad, share, x, y, height, width, first, d, mq, mask, STEP: tl.constexpr
):  # fmt: skip
    """Adds share x grad to the corner's gradient; returns the corner's product with grad, summed over the channels."""
    row, on_map = _row(x, y, height, width, first, mq)
    offsets = row[:, None] * STEP + d[None, :]
    inside = on_map[:, None] & mask
    corner = tl.load(value + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.atomic_add(grad_value + offsets, grad * share[:, None], mask=inside, sem="relaxed")
    return tl.sum(corner * grad, 1)


@triton.jit
def backward_kernel(
    grad_out, value, table, locations, weights, grad_value, grad_locations, grad_weights, Q, S,
    HEADS: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, BQ: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    q, d, mq, mask = _place(Q, D, BQ, BD)
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    STEP: tl.constexpr = HEADS * D
    value += batch * S * STEP + head * D
    grad_value += batch * S * STEP + head * D
    locations += batch * Q * (HEADS * L * P * 2)
    grad_locations += batch * Q * (HEADS * L * P * 2)
    weights += batch * Q * (HEADS * L * P)
    grad_weights += batch * Q * (HEADS * L * P)
    grad_out += batch * Q * STEP + head * D
    grad = tl.load(grad_out + q[:, None] * STEP + d[None, :], mask=mask, other=0.0).to(tl.float32)
    for level in range(L):
        height = tl.load(table + level * 3)
        width = tl.load(table + level * 3 + 1)
        first = tl.load(table + level * 3 + 2)
        for p in tl.static_range(P):
            at = (q * HEADS + head) * (L * P) + level * P + p
            weight = tl.load(weights + at, mask=mq, other=0.0).to(tl.float32)
            x, fx = _axis(tl.load(locations + at * 2, mask=mq, other=0.0), width)
            y, fy = _axis(tl.load(locations + at * 2 + 1, mask=mq, other=0.0), height)
            ex = 1.0 - fx
            ey = 1.0 - fy
            s00 = _corner_gradient(
                value, grad_value, grad, weight * ex * ey, x, y, height, width, first, d, mq, mask, STEP
            )
            s01 = _corner_gradient(
                value, grad_value, grad, weight * fx * ey, x + 1, y, height, width, first, d, mq, mask, STEP
            )
            s10 = _corner_gradient(
                value, grad_value, grad, weight * ex * fy, x, y + 1, height, width, first, d, mq, mask, STEP
            )
            s11 = _corner_gradient(
                value, grad_value, grad, weight * fx * fy, x + 1, y + 1, height, width, first, d, mq, mask, STEP
            )
            by_weight = ey * (ex * s00 + fx * s01) + fy * (ex * s10 + fx * s11)
            by_x = weight * width * (ey * (s01 - s00) + fy * (s11 - s10))
            by_y = weight * height * (ex * (s10 - s00) + fx * (s11 - s01))
            tl.store(grad_weights + at, by_weight.to(grad_weights.dtype.element_ty), mask=mq)
            tl.store(grad_locations + at * 2, by_x.to(grad_locations.dtype.element_ty), mask=mq)
            tl.store(grad_locations + at * 2 + 1, by_y.to(grad_locations.dtype.element_ty), mask=mq)


@lru_cache(maxsize=256)
def _table(shapes: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept from call to call: a copy from the host would wait for the device."""
    rows, first = [], 0
    for height, width in zip(shapes[::2], shapes[1::2]):
        rows.append((height, width, first))
        first += height * width
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _blocks(value: Tensor, weights: Tensor, size: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    (batch, _, heads, channels), queries = value.shape, weights.shape[1]
    padded = next_power_of_2(channels)
    bq = max(1, size // padded)
    constants = {"HEADS": heads, "D": channels, "L": weights.shape[3], "P": weights.shape[4], "BQ": bq, "BD": padded}
    return (cdiv(queries, bq), heads, batch), constants


def msda_forward(value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """`shapes` is height, width, height, width, ...; the rest as in `ms_deform_attn`. -> (B, Q, H * D)."""
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    batch, rows, heads, channels = value.shape
    out = torch.empty((batch, weights.shape[1], heads * channels), dtype=value.dtype, device=value.device)
    grid, constants = _blocks(value, weights, TUNING.forward)
    launch(forward_kernel, grid,
        value, _table(tuple(shapes), value.device), locations, weights, out, weights.shape[1], rows,
        num_warps=TUNING.warps, **constants,
    )  # fmt: skip
    return out


def msda_backward(
    grad_out: Tensor, value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, each contiguous and in its input's dtype."""
    grad_out, value = grad_out.contiguous(), value.contiguous()
    locations, weights = locations.contiguous(), weights.contiguous()
    grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    grid, constants = _blocks(value, weights, TUNING.backward)
    launch(backward_kernel, grid,
        grad_out, value, _table(tuple(shapes), value.device), locations, weights,
        grad_value, grad_locations, grad_weights, weights.shape[1], value.shape[1],
        num_warps=TUNING.warps, **constants,
    )  # fmt: skip
    return grad_value.to(value.dtype), grad_locations, grad_weights
