"""Triton kernel of `flip_concat`: rows copied to where they belong, slices read in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2


@triton.jit
def _copy_kernel(
    first, second, out, L, C, E, sfb, sfl, ssb, ssl, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    blocks = tl.cdiv(C, BLOCK)  # of the first; the second's follow
    part = tl.program_id(1)
    if part < blocks:
        cols = part * BLOCK + tl.arange(0, BLOCK)
        mask = (t < L)[:, None] & (cols < C)[None, :]
        x = tl.load(first + b * sfb + t[:, None] * sfl + cols[None, :], mask=mask)
        tl.store(out + (b * L + t)[:, None] * (C + E) + cols[None, :], x, mask=mask)
    else:
        cols = (part - blocks) * BLOCK + tl.arange(0, BLOCK)
        mask = (t < L)[:, None] & (cols < E)[None, :]
        x = tl.load(second + b * ssb + (L - 1 - t)[:, None] * ssl + cols[None, :], mask=mask)
        tl.store(out + (b * L + t)[:, None] * (C + E) + C + cols[None, :], x, mask=mask)


def flip_concat_forward(first: Tensor | None, second: Tensor) -> Tensor:
    """(B, L, C) or None, and (B, L, E), unit last strides -> (B, L, C + E)."""
    batch, length, width = second.shape
    channels = 0 if first is None else first.shape[2]
    out = torch.empty((batch, length, channels + width), dtype=second.dtype, device=second.device)
    block = min(256, next_power_of_2(max(channels, width)))
    rows = max(1, 4096 // block)
    launch(_copy_kernel, (cdiv(length, rows), cdiv(channels, block) + cdiv(width, block), batch),
        second if first is None else first, second, out, length, channels, width,
        *(0, 0) if first is None else first.stride()[:2], *second.stride()[:2], ROWS=rows, BLOCK=block,
    )  # fmt: skip
    return out
