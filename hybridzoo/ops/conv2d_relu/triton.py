"""Triton kernel of `conv2d_relu`: an implicit matrix product, one row an output position, K^2 C inputs.

A step of the inner loop takes BK channels of one tap, so that the inputs of a row lie side by side. With few channels
(an image's 3) a step takes one row of taps instead, whose pixels lie side by side: WIDE.

Legend: B batch, H W input, P Q output, C inputs, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2
from hybridzoo.ops._split_product import add_product

PROGRAMS = 264  # two to a multiprocessor of an H100
ENOUGH = 384  # programs of two warps, from which on a larger tile is worth its lower number
GROUPS = 512  # tiles of 64 x 64, from which on programs of warp groups are faster than those of two warps
WIDE_CHANNELS = 4  # most that count as few; others are filled up to this many


@triton.jit
def conv_kernel(
    x, w, bias, residual, y, ROWS, H, W, P, Q, C, N, sb, sh, sw, STRIDE, STEPS,
    K: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """w: (N, steps, BK), filled up with zeros. STEPS: steps of a tap, or of all the taps where WIDE is not 0.

    PRECISION: "split", by `_split_product`, or Triton's name.
    """
    pid = tl.program_id(0)
    across = tl.cdiv(N, BN)
    rows = (pid // across) * BM + tl.arange(0, BM)
    cols = (pid % across) * BN + tl.arange(0, BN)
    ks = tl.arange(0, BK)
    ok_m = rows < ROWS
    image = rows // (P * Q)
    down = (rows // Q) % P * STRIDE - K // 2
    right = rows % Q * STRIDE - K // 2
    corner = x + image.to(tl.int64) * sb + down * sh + right * sw
    taps = w + cols[None, :] * (K * STEPS if WIDE else K * K * STEPS) * BK + ks[:, None]
    ok_n = (cols < N)[None, :]
    out = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(0, K * STEPS if WIDE else K * K * STEPS):
        if WIDE:
            i = step // STEPS
            first = step % STEPS * BK
            pixel = right[:, None] + ((first + ks) // WIDE)[None, :]
            ok = (ok_m & (down + i >= 0) & (down + i < H))[:, None] & (pixel >= 0) & (pixel < W)
            a = tl.load(corner[:, None] + i * sh + (first + ks)[None, :], mask=ok, other=0.0)
        else:
            tap = step // STEPS
            i = tap // K
            j = tap % K
            first = step % STEPS * BK
            inside = ok_m & (down + i >= 0) & (down + i < H) & (right + j >= 0) & (right + j < W)
            ok = inside[:, None]
            if not EVEN:
                ok = ok & (ks < C - first)[None, :]
            a = tl.load(corner[:, None] + (i * sh + j * sw + first) + ks[None, :], mask=ok, other=0.0)
        b = tl.load(taps, mask=ok_n, other=0.0)
        if PRECISION == "split":
            out = add_product(a, b, out)
        else:
            out = tl.dot(a, b, out, input_precision=PRECISION)
        taps += BK
    at = rows.to(tl.int64)[:, None] * N + cols[None, :]
    ok = ok_m[:, None] & ok_n
    out += tl.load(bias + cols, mask=cols < N, other=0.0)[None, :]
    if RESIDUAL:
        out += tl.load(residual + at, mask=ok, other=0.0)
    if RELU:
        out = tl.maximum(out, 0.0)
    tl.store(y + at, out, mask=ok)


def _packed(weight: Tensor, wide: int, block: int) -> Tensor:
    """(N, C, K, K) -> (N, steps, BK): per tap, or per row of taps, channels innermost."""
    outputs, channels, k, _ = weight.shape
    rows = weight.permute(0, 2, 3, 1)
    if wide:
        rows = F.pad(rows, (0, wide - channels)).reshape(outputs, k, k * wide)
    else:
        rows = rows.reshape(outputs, k * k, channels)
    short = -rows.shape[2] % block
    return (F.pad(rows, (0, short)) if short else rows).contiguous()


def _tile(rows: int, outputs: int, tf32: bool) -> dict[str, Any]:
    """Rows and outputs of a program, its step and its way to multiply.

    One product takes warp groups, three take them where the convolution is large, else `_split_product`.
    """
    columns = max(16, min(64, next_power_of_2(outputs)))
    if not tf32 and cdiv(rows, 64) * cdiv(outputs, 64) < GROUPS:
        tile = {"PRECISION": "split", "num_warps": 2, "num_stages": 3, "BK": 32}
        many = cdiv(rows, 64) * cdiv(outputs, 32) >= ENOUGH
        return {**tile, "BM": 64 if many else 32, "BN": min(32, columns)}
    tile = {"PRECISION": "tf32" if tf32 else "tf32x3", "num_stages": 3, "BN": columns, "BK": 32}
    if cdiv(rows, 128) * cdiv(outputs, 64) >= PROGRAMS:  # two programs to a multiprocessor
        return {**tile, "BM": 128, "num_warps": 8, "maxnreg": 128}
    return {**tile, "BM": 64, "num_warps": 4}


def conv2d_forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, relu: bool, tf32: bool
) -> Tensor:
    """See `conv2d_relu`; `tf32`: one product in place of three."""
    batch, height, width, channels = x.shape
    outputs, _, k, _ = weight.shape
    wide = WIDE_CHANNELS if channels <= WIDE_CHANNELS and k > 1 else 0
    if wide:
        x = F.pad(x, (0, wide - channels)).contiguous()
    elif x.stride(3) != 1:
        x = x.contiguous()
    down, right = cdiv(height, stride), cdiv(width, stride)
    rows = batch * down * right
    tile = _tile(rows, outputs, tf32)
    packed = _packed(weight, wide, tile["BK"])
    y = torch.empty((batch, down, right, outputs), dtype=x.dtype, device=x.device)
    added = y if residual is None else residual.contiguous()
    launch(conv_kernel, (cdiv(rows, tile["BM"]) * cdiv(outputs, tile["BN"]),),
        x, packed, bias, added, y, rows, height, width, down, right, channels, outputs,
        *x.stride()[:3], stride, packed.shape[1] * packed.shape[2] // (tile["BK"] * (k if wide else k * k)),
        K=k, WIDE=wide, EVEN=channels % tile["BK"] == 0, RESIDUAL=residual is not None, RELU=relu,
        **tile,
    )  # fmt: skip
    return y
