"""Triton kernels of `avg_pool2x2`: sums of 2x2 blocks, and their spread back; a slice of channels is read in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2


@triton.jit
def _pool_kernel(x, y, n, h, w, C, xb, xh, xw, scale, BP: tl.constexpr, BC: tl.constexpr):
    pixel = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)  # of the small map, over the whole batch
    offs_c = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (pixel < n)[:, None] & (offs_c < C)[None, :]
    corner = x + (pixel // (h * w)) * xb + ((pixel // w) % h) * 2 * xh + (pixel % w) * 2 * xw
    ptrs = corner[:, None] + offs_c[None, :]
    total = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(ptrs + xw, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(ptrs + xh, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(ptrs + xh + xw, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + pixel[:, None] * C + offs_c[None, :], (total * scale).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _spread_kernel(y, x, n, H, W, h, w, C, yb, yh, yw, scale, BP: tl.constexpr, BC: tl.constexpr):
    pixel = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)  # of the large map
    offs_c = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (pixel < n)[:, None] & (offs_c < C)[None, :]
    row = ((pixel // W) % H) // 2
    col = (pixel % W) // 2
    seen = ((row < h) & (col < w))[:, None]  # an odd last row or column was not pooled
    source = y + (pixel // (H * W)) * yb + row * yh + col * yw
    value = tl.load(source[:, None] + offs_c[None, :], mask=mask & seen, other=0.0).to(tl.float32)
    tl.store(x + pixel[:, None] * C + offs_c[None, :], (value * scale).to(x.dtype.element_ty), mask=mask)


def _blocks(channels: int) -> dict[str, int]:
    bc = min(128, next_power_of_2(channels))
    return {"BP": max(1, 1024 // bc), "BC": bc}


def pool_2x2(x: Tensor, scale: float = 0.25) -> Tensor:
    """(B, H, W, C) -> `scale` times the sum over each 2x2 block, (B, H // 2, W // 2, C), contiguous."""
    batch, height, width, channels = x.shape
    y = x.new_empty((batch, height // 2, width // 2, channels))
    blocks = _blocks(channels)
    n = batch * (height // 2) * (width // 2)
    launch(
        _pool_kernel,
        (cdiv(n, blocks["BP"]), cdiv(channels, blocks["BC"])),
        x,
        y,
        n,
        height // 2,
        width // 2,
        channels,
        *x.stride()[:3],
        scale,
        **blocks,
    )
    return y


def spread_2x2(y: Tensor, height: int, width: int, scale: float = 0.25) -> Tensor:
    """The transpose of `pool_2x2`: each value, times `scale`, to its four pixels of a (B, height, width, C) map."""
    batch, h, w, channels = y.shape
    x = torch.empty((batch, height, width, channels), dtype=y.dtype, device=y.device)
    blocks = _blocks(channels)
    n = batch * height * width
    launch(
        _spread_kernel,
        (cdiv(n, blocks["BP"]), cdiv(channels, blocks["BC"])),
        y,
        x,
        n,
        height,
        width,
        h,
        w,
        channels,
        *y.stride()[:3],
        scale,
        **blocks,
    )
    return x
