"""Triton kernels of `max_pool3x3`: the winning tap is kept in one byte, not in torch's eight, and only for training."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch


@triton.jit
def _load(x, row, cols, offs_c, H, W, sh, sw, mask_c, OTHER: tl.constexpr):
    ok = (row >= 0) & (row < H) & (cols >= 0) & (cols < W)
    return tl.load(x + row * sh + cols[:, None] * sw + offs_c[None, :], mask=ok[:, None] & mask_c[None, :], other=OTHER)


@triton.jit
def _row_max(x, row, cols, offs_c, H, W, sh, sw, mask_c):
    """Maximum over three columns and the first column that has it; NaN wins, as in torch."""
    best = _load(x, row, cols - 1, offs_c, H, W, sh, sw, mask_c, float("-inf")).to(tl.float32)
    tap = tl.zeros(best.shape, dtype=tl.int32)
    mid = _load(x, row, cols, offs_c, H, W, sh, sw, mask_c, float("-inf")).to(tl.float32)
    take = (mid > best) | (mid != mid)
    best = tl.where(take, mid, best)
    tap = tl.where(take, 1, tap)
    right = _load(x, row, cols + 1, offs_c, H, W, sh, sw, mask_c, float("-inf")).to(tl.float32)
    take = (right > best) | (right != right)
    return tl.where(take, right, best), tl.where(take, 2, tap)


@triton.jit
def _place(H, W, C, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr):
    pid = tl.program_id(0)
    n_c = tl.cdiv(C, BC)
    n_w = tl.cdiv(W, BW)
    n_s = tl.cdiv(H, ROWS)
    tile = pid // n_c
    cols = (tile % n_w) * BW + tl.arange(0, BW)
    image = tile // (n_w * n_s)
    return image.to(tl.int64), ((tile // n_w) % n_s) * ROWS, cols, (pid % n_c) * BC + tl.arange(0, BC)


@triton.jit
def _forward_kernel(
    x, y, taps, H, W, C, xb, xh, xw,
    ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    image, row0, cols, offs_c = _place(H, W, C, ROWS, BW, BC)
    mask_c = offs_c < C
    x += image * xb
    y += image * H * W * C
    taps += image * H * W * C
    above, above_tap = _row_max(x, row0 - 1, cols, offs_c, H, W, xh, xw, mask_c)
    here, here_tap = _row_max(x, row0, cols, offs_c, H, W, xh, xw, mask_c)
    for step in range(ROWS):
        row = row0 + step
        below, below_tap = _row_max(x, row + 1, cols, offs_c, H, W, xh, xw, mask_c)
        take = (here > above) | (here != here)
        best = tl.where(take, here, above)
        tap = tl.where(take, here_tap + 3, above_tap)
        take = (below > best) | (below != below)
        best = tl.where(take, below, best)
        tap = tl.where(take, below_tap + 6, tap)
        ok = ((cols < W) & (row < H))[:, None] & mask_c[None, :]
        offsets = (row * W + cols)[:, None] * C + offs_c[None, :]
        tl.store(y + offsets, best.to(y.dtype.element_ty), mask=ok)
        if SAVE:
            tl.store(taps + offsets, tap.to(tl.uint8), mask=ok)
        above = here
        above_tap = here_tap
        here = below
        here_tap = below_tap


@triton.jit
def _won(dy, taps, row, cols, offs_c, H, W, C, dh, dw, mask_c, A: tl.constexpr):
    """Gradient that the windows of output row `row` send to the input row they call A (0 above, 1 same, 2 below)."""
    total = tl.zeros((cols.shape[0], offs_c.shape[0]), dtype=tl.float32)
    for shift in tl.static_range(3):  # window column = cols + shift - 1, so this pixel is its tap 2 - shift
        grad = _load(dy, row, cols + shift - 1, offs_c, H, W, dh, dw, mask_c, 0.0).to(tl.float32)
        tap = _load(taps, row, cols + shift - 1, offs_c, H, W, W * C, C, mask_c, 255)
        total += tl.where(tap.to(tl.int32) == 3 * A + 2 - shift, grad, 0.0)
    return total


@triton.jit
def _backward_kernel(
    dy, taps, dx, H, W, C, db, dh, dw, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    image, row0, cols, offs_c = _place(H, W, C, ROWS, BW, BC)
    mask_c = offs_c < C
    dy += image * db
    taps += image * H * W * C
    dx += image * H * W * C
    for step in range(ROWS):
        row = row0 + step
        total = _won(dy, taps, row - 1, cols, offs_c, H, W, C, dh, dw, mask_c, 2)
        total += _won(dy, taps, row, cols, offs_c, H, W, C, dh, dw, mask_c, 1)
        total += _won(dy, taps, row + 1, cols, offs_c, H, W, C, dh, dw, mask_c, 0)
        ok = ((cols < W) & (row < H))[:, None] & mask_c[None, :]
        tl.store(dx + (row * W + cols)[:, None] * C + offs_c[None, :], total.to(dx.dtype.element_ty), mask=ok)


def _blocks(height: int, width: int, channels: int) -> dict[str, int]:
    bw = 8 if width <= 24 else 16
    bc = 64 if channels % 64 == 0 else 32 if channels > 16 else 16
    return {"ROWS": 7 if height % 7 == 0 else 8, "BW": bw, "BC": bc, "num_warps": max(1, bw * bc // 128)}


def _grid(shape: torch.Size, blocks: dict[str, int]) -> tuple[int]:
    batch, height, width, channels = shape
    tiles = batch * cdiv(height, blocks["ROWS"]) * cdiv(width, blocks["BW"])
    return (tiles * cdiv(channels, blocks["BC"]),)


def max_pool_forward(x: Tensor, save_taps: bool) -> tuple[Tensor, Tensor]:
    """Pooled tensor and, if `save_taps`, the winning tap (0 to 8) of each window as uint8 (else empty)."""
    y = x.new_empty(x.shape)
    taps = torch.empty(x.shape if save_taps else (0,), dtype=torch.uint8, device=x.device)
    blocks = _blocks(*x.shape[1:])
    launch(
        _forward_kernel,
        _grid(x.shape, blocks),
        x,
        y,
        taps if save_taps else y,
        *x.shape[1:],
        *x.stride()[:3],
        SAVE=save_taps,
        **blocks,
    )
    return y, taps


def max_pool_backward(dy: Tensor, taps: Tensor) -> Tensor:
    """Each window's gradient goes to the tap that won it; a gather, so the result does not depend on timing."""
    dx = torch.empty(taps.shape, dtype=dy.dtype, device=dy.device)
    blocks = _blocks(*taps.shape[1:])
    launch(_backward_kernel, _grid(taps.shape, blocks), dy, taps, dx, *taps.shape[1:], *dy.stride()[:3], **blocks)
    return dx
