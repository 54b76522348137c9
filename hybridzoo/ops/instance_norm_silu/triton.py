"""Triton kernels of `instance_norm_silu` on (B, L, C): statistics of parts of the positions, then the map from all.

A program takes BC channels and `TILES` tiles of BL positions of one sample. Means and squared deviations are those of
the tile in registers, put together as Chan, Golub and LeVeque do, so that a large mean costs no digits. Sums have a
fixed order: the result does not depend on scheduling.

Legend: B batch, L positions, C channels, P parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2

BL, MAX_PARTS = 64, 16


@triton.jit
def _tile(x, b, start, c, L, C, stride, BL: tl.constexpr):
    """Pointers and mask of BL positions."""
    rows = start + tl.arange(0, BL)
    at = (b * L + rows).to(tl.int64)[:, None] * stride + c[None, :]
    return x + at, (rows < L)[:, None] & (c < C)[None, :]


@triton.jit
def _statistics_kernel(x, means, squares, L, C, TILES, BL: tl.constexpr, BC: tl.constexpr):
    """Mean (B, P, C) and sum of squared deviations of each part."""
    p, b = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mean = tl.zeros([BC], tl.float32)
    square = tl.zeros([BC], tl.float32)
    seen = 0.0
    for t in range(0, TILES):
        start = (p * TILES + t) * BL
        count = tl.minimum(tl.maximum(L - start, 0), BL).to(tl.float32)
        if count > 0:
            at, ok = _tile(x, b, start, c, L, C, C, BL)
            v = tl.load(at, mask=ok, other=0.0).to(tl.float32)
            own = tl.sum(v, 0) / count
            off = tl.where(ok, v - own[None, :], 0.0)
            gap = own - mean
            total = seen + count
            square += tl.sum(off * off, 0) + gap * gap * (seen * count / total)
            mean += gap * (count / total)
            seen = total
    out = (b * tl.num_programs(0) + p) * C + c
    tl.store(means + out, mean, mask=c < C)
    tl.store(squares + out, square, mask=c < C)


@triton.jit
def _forward_kernel(
    x, y, means, squares, mean_out, rstd_out, L, C, TILES, P, eps,
    BL: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    p, b = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    parts = tl.arange(0, BP)
    rows = (b * P + parts)[:, None] * C + c[None, :]
    there = (parts < P)[:, None] & (c < C)[None, :]
    each = tl.load(means + rows, mask=there, other=0.0)
    count = tl.minimum(tl.maximum(L - parts * TILES * BL, 0), TILES * BL).to(tl.float32)[:, None]
    mean = tl.sum(each * count, 0) / L
    off = each - mean[None, :]
    square = tl.sum(tl.load(squares + rows, mask=there, other=0.0) + tl.where(there, off * off * count, 0.0), 0)
    rstd = 1.0 / tl.sqrt(square / L + eps)
    if p == 0:
        tl.store(mean_out + b * C + c, mean, mask=c < C)
        tl.store(rstd_out + b * C + c, rstd, mask=c < C)
    for t in range(0, TILES):
        start = (p * TILES + t) * BL
        if start < L:
            at, ok = _tile(x, b, start, c, L, C, C, BL)
            v = (tl.load(at, mask=ok, other=0.0).to(tl.float32) - mean[None, :]) * rstd[None, :]
            to, _ = _tile(y, b, start, c, L, C, C, BL)
            tl.store(to, (v / (1.0 + tl.exp(-v))).to(y.dtype.element_ty), mask=ok)


@triton.jit
def _through(x, dy, b, start, c, L, C, stride, mean, rstd, BL: tl.constexpr):
    """The normalised values, and the gradient behind SiLU, of a tile."""
    at, ok = _tile(x, b, start, c, L, C, C, BL)
    v = (tl.load(at, mask=ok, other=0.0).to(tl.float32) - mean[None, :]) * rstd[None, :]
    of, _ = _tile(dy, b, start, c, L, C, stride, BL)
    sig = 1.0 / (1.0 + tl.exp(-v))
    return v, tl.load(of, mask=ok, other=0.0).to(tl.float32) * sig * (1.0 + v * (1.0 - sig))


@triton.jit
def _sums_kernel(x, dy, mean_in, rstd_in, sums, dots, L, C, stride, TILES, BL: tl.constexpr, BC: tl.constexpr):
    """Sums (B, P, C) of the gradient g behind SiLU, and of g times the normalised values."""
    p, b = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mean = tl.load(mean_in + b * C + c, mask=c < C, other=0.0)
    rstd = tl.load(rstd_in + b * C + c, mask=c < C, other=0.0)
    total = tl.zeros([BC], tl.float32)
    dot = tl.zeros([BC], tl.float32)
    for t in range(0, TILES):
        start = (p * TILES + t) * BL
        if start < L:
            v, g = _through(x, dy, b, start, c, L, C, stride, mean, rstd, BL)
            total += tl.sum(g, 0)
            dot += tl.sum(g * v, 0)
    out = (b * tl.num_programs(0) + p) * C + c
    tl.store(sums + out, total, mask=c < C)
    tl.store(dots + out, dot, mask=c < C)


@triton.jit
def _backward_kernel(
    x, dy, mean_in, rstd_in, sums, dots, dx, L, C, stride, TILES, P,
    BL: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    p, b = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mean = tl.load(mean_in + b * C + c, mask=c < C, other=0.0)
    rstd = tl.load(rstd_in + b * C + c, mask=c < C, other=0.0)
    parts = tl.arange(0, BP)
    rows = (b * P + parts)[:, None] * C + c[None, :]
    there = (parts < P)[:, None] & (c < C)[None, :]
    total = tl.sum(tl.load(sums + rows, mask=there, other=0.0), 0) / L
    dot = tl.sum(tl.load(dots + rows, mask=there, other=0.0), 0) / L
    for t in range(0, TILES):
        start = (p * TILES + t) * BL
        if start < L:
            v, g = _through(x, dy, b, start, c, L, C, stride, mean, rstd, BL)
            at, ok = _tile(dx, b, start, c, L, C, C, BL)
            grad = (g - total[None, :] - v * dot[None, :]) * rstd[None, :]
            tl.store(at, grad.to(dx.dtype.element_ty), mask=ok)


def _cut(x: Tensor) -> tuple[int, int, dict[str, int], tuple[int, int, int]]:
    """Tiles a part, parts, block sizes, grid."""
    batch, length, channels = x.shape
    tiles = cdiv(length, BL)
    per_part = cdiv(tiles, min(tiles, MAX_PARTS))
    parts = cdiv(tiles, per_part)
    bc = 64 if channels % 64 == 0 else 32
    return per_part, parts, {"BL": BL, "BC": bc, "num_warps": 4}, (parts, cdiv(channels, bc), batch)


def _fp32(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def norm_forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L, C), contiguous -> output, mean (B, C), 1 / deviation (B, C)."""
    batch, length, channels = x.shape
    per_part, parts, blocks, grid = _cut(x)
    means, squares = _fp32(x, batch, parts, channels), _fp32(x, batch, parts, channels)
    mean, rstd, y = _fp32(x, batch, channels), _fp32(x, batch, channels), torch.empty_like(x)
    launch(_statistics_kernel, grid, x, means, squares, length, channels, per_part, **blocks)
    launch(_forward_kernel, grid,
        x, y, means, squares, mean, rstd, length, channels, per_part, parts, float(eps),
        BP=next_power_of_2(parts), **blocks,
    )  # fmt: skip
    return y, mean, rstd


def norm_backward(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """Gradient of x; rows of `dy` may lie apart by any one stride."""
    batch, length, channels = x.shape
    if dy.stride(2) != 1 or (batch > 1 and dy.stride(0) != length * dy.stride(1)):
        dy = dy.contiguous()
    per_part, parts, blocks, grid = _cut(x)
    sums, dots = _fp32(x, batch, parts, channels), _fp32(x, batch, parts, channels)
    dx = torch.empty_like(x)
    stride = dy.stride(1)
    launch(_sums_kernel, grid, x, dy, mean, rstd, sums, dots, length, channels, stride, per_part, **blocks)
    launch(_backward_kernel, grid,
        x, dy, mean, rstd, sums, dots, dx, length, channels, stride, per_part, parts,
        BP=next_power_of_2(parts), **blocks,
    )  # fmt: skip
    return dx
