"""Triton kernels of `depthwise_conv2d` at 3x3: a program slides over rows and keeps three output rows in registers.

Other sizes are in `_kernels_wide`. A program owns BW columns x BC channels of one image and walks ROWS output rows (+2
of halo). Each input row is loaded once (three shifted tiles, two of which hit L1) and added into the output rows above,
at and below it, so the kernel moves one read and one write of the tensor through device memory. A concatenation costs
nothing: every part writes its own channel range of the output, and a half-resolution part is upsampled by its load
index.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch
from hybridzoo.ops.avg_pool2x2.triton import pool_2x2
from hybridzoo.ops.depthwise_conv2d._kernels_wide import wide_backward, wide_forward

MAX_PARTS = 3


@triton.jit
def _load(x, row, cols, offs_c, H, W, sh, sw, mask_c, shift):
    ok = (row >= 0) & (row < H) & (cols >= 0) & (cols < W)
    ptrs = x + (row >> shift) * sh + (cols >> shift)[:, None] * sw + offs_c[None, :]
    return tl.load(ptrs, mask=ok[:, None] & mask_c[None, :], other=0.0).to(tl.float32)


@triton.jit
def _tap(w, offs_c, mask_c, k: tl.constexpr, FLIP: tl.constexpr):
    index: tl.constexpr = 8 - k if FLIP else k
    return tl.load(w + offs_c * 9 + index, mask=mask_c, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _place(
    x0, x1, x2, H, W, c0, c1, c2, b0, b1, b2, h0, h1, h2, w0, w1, w2, s1, s2,
    PARTS: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Program id -> which part, where in it and in the output; channel tiles vary fastest: neighbours share lines.

    Part i has channels c_i, strides b_i, h_i, w_i, and the coordinates of the output shifted right by s_i (s_0 = 0).
    """
    pid = tl.program_id(0)
    n0 = tl.cdiv(c0, BC)
    n_c = n0
    if PARTS > 1:
        n1 = n0 + tl.cdiv(c1, BC)
        n_c = n1
    if PARTS > 2:
        n_c = n1 + tl.cdiv(c2, BC)
    n_w = tl.cdiv(W, BW)
    n_s = tl.cdiv(H, ROWS)
    channel = pid % n_c
    tile = pid // n_c
    cols = (tile % n_w) * BW + tl.arange(0, BW)
    row0 = ((tile // n_w) % n_s) * ROWS
    image = (tile // (n_w * n_s)).to(tl.int64)
    x, sb, sh, sw, shift, channels, first, base = x0, b0, h0, w0, 0, c0, 0, 0
    if PARTS > 1:
        second = channel >= n0
        x = tl.where(second, x1, x0)
        sb = tl.where(second, b1, b0)
        sh = tl.where(second, h1, h0)
        sw = tl.where(second, w1, w0)
        shift = tl.where(second, s1, 0)
        channels = tl.where(second, c1, c0)
        first = tl.where(second, n0, 0)
        base = tl.where(second, c0, 0)
    if PARTS > 2:
        third = channel >= n1
        x = tl.where(third, x2, x)
        sb = tl.where(third, b2, sb)
        sh = tl.where(third, h2, sh)
        sw = tl.where(third, w2, sw)
        shift = tl.where(third, s2, shift)
        channels = tl.where(third, c2, channels)
        first = tl.where(third, n1, first)
        base = tl.where(third, c0 + c1, base)
    offs_c = (channel - first) * BC + tl.arange(0, BC)
    return x + image * sb, sh, sw, shift, image, row0, cols, offs_c, offs_c < channels, base, tile


@triton.jit
def _depthwise_kernel(
    x0, x1, x2, w, bias, y, H, W, c0, c1, c2, b0, b1, b2, h0, h1, h2, p0, p1, p2, s1, s2, yb, yh, yw,
    PARTS: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
    GELU: tl.constexpr, SILU: tl.constexpr, RESIDUAL: tl.constexpr, FLIP: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    x, xh, xw, shift, image, row0, cols, offs_c, mask_c, base, _ = _place(
        x0, x1, x2, H, W, c0, c1, c2, b0, b1, b2, h0, h1, h2, p0, p1, p2, s1, s2, PARTS, ROWS, BW, BC
    )
    y += image * yb + base
    w += base * 9
    w0 = _tap(w, offs_c, mask_c, 0, FLIP)
    w1 = _tap(w, offs_c, mask_c, 1, FLIP)
    w2 = _tap(w, offs_c, mask_c, 2, FLIP)
    w3 = _tap(w, offs_c, mask_c, 3, FLIP)
    w4 = _tap(w, offs_c, mask_c, 4, FLIP)
    w5 = _tap(w, offs_c, mask_c, 5, FLIP)
    w6 = _tap(w, offs_c, mask_c, 6, FLIP)
    w7 = _tap(w, offs_c, mask_c, 7, FLIP)
    w8 = _tap(w, offs_c, mask_c, 8, FLIP)
    if RESIDUAL:
        w4 += 1.0
    if BIAS:
        added = tl.load(bias + base + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    above = tl.zeros((BW, BC), dtype=tl.float32)  # output row `row - 1`: complete once `row` has been added
    here = tl.zeros((BW, BC), dtype=tl.float32)
    left = _load(x, row0 - 1, cols - 1, offs_c, H, W, xh, xw, mask_c, shift)
    mid = _load(x, row0 - 1, cols, offs_c, H, W, xh, xw, mask_c, shift)
    right = _load(x, row0 - 1, cols + 1, offs_c, H, W, xh, xw, mask_c, shift)
    for step in tl.static_range(ROWS + 2):
        row = row0 - 1 + step
        if step < ROWS + 1:  # the next row is on its way while this one is used
            next_left = _load(x, row + 1, cols - 1, offs_c, H, W, xh, xw, mask_c, shift)
            next_mid = _load(x, row + 1, cols, offs_c, H, W, xh, xw, mask_c, shift)
            next_right = _load(x, row + 1, cols + 1, offs_c, H, W, xh, xw, mask_c, shift)
        if step >= 2:
            out = above + left * w6 + mid * w7 + right * w8
            if BIAS:
                out += added
            if GELU:
                out = 0.5 * out * (1.0 + tl.erf(out * 0.7071067811865476))
            if SILU:
                out = out / (1.0 + tl.exp(-out))
            ok = (cols < W) & (row - 1 < H)
            tl.store(
                y + (row - 1) * yh + cols[:, None] * yw + offs_c[None, :],
                out.to(y.dtype.element_ty),
                mask=ok[:, None] & mask_c[None, :],
            )
        above = here + left * w3 + mid * w4 + right * w5
        here = left * w0 + mid * w1 + right * w2
        if step < ROWS + 1:
            left = next_left
            mid = next_mid
            right = next_right


@triton.jit
def _gradient_kernel(
    x0, x1, x2, w, bias, dy, g, partial, C, H, W, c0, c1, c2, b0, b1, b2, h0, h1, h2, p0, p1, p2, s1, s2,
    db, dh, dw, gb, gh, gw,
    PARTS: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
    GELU: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Gradients of weight and bias, one partial sum a program, and g = dy * f'(conv(x)), with conv(x) recomputed."""
    x, xh, xw, shift, image, row0, cols, offs_c, mask_c, base, tile = _place(
        x0, x1, x2, H, W, c0, c1, c2, b0, b1, b2, h0, h1, h2, p0, p1, p2, s1, s2, PARTS, ROWS, BW, BC
    )
    dy += image * db + base
    g += image * gb + base
    w += base * 9
    if GELU or SILU:
        w0 = _tap(w, offs_c, mask_c, 0, False)
        w1 = _tap(w, offs_c, mask_c, 1, False)
        w2 = _tap(w, offs_c, mask_c, 2, False)
        w3 = _tap(w, offs_c, mask_c, 3, False)
        w4 = _tap(w, offs_c, mask_c, 4, False)
        w5 = _tap(w, offs_c, mask_c, 5, False)
        w6 = _tap(w, offs_c, mask_c, 6, False)
        w7 = _tap(w, offs_c, mask_c, 7, False)
        w8 = _tap(w, offs_c, mask_c, 8, False)
    t0 = _load(x, row0 - 1, cols - 1, offs_c, H, W, xh, xw, mask_c, shift)
    t1 = _load(x, row0 - 1, cols, offs_c, H, W, xh, xw, mask_c, shift)
    t2 = _load(x, row0 - 1, cols + 1, offs_c, H, W, xh, xw, mask_c, shift)
    t3 = _load(x, row0, cols - 1, offs_c, H, W, xh, xw, mask_c, shift)
    t4 = _load(x, row0, cols, offs_c, H, W, xh, xw, mask_c, shift)
    t5 = _load(x, row0, cols + 1, offs_c, H, W, xh, xw, mask_c, shift)
    s0 = tl.zeros((BW, BC), dtype=tl.float32)
    s1 = tl.zeros((BW, BC), dtype=tl.float32)
    s2 = tl.zeros((BW, BC), dtype=tl.float32)
    s3 = tl.zeros((BW, BC), dtype=tl.float32)
    s4 = tl.zeros((BW, BC), dtype=tl.float32)
    s5 = tl.zeros((BW, BC), dtype=tl.float32)
    s6 = tl.zeros((BW, BC), dtype=tl.float32)
    s7 = tl.zeros((BW, BC), dtype=tl.float32)
    s8 = tl.zeros((BW, BC), dtype=tl.float32)
    total = tl.zeros((BW, BC), dtype=tl.float32)
    if BIAS:
        added = tl.load(bias + base + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    for step in range(ROWS):
        row = row0 + step
        t6 = _load(x, row + 1, cols - 1, offs_c, H, W, xh, xw, mask_c, shift)
        t7 = _load(x, row + 1, cols, offs_c, H, W, xh, xw, mask_c, shift)
        t8 = _load(x, row + 1, cols + 1, offs_c, H, W, xh, xw, mask_c, shift)
        grad = _load(dy, row, cols, offs_c, H, W, dh, dw, mask_c, 0)
        if GELU or SILU:
            pre = t0 * w0 + t1 * w1 + t2 * w2 + t3 * w3 + t4 * w4 + t5 * w5 + t6 * w6 + t7 * w7 + t8 * w8
            if BIAS:
                pre += added
            if GELU:
                density = tl.exp(-0.5 * pre * pre) * 0.3989422804014327
                grad *= 0.5 * (1.0 + tl.erf(pre * 0.7071067811865476)) + pre * density
            else:
                sig = 1.0 / (1.0 + tl.exp(-pre))
                grad *= sig * (1.0 + pre * (1.0 - sig))
            ok = (cols < W) & (row < H)
            tl.store(
                g + row * gh + cols[:, None] * gw + offs_c[None, :],
                grad.to(g.dtype.element_ty),
                mask=ok[:, None] & mask_c[None, :],
            )
        if BIAS:
            total += grad
        s0 += grad * t0
        s1 += grad * t1
        s2 += grad * t2
        s3 += grad * t3
        s4 += grad * t4
        s5 += grad * t5
        s6 += grad * t6
        s7 += grad * t7
        s8 += grad * t8
        t0 = t3
        t1 = t4
        t2 = t5
        t3 = t6
        t4 = t7
        t5 = t8
    out = partial + tile.to(tl.int64) * (10 if BIAS else 9) * C + base + offs_c
    tl.store(out, tl.sum(s0, 0), mask=mask_c)
    tl.store(out + C, tl.sum(s1, 0), mask=mask_c)
    tl.store(out + 2 * C, tl.sum(s2, 0), mask=mask_c)
    tl.store(out + 3 * C, tl.sum(s3, 0), mask=mask_c)
    tl.store(out + 4 * C, tl.sum(s4, 0), mask=mask_c)
    tl.store(out + 5 * C, tl.sum(s5, 0), mask=mask_c)
    tl.store(out + 6 * C, tl.sum(s6, 0), mask=mask_c)
    tl.store(out + 7 * C, tl.sum(s7, 0), mask=mask_c)
    tl.store(out + 8 * C, tl.sum(s8, 0), mask=mask_c)
    if BIAS:
        tl.store(out + 9 * C, tl.sum(total, 0), mask=mask_c)


def _blocks(height: int, width: int, parts: Sequence[Tensor], *, gradient: bool) -> dict[str, int]:
    """Rows, columns and channels of a program, and its warps: 4 elements a thread, 8 bytes in bf16."""
    rows = 7 if height % 7 == 0 else 8
    if gradient:  # a loop, not unrolled: longer strips give fewer partial sums of the weight gradient
        rows = min(height, rows * 4)
    bw = 8 if width <= 24 else 16 if width % 16 == 0 else 8
    bc = 64 if all(part.shape[3] % 64 == 0 for part in parts) else 32
    return {"ROWS": rows, "BW": bw, "BC": bc, "num_warps": max(1, bw * bc // 128)}


def _arguments(parts: Sequence[Tensor], height: int) -> tuple[list[Tensor], list[int]]:
    """Three pointers, and channels, strides and shifts of three parts (the last repeated where there are fewer)."""
    three = [*parts, *[parts[-1]] * (MAX_PARTS - len(parts))]
    channels = [part.shape[3] for part in three]
    strides = [part.stride(axis) for axis in range(3) for part in three]
    return three, [*channels, *strides, *[int(part.shape[1] != height) for part in three[1:]]]


def _grid(batch: int, height: int, width: int, parts: Sequence[Tensor], blocks: dict[str, int]) -> tuple[int, int]:
    """Spatial tiles, and programs."""
    tiles = batch * cdiv(height, blocks["ROWS"]) * cdiv(width, blocks["BW"])
    return tiles, tiles * sum(cdiv(part.shape[3], blocks["BC"]) for part in parts)


def _launch(
    parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None, y: Tensor, *, epilogue: str, flip: bool = False
) -> Tensor:
    batch, height, width, _ = y.shape
    blocks = _blocks(height, width, parts, gradient=False)
    pointers, numbers = _arguments(parts, height)
    launch(_depthwise_kernel, (_grid(batch, height, width, parts, blocks)[1],),
        *pointers, weight, weight if bias is None else bias, y, height, width, *numbers, *y.stride()[:3],
        PARTS=len(parts), GELU=epilogue == "gelu", SILU=epilogue == "silu", RESIDUAL=epilogue == "residual",
        FLIP=flip, BIAS=bias is not None, **blocks,
    )  # fmt: skip
    return y


def depthwise_forward(parts: Sequence[Tensor], weight: Tensor, epilogue: str, bias: Tensor | None = None) -> Tensor:
    """The Triton forward; arguments as checked by `depthwise_conv2d`."""
    if weight.shape[3] != 3:
        return wide_forward(parts[0], weight)
    y = parts[0].new_empty((*parts[0].shape[:3], weight.shape[0]))
    return _launch(parts, weight, bias, y, epilogue=epilogue)


def depthwise_backward(
    dy: Tensor, parts: Sequence[Tensor], weight: Tensor, epilogue: str, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradient of the concatenated, upsampled input (B, H, W, C), of weight and bias (fp32 sums, in its dtype)."""
    if weight.shape[3] != 3:
        return *wide_backward(dy, parts[0], weight), None
    batch, height, width, channels = dy.shape
    curved, sums = epilogue in ("gelu", "silu"), 9 if bias is None else 10
    g = torch.empty_like(dy) if curved else dy
    blocks = _blocks(height, width, parts, gradient=True)
    pointers, numbers = _arguments(parts, height)
    tiles, programs = _grid(batch, height, width, parts, blocks)
    partial = torch.empty((tiles, sums, channels), dtype=torch.float32, device=dy.device)
    launch(_gradient_kernel, (programs,),
        *pointers, weight, weight if bias is None else bias, dy, g, partial, channels, height, width, *numbers,
        *dy.stride()[:3], *g.stride()[:3],
        PARTS=len(parts), GELU=epilogue == "gelu", SILU=epilogue == "silu", BIAS=bias is not None, **blocks,
    )  # fmt: skip
    dx = torch.empty(dy.shape, dtype=parts[0].dtype, device=dy.device)
    _launch([g], weight, None, dx, epilogue="residual" if epilogue == "residual" else "none", flip=True)
    total = partial.sum(0)
    dw = total[:9].t().reshape(weight.shape).to(weight.dtype)
    return dx, dw, None if bias is None else total[9].to(bias.dtype)


def part_gradients(dx: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """The concatenation's gradient, cut up into views; a part that was upsampled gets the sum over each 2x2."""
    cut = dx.split([part.shape[3] for part in parts], dim=3)
    return [
        grad if part.shape == grad.shape else pool_2x2(grad, scale=1.0) for part, grad in zip(parts, cut, strict=True)
    ]
