"""Triton kernels of `depthwise_conv2d`: a program slides over rows and keeps three output rows in registers.

A program owns BW columns x BC channels of one image and walks ROWS output rows (+2 of halo). Each input row is
loaded once (three shifted tiles, two of which hit L1) and added into the output rows above, at and below it, so the
kernel moves one read and one write of the tensor through device memory. A concatenation costs nothing: every part
writes its own channel range of the output, and a half-resolution part is upsampled by its load index.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _load(x, row, cols, offs_c, H, W, sh, sw, mask_c, UP: tl.constexpr):
    ok = (row >= 0) & (row < H) & (cols >= 0) & (cols < W)
    ptrs = x + (row // UP) * sh + (cols // UP)[:, None] * sw + offs_c[None, :]
    return tl.load(ptrs, mask=ok[:, None] & mask_c[None, :], other=0.0).to(tl.float32)


@triton.jit
def _tap(w, offs_c, mask_c, k: tl.constexpr, FLIP: tl.constexpr):
    index: tl.constexpr = 8 - k if FLIP else k
    return tl.load(w + offs_c * 9 + index, mask=mask_c, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _place(H, W, C, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr):
    """Program id -> image, first row, columns, channels; channel tiles vary fastest so that neighbours share lines."""
    pid = tl.program_id(0)
    n_c = tl.cdiv(C, BC)
    n_w = tl.cdiv(W, BW)
    n_s = tl.cdiv(H, ROWS)
    channel = pid % n_c
    tile = pid // n_c
    cols = (tile % n_w) * BW + tl.arange(0, BW)
    strip = (tile // n_w) % n_s
    image = tile // (n_w * n_s)
    offs_c = channel * BC + tl.arange(0, BC)
    return image.to(tl.int64), strip * ROWS, cols, offs_c, tile


@triton.jit
def _depthwise_kernel(
    x, w, y, H, W, C, xb, xh, xw, yb, yh, yw,
    ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
    UP: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr, FLIP: tl.constexpr,
):  # fmt: skip
    image, row0, cols, offs_c, _ = _place(H, W, C, ROWS, BW, BC)
    mask_c = offs_c < C
    x += image * xb
    y += image * yb
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
    above = tl.zeros((BW, BC), dtype=tl.float32)  # output row `row - 1`: complete once `row` has been added
    here = tl.zeros((BW, BC), dtype=tl.float32)
    left = _load(x, row0 - 1, cols - 1, offs_c, H, W, xh, xw, mask_c, UP)
    mid = _load(x, row0 - 1, cols, offs_c, H, W, xh, xw, mask_c, UP)
    right = _load(x, row0 - 1, cols + 1, offs_c, H, W, xh, xw, mask_c, UP)
    for step in tl.static_range(ROWS + 2):
        row = row0 - 1 + step
        if step < ROWS + 1:  # the next row is on its way while this one is used
            next_left = _load(x, row + 1, cols - 1, offs_c, H, W, xh, xw, mask_c, UP)
            next_mid = _load(x, row + 1, cols, offs_c, H, W, xh, xw, mask_c, UP)
            next_right = _load(x, row + 1, cols + 1, offs_c, H, W, xh, xw, mask_c, UP)
        if step >= 2:
            out = above + left * w6 + mid * w7 + right * w8
            if GELU:
                out = 0.5 * out * (1.0 + tl.erf(out * 0.7071067811865476))
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
    x, w, dy, g, partial, H, W, C, xb, xh, xw, db, dh, dw, gb, gh, gw,
    ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, UP: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    """Weight gradient, one partial sum a program, and g = dy * gelu'(conv(x)), with conv(x) recomputed."""
    image, row0, cols, offs_c, tile = _place(H, W, C, ROWS, BW, BC)
    mask_c = offs_c < C
    x += image * xb
    dy += image * db
    g += image * gb
    if GELU:
        w0 = _tap(w, offs_c, mask_c, 0, False)
        w1 = _tap(w, offs_c, mask_c, 1, False)
        w2 = _tap(w, offs_c, mask_c, 2, False)
        w3 = _tap(w, offs_c, mask_c, 3, False)
        w4 = _tap(w, offs_c, mask_c, 4, False)
        w5 = _tap(w, offs_c, mask_c, 5, False)
        w6 = _tap(w, offs_c, mask_c, 6, False)
        w7 = _tap(w, offs_c, mask_c, 7, False)
        w8 = _tap(w, offs_c, mask_c, 8, False)
    x0 = _load(x, row0 - 1, cols - 1, offs_c, H, W, xh, xw, mask_c, UP)
    x1 = _load(x, row0 - 1, cols, offs_c, H, W, xh, xw, mask_c, UP)
    x2 = _load(x, row0 - 1, cols + 1, offs_c, H, W, xh, xw, mask_c, UP)
    x3 = _load(x, row0, cols - 1, offs_c, H, W, xh, xw, mask_c, UP)
    x4 = _load(x, row0, cols, offs_c, H, W, xh, xw, mask_c, UP)
    x5 = _load(x, row0, cols + 1, offs_c, H, W, xh, xw, mask_c, UP)
    s0 = tl.zeros((BW, BC), dtype=tl.float32)
    s1 = tl.zeros((BW, BC), dtype=tl.float32)
    s2 = tl.zeros((BW, BC), dtype=tl.float32)
    s3 = tl.zeros((BW, BC), dtype=tl.float32)
    s4 = tl.zeros((BW, BC), dtype=tl.float32)
    s5 = tl.zeros((BW, BC), dtype=tl.float32)
    s6 = tl.zeros((BW, BC), dtype=tl.float32)
    s7 = tl.zeros((BW, BC), dtype=tl.float32)
    s8 = tl.zeros((BW, BC), dtype=tl.float32)
    for step in range(ROWS):
        row = row0 + step
        x6 = _load(x, row + 1, cols - 1, offs_c, H, W, xh, xw, mask_c, UP)
        x7 = _load(x, row + 1, cols, offs_c, H, W, xh, xw, mask_c, UP)
        x8 = _load(x, row + 1, cols + 1, offs_c, H, W, xh, xw, mask_c, UP)
        grad = _load(dy, row, cols, offs_c, H, W, dh, dw, mask_c, 1)
        if GELU:
            pre = x0 * w0 + x1 * w1 + x2 * w2 + x3 * w3 + x4 * w4 + x5 * w5 + x6 * w6 + x7 * w7 + x8 * w8
            density = tl.exp(-0.5 * pre * pre) * 0.3989422804014327
            grad *= 0.5 * (1.0 + tl.erf(pre * 0.7071067811865476)) + pre * density
            ok = (cols < W) & (row < H)
            tl.store(
                g + row * gh + cols[:, None] * gw + offs_c[None, :],
                grad.to(g.dtype.element_ty),
                mask=ok[:, None] & mask_c[None, :],
            )
        s0 += grad * x0
        s1 += grad * x1
        s2 += grad * x2
        s3 += grad * x3
        s4 += grad * x4
        s5 += grad * x5
        s6 += grad * x6
        s7 += grad * x7
        s8 += grad * x8
        x0 = x3
        x1 = x4
        x2 = x5
        x3 = x6
        x4 = x7
        x5 = x8
    out = partial + tile.to(tl.int64) * 9 * C + offs_c
    tl.store(out, tl.sum(s0, 0), mask=mask_c)
    tl.store(out + C, tl.sum(s1, 0), mask=mask_c)
    tl.store(out + 2 * C, tl.sum(s2, 0), mask=mask_c)
    tl.store(out + 3 * C, tl.sum(s3, 0), mask=mask_c)
    tl.store(out + 4 * C, tl.sum(s4, 0), mask=mask_c)
    tl.store(out + 5 * C, tl.sum(s5, 0), mask=mask_c)
    tl.store(out + 6 * C, tl.sum(s6, 0), mask=mask_c)
    tl.store(out + 7 * C, tl.sum(s7, 0), mask=mask_c)
    tl.store(out + 8 * C, tl.sum(s8, 0), mask=mask_c)


