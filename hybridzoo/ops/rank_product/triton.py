"""Triton kernels of `rank_product` in fp32, products as three TF32 ones (the backward's: `_split_product`).

The backward reads the gradient once: a program keeps the weight's sums of one group and BD channels and walks over its
part of the rows, whose sums over BD channels it writes; the next rows are on their way while it computes. Parts are
added in a fixed order.

Legend: M rows, K groups, R rank, D channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2
from hybridzoo.ops._split_product import add_product

PROGRAMS, CHANNELS = 528, 64  # of the backward; four programs fit on a multiprocessor of an H100


@triton.jit
def product_kernel(
    rank, weight, out, M, K, D, R, sm, sk, BM: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Grid: rows, groups, channels."""
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    k = tl.program_id(1)
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    r = tl.arange(0, BR)
    ok_m, ok_d = rows < M, d < D
    a = tl.load(rank + rows[:, None] * sm + k * sk + r[None, :], mask=ok_m[:, None] & (r < R)[None, :], other=0.0)
    b = tl.load(weight + (k * D + d[None, :]) * R + r[:, None], mask=ok_d[None, :] & (r < R)[:, None], other=0.0)
    y = tl.dot(a, b, input_precision="tf32x3")
    tl.store(out + (rows * K + k)[:, None] * D + d[None, :], y, mask=ok_m[:, None] & ok_d[None, :])


@triton.jit
def gradients_kernel(
    grad, rank, weight, d_rank, partial, M, K, D, R, sm, sk, PER,
    BM: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Grid: parts of the rows, groups, channels. d_rank: (channel blocks, M, K, R); partial: (parts, K, D, R)."""
    part, k, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    d = block * BD + tl.arange(0, BD)
    r = tl.arange(0, BR)
    ok_d, ok_r = d < D, r < R
    at = (k * D + d)[:, None] * R + r[None, :]
    ok_w = ok_d[:, None] & ok_r[None, :]
    w = tl.load(weight + at, mask=ok_w, other=0.0)
    sums = tl.zeros((BD, BR), dtype=tl.float32)
    start = part * PER
    count = tl.minimum(PER, M - start).to(tl.int32)
    own = tl.arange(0, BM)
    of = grad + (start * K + k) * D + own[:, None] * (K * D) + d[None, :]
    ranks = rank + start * sm + k * sk + own[:, None] * sm + r[None, :]
    to = d_rank + ((block * M + start) * K + k) * R + own[:, None] * (K * R) + r[None, :]
    ok = (own < count)[:, None]
    g = tl.load(of, mask=ok & ok_d[None, :], other=0.0)
    x = tl.load(ranks, mask=ok & ok_r[None, :], other=0.0)
    for m in range(0, count, BM):
        ok = (own < count - m)[:, None]
        ahead = (own < count - m - BM)[:, None]
        of += BM * K * D
        ranks += BM * sm
        next_g = tl.load(of, mask=ahead & ok_d[None, :], other=0.0)
        next_x = tl.load(ranks, mask=ahead & ok_r[None, :], other=0.0)
        sums = add_product(tl.trans(g), x, sums)
        tl.store(to, add_product(g, w, tl.zeros((BM, BR), dtype=tl.float32)), mask=ok & ok_r[None, :])
        to += BM * K * R
        g = next_g
        x = next_x
    tl.store(partial + part * K * D * R + at, sums, mask=ok_w)


def _ranks(rank: Tensor) -> Tensor:
    return rank if rank.stride(2) == 1 else rank.contiguous()


def forward(rank: Tensor, weight: Tensor) -> Tensor:
    """(M, K, R), (K, D, R) -> (M, K, D)."""
    rank, weight = _ranks(rank), weight.contiguous()
    rows, groups, r = rank.shape
    channels = weight.shape[1]
    out = torch.empty((rows, groups, channels), dtype=rank.dtype, device=rank.device)
    launch(product_kernel, (cdiv(rows, 64), groups, cdiv(channels, 128)),
        rank, weight, out, rows, groups, channels, r, rank.stride(0), rank.stride(1),
        BM=64, BD=128, BR=max(16, next_power_of_2(r)), num_warps=4,
    )  # fmt: skip
    return out


def gradients(grad: Tensor, rank: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """See `rank_product_gradients`."""
    grad, rank, weight = grad.contiguous(), _ranks(rank), weight.contiguous()
    rows, groups, r = rank.shape
    channels = weight.shape[1]
    blocks = cdiv(channels, CHANNELS)
    parts = max(1, min(cdiv(rows, 256), PROGRAMS // (groups * blocks)))
    per = cdiv(cdiv(rows, parts), 64) * 64
    parts = cdiv(rows, per)
    d_rank = torch.empty((blocks, rows, groups, r), dtype=rank.dtype, device=rank.device)
    partial = torch.empty((parts, groups, channels, r), dtype=rank.dtype, device=rank.device)
    br = max(16, next_power_of_2(r))
    launch(gradients_kernel, (parts, groups, blocks),
        grad, rank, weight, d_rank, partial, rows, groups, channels, r, rank.stride(0), rank.stride(1), per,
        BM=32 if br == 16 else 16, BD=CHANNELS, BR=br, num_warps=2,
    )  # fmt: skip
    return d_rank[0] if blocks == 1 else d_rank.sum(0), partial[0] if parts == 1 else partial.sum(0)
