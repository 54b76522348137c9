"""Triton kernels of `depthwise_conv2d` for 5x5, 7x7 and other odd kernels: one map, no epilogue.

A program owns BW columns x BC channels of ROWS rows of one image and reads each input once a tap, through L1. For the
gradient of the weight it owns one row of taps, so that their sums stay in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2


@triton.jit
def _place(C, H, W, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr):
    """Image, first row, columns, channels, and the number of the spatial tile."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    tile = pid // blocks
    across, down = tl.cdiv(W, BW), tl.cdiv(H, ROWS)
    c = (pid % blocks) * BC + tl.arange(0, BC)
    cols = (tile % across) * BW + tl.arange(0, BW)
    return (tile // (across * down)).to(tl.int64), ((tile // across) % down) * ROWS, cols, c, tile


@triton.jit
def _load(x, row, cols, c, H, W, C, sh, sw):
    ok = (row >= 0) & (row < H) & (cols >= 0) & (cols < W)
    at = x + row * sh + cols[:, None] * sw + c[None, :]
    return tl.load(at, mask=ok[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)


@triton.jit
def wide_kernel(
    x, w, y, C, H, W, sb, sh, sw,
    K: tl.constexpr, FLIP: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """w: (K * K, C)."""
    image, row0, cols, c, _ = _place(C, H, W, ROWS, BW, BC)
    x += image * sb
    y += image * H * W * C
    for row in range(row0, tl.minimum(row0 + ROWS, H)):
        out = tl.zeros((BW, BC), dtype=tl.float32)
        for i in range(0, K):
            for j in tl.static_range(K):
                index = K * K - 1 - i * K - j if FLIP else i * K + j
                tap = tl.load(w + index * C + c, mask=c < C, other=0.0).to(tl.float32)
                out += _load(x, row + i - K // 2, cols + j - K // 2, c, H, W, C, sh, sw) * tap[None, :]
        at = y + (row * W + cols)[:, None] * C + c[None, :]
        tl.store(at, out.to(y.dtype.element_ty), mask=(cols < W)[:, None] & (c < C)[None, :])


@triton.jit
def wide_gradient_kernel(
    x, dy, partial, C, H, W, sb, sh, sw, db, dh, dw,
    K: tl.constexpr, KP: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """One partial sum (tiles, K * K, C) a program; the second axis of the grid is the row of taps."""
    image, row0, cols, c, tile = _place(C, H, W, ROWS, BW, BC)
    i = tl.program_id(1)
    x += image * sb
    dy += image * db
    j = tl.arange(0, KP)
    shifted = cols[None, :] + j[:, None] - K // 2  # (KP, BW)
    at = shifted[:, :, None] * sw + c[None, None, :]
    inside = ((shifted >= 0) & (shifted < W) & (j < K)[:, None])[:, :, None] & (c < C)[None, None, :]
    sums = tl.zeros((KP, BW, BC), dtype=tl.float32)
    for row in range(row0, tl.minimum(row0 + ROWS, H)):
        grad = _load(dy, row, cols, c, H, W, C, dh, dw)
        other = row + i - K // 2
        taps = tl.load(x + other * sh + at, mask=inside & (other >= 0) & (other < H), other=0.0)
        sums += taps.to(tl.float32) * grad[None, :, :]
    out = partial + (tile.to(tl.int64) * K + i) * K * C + j[:, None] * C + c[None, :]
    tl.store(out, tl.sum(sums, 1), mask=(j < K)[:, None] & (c < C)[None, :])


def _blocks(height: int, width: int, channels: int, rows: int) -> dict[str, int]:
    bw = 8 if width <= 8 else 16
    bc = 64 if channels % 64 == 0 else 32
    return {"ROWS": min(rows, height), "BW": bw, "BC": bc, "num_warps": max(1, bw * bc // 256)}


def _programs(shape: torch.Size, blocks: dict[str, int]) -> tuple[int, int]:
    """Spatial tiles, and programs."""
    batch, height, width, channels = shape
    tiles = batch * cdiv(height, blocks["ROWS"]) * cdiv(width, blocks["BW"])
    return tiles, tiles * cdiv(channels, blocks["BC"])


def wide_forward(x: Tensor, weight: Tensor, *, flip: bool = False) -> Tensor:
    """(B, H, W, C), channels contiguous, and (C, 1, K, K) -> (B, H, W, C)."""
    _, height, width, channels = x.shape
    taps = weight.reshape(channels, -1).t().contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    blocks = _blocks(height, width, channels, 4)
    launch(wide_kernel, (_programs(x.shape, blocks)[1],),
        x, taps, y, channels, height, width, *x.stride()[:3], K=weight.shape[3], FLIP=flip, **blocks,
    )  # fmt: skip
    return y


def wide_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight (fp32 sums, in its dtype)."""
    _, height, width, channels = x.shape
    k = weight.shape[3]
    blocks = _blocks(height, width, channels, 16)
    tiles, programs = _programs(x.shape, blocks)
    partial = torch.empty((tiles, k * k, channels), dtype=torch.float32, device=x.device)
    launch(wide_gradient_kernel, (programs, k),
        x, dy, partial, channels, height, width, *x.stride()[:3], *dy.stride()[:3],
        K=k, KP=next_power_of_2(k), **blocks,
    )  # fmt: skip
    return wide_forward(dy, weight, flip=True), partial.sum(0).t().reshape(weight.shape).to(weight.dtype)
