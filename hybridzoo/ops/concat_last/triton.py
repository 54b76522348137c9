"""Triton kernel of `concat_last`: a program copies its rows of every part."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2

ROWS = 128


@triton.jit
def _copy(x, out, row, N, K, C, OUT, first, sm, sk, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = row + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    mask = (rows < N)[:, None] & (c < C)[None, :]
    at = (rows // K).to(tl.int64) * sm + (rows % K) * sk
    value = tl.load(x + at[:, None] + c[None, :], mask=mask)
    tl.store(out + rows.to(tl.int64)[:, None] * OUT + first + c[None, :], value, mask=mask)


@triton.jit
def concat_kernel(
    x, y, z, out, N, K, CX, CY, CZ, xm, xk, ym, yk, zm, zk,
    ROWS: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, BZ: tl.constexpr,
):  # fmt: skip
    """N = M K rows."""
    row = tl.program_id(0) * ROWS
    width = CX + CY + CZ
    _copy(x, out, row, N, K, CX, width, 0, xm, xk, ROWS, BX)
    _copy(y, out, row, N, K, CY, width, CX, ym, yk, ROWS, BY)
    _copy(z, out, row, N, K, CZ, width, CX + CY, zm, zk, ROWS, BZ)


def concat(*parts: Tensor) -> Tensor:
    """Three of (M, K, C_i) -> (M, K, sum of C_i)."""
    parts = tuple(x if x.stride(2) == 1 else x.contiguous() for x in parts)
    m, k, _ = parts[0].shape
    widths = [x.shape[2] for x in parts]
    out = torch.empty((m, k, sum(widths)), dtype=parts[0].dtype, device=parts[0].device)
    bx, by, bz = (next_power_of_2(c) for c in widths)
    launch(concat_kernel, (cdiv(m * k, ROWS),),
        *parts, out, m * k, k, *widths, *(s for x in parts for s in x.stride()[:2]),
        ROWS=ROWS, BX=bx, BY=by, BZ=bz, num_warps=4,
    )  # fmt: skip
    return out