def _blocks(height: int, width: int, channels: int, *, gradient: bool) -> dict[str, int]:
    """Rows, columns and channels of a program, and its warps: 4 elements a thread, 8 bytes in bf16."""
    rows = 7 if height % 7 == 0 else 8
    if gradient and height >= 14:
        rows *= 2  # fewer partial sums of the weight gradient
    bw = 8 if width <= 8 or 8 < width <= 24 else 16
    bc = 64 if channels % 64 == 0 else 32
    return {"ROWS": rows, "BW": bw, "BC": bc, "num_warps": max(1, bw * bc // 128)}


def _launch(x: Tensor, weight: Tensor, y: Tensor, *, up: int, gelu: bool, residual: bool, flip: bool) -> None:
    batch, height, width, channels = y.shape
    blocks = _blocks(height, width, channels, gradient=False)
    tiles = batch * triton.cdiv(height, blocks["ROWS"]) * triton.cdiv(width, blocks["BW"])
    _depthwise_kernel[(tiles * triton.cdiv(channels, blocks["BC"]),)](
        x, weight, y, height, width, channels, *x.stride()[:3], *y.stride()[:3],
        UP=up, GELU=gelu, RESIDUAL=residual, FLIP=flip, **blocks,
    )  # fmt: skip


def _ranges(parts: list[Tensor]) -> list[tuple[int, int]]:
    ends, total = [], 0
    for part in parts:
        ends.append((total, total + part.shape[3]))
        total += part.shape[3]
    return ends


def depthwise_forward(parts: list[Tensor], weight: Tensor, epilogue: str) -> Tensor:
    """The Triton forward; arguments as checked by `depthwise_conv2d`."""
    batch, height, width, _ = parts[0].shape
    y = parts[0].new_empty((batch, height, width, weight.shape[0]))
    for part, (start, end) in zip(parts, _ranges(parts), strict=True):
        _launch(
            part, weight[start:end], y[..., start:end], up=height // part.shape[1],
            gelu=epilogue == "gelu", residual=epilogue == "residual", flip=False,
        )  # fmt: skip
    return y


def depthwise_backward(dy: Tensor, parts: list[Tensor], weight: Tensor, epilogue: str) -> list[Tensor]:
    """Gradients of the parts, then of the weight (fp32 sums, in the weight's dtype)."""
    batch, height, width, _ = parts[0].shape
    gelu, residual = epilogue == "gelu", epilogue == "residual"
    grads, weight_grads = [], []
    for part, (start, end) in zip(parts, _ranges(parts), strict=True):
        channels, up = end - start, height // part.shape[1]
        dy_part, weight_part = dy[..., start:end], weight[start:end]
        g = torch.empty((batch, height, width, channels), dtype=dy.dtype, device=dy.device) if gelu else dy_part
        blocks = _blocks(height, width, channels, gradient=True)
        tiles = batch * triton.cdiv(height, blocks["ROWS"]) * triton.cdiv(width, blocks["BW"])
        partial = torch.empty((tiles, 9, channels), dtype=torch.float32, device=dy.device)
        _gradient_kernel[(tiles * triton.cdiv(channels, blocks["BC"]),)](
            part, weight_part, dy_part, g, partial, height, width, channels,
            *part.stride()[:3], *dy_part.stride()[:3], *g.stride()[:3], UP=up, GELU=gelu, **blocks,
        )  # fmt: skip
        weight_grads.append(partial.sum(0).t())  # (C_i, 9)
        dx = torch.empty((batch, height, width, channels), dtype=part.dtype, device=dy.device)
        _launch(g, weight_part, dx, up=1, gelu=False, residual=residual, flip=True)
        if up == 2:  # nearest upsampling copies each pixel to 2x2
            dx = dx.view(batch, height // 2, 2, width // 2, 2, channels).sum((2, 4), dtype=torch.float32).to(part.dtype)
        grads.append(dx)
    grads.append(torch.cat(weight_grads).view(weight.shape).to(weight.dtype))
    return grads
