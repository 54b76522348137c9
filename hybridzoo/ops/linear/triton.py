"""Triton kernels of `linear` in fp32, products as three TF32 ones: two warps a program (see `_split_product`), but for
forward products large enough to fill the GPU with programs of eight.

The weight's gradient sums over all rows for few numbers: parts of the rows give every multiprocessor some, and their
sums are added in a fixed order, so that the result does not depend on scheduling.

Legend: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch
from hybridzoo.ops._split_product import add_product

PROGRAMS = 528  # of the weight's gradient, four to a multiprocessor of an H100, as its registers allow
ENOUGH = 384  # programs of a product, from which on a larger tile is worth its lower number
LARGE = 264  # programs of eight warps, two to a multiprocessor, from which on they are faster than those of two


@triton.jit
def product_kernel(
    x, w, bias, y, M, N, K, sx, wn, wk,
    BIAS: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y (M, N) = x w (+ bias); the element (k, n) of w lies at `k * wk + n * wn`.

    EVEN: K is a multiple of BK. SPLIT: the three products by `_split_product`, else by Triton.
    """
    pid = tl.program_id(0)
    across = tl.cdiv(N, BN)
    rows = (pid // across).to(tl.int64) * BM + tl.arange(0, BM)
    cols = (pid % across) * BN + tl.arange(0, BN)
    ks = tl.arange(0, BK)
    left = x + rows[:, None] * sx + ks[None, :]
    right = w + ks[:, None] * wk + cols[None, :] * wn
    ok_m, ok_n = (rows < M)[:, None], (cols < N)[None, :]
    out = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        if EVEN:
            a = tl.load(left, mask=ok_m, other=0.0)
            b = tl.load(right, mask=ok_n, other=0.0)
        else:
            a = tl.load(left, mask=ok_m & (ks < K - k)[None, :], other=0.0)
            b = tl.load(right, mask=ok_n & (ks < K - k)[:, None], other=0.0)
        if SPLIT:
            out = add_product(a, b, out)
        else:
            out = tl.dot(a, b, out, input_precision="tf32x3")
        left += BK
        right += BK * wk
    if BIAS:
        out += tl.load(bias + cols, mask=cols < N, other=0.0)[None, :]
    tl.store(y + rows[:, None] * N + cols[None, :], out, mask=ok_m & ok_n)


@triton.jit
def weight_gradient_kernel(
    dy, x, partial, M, N, K, sdy, sx, PER,
    BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Sums over PER rows (axis 1 of the grid: which) of dy^T x, (N, K), and behind it those of dy, (N,)."""
    pid = tl.program_id(0)
    part = tl.program_id(1).to(tl.int64)
    across = tl.cdiv(K, BK)
    cols = (pid // across) * BN + tl.arange(0, BN)
    ks = (pid % across) * BK + tl.arange(0, BK)
    start = part * PER
    count = tl.minimum(PER, M - start).to(tl.int32)
    rows = tl.arange(0, BM)
    left = dy + (start + rows)[None, :] * sdy + cols[:, None]
    right = x + (start + rows)[:, None] * sx + ks[None, :]
    ok_n, ok_k = (cols < N)[:, None], (ks < K)[None, :]
    out = tl.zeros((BN, BK), dtype=tl.float32)
    total = tl.zeros((BN,), dtype=tl.float32)
    for m in range(0, count, BM):
        ok = rows < count - m
        a = tl.load(left, mask=ok[None, :] & ok_n, other=0.0)
        b = tl.load(right, mask=ok[:, None] & ok_k, other=0.0)
        out = add_product(a, b, out)
        if BIAS:
            total += tl.sum(a, 1)
        left += BM * sdy
        right += BM * sx
    partial += part * ((K + 1) * N if BIAS else K * N)
    tl.store(partial + cols[:, None] * K + ks[None, :], out, mask=ok_n & ok_k)
    if BIAS:
        tl.store(partial + N * K + cols, total, mask=(cols < N) & (pid % across == 0))


def _tile(rows: int, cols: int, forward: bool) -> dict[str, Any]:
    """Rows and columns of a program, and its step: the largest tile that still gives every multiprocessor enough."""
    if forward and cdiv(rows, 128) * cdiv(cols, 64) >= LARGE:
        width = 64 if cols > 32 else 32
        return {"SPLIT": False, "BM": 128, "BN": width, "BK": 32, "num_warps": 8, "num_stages": 3, "maxnreg": 128}
    wide = not 0 < cols % 64 <= 32  # else half of a row of tiles would lie outside
    for bm, bn in ((64, 64), (64, 32)) if wide else ((64, 32),):
        if cdiv(rows, bm) * cdiv(cols, bn) >= ENOUGH:
            return {"SPLIT": True, "BM": bm, "BN": bn, "BK": 16, "num_warps": 2, "num_stages": 3}
    return {"SPLIT": True, "BM": 32, "BN": 32, "BK": 32, "num_warps": 2, "num_stages": 3}


def _unit(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _product(x: Tensor, w: Tensor, bias: Tensor | None, *, forward: bool) -> Tensor:
    """(M, K) and (K, N), of any strides -> (M, N)."""
    x = _unit(x)
    rows, inner = x.shape
    cols = w.shape[1]
    y = torch.empty((rows, cols), dtype=x.dtype, device=x.device)
    tile = _tile(rows, cols, forward)
    launch(product_kernel, (cdiv(rows, tile["BM"]) * cdiv(cols, tile["BN"]),),
        x, w, y if bias is None else bias, y, rows, cols, inner, x.stride(0), w.stride(1), w.stride(0),
        BIAS=bias is not None, EVEN=inner % tile["BK"] == 0, **tile,
    )  # fmt: skip
    return y


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(M, K), (N, K), (N,) -> (M, N)."""
    return _product(x, weight.t(), bias, forward=True)


def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """(M, N), (N, K) -> (M, K)."""
    return _product(dy, weight, None, forward=False)


def weight_gradient(dy: Tensor, x: Tensor, *, bias: bool) -> tuple[Tensor, Tensor | None]:
    """(M, N), (M, K) -> gradients of the weight (N, K) and, if there is one, of the bias (N,)."""
    dy, x = _unit(dy), _unit(x)
    rows, outputs = dy.shape
    inputs = x.shape[1]
    tile = {"BM": 16, "BN": 64, "BK": 64, "num_warps": 2, "num_stages": 3}
    tiles = cdiv(outputs, tile["BN"]) * cdiv(inputs, tile["BK"])
    parts = max(1, min(cdiv(rows, 8 * tile["BM"]), PROGRAMS // tiles))
    per = cdiv(cdiv(rows, parts), tile["BM"]) * tile["BM"]
    parts = cdiv(rows, per)
    partial = torch.empty((parts, outputs * (inputs + int(bias))), dtype=torch.float32, device=x.device)
    launch(weight_gradient_kernel, (tiles, parts),
        dy, x, partial, rows, outputs, inputs, dy.stride(0), x.stride(0), per, BIAS=bias, **tile,
    )  # fmt: skip
    sums = partial[0] if parts == 1 else partial.sum(0)
    dw = sums[: outputs * inputs].view(outputs, inputs)
    return dw, sums[outputs * inputs :] if bias else None
