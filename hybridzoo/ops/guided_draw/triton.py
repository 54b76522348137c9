"""Triton kernel of `guided_draw`: a program draws one token, block by block of its codes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import launch, next_power_of_2

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _draw_kernel(
    logits, without, noise, codes, log_p, K, sl, sw, scale, temperature, TINY: tl.constexpr,
    GUIDED: tl.constexpr, NOISY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    top = -float("inf")  # largest logit, and the sum of exp(logit - top), so far
    total = 0.0
    best = -float("inf")  # largest logit with noise, its code and its own logit
    code = 0
    chosen = 0.0
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        mask = k < K
        x = tl.load(logits + row * sl + k, mask=mask, other=-float("inf")).to(tl.float32)
        if GUIDED:
            y = tl.load(without + row * sw + k, mask=mask, other=0.0).to(tl.float32)
            x = tl.where(mask, y + scale * (x - y), -float("inf"))
        x = x / temperature
        z = x
        if NOISY:
            z = x - tl.log2(tl.maximum(tl.load(noise + row * K + k, mask=mask, other=1.0), TINY)) * LN2
        at = tl.argmax(z, 0)
        found = tl.max(z, 0)
        own = tl.max(tl.where(tl.arange(0, BLOCK) == at, x, -float("inf")), 0)
        code = tl.where(found > best, start + at, code)
        chosen = tl.where(found > best, own, chosen)
        best = tl.maximum(best, found)
        higher = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp2((top - higher) * LOG2E) + tl.sum(tl.exp2((x - higher) * LOG2E), 0)
        top = higher
    tl.store(codes + row, code.to(tl.int64))
    tl.store(log_p + row, chosen - top - tl.log2(total) * LN2)


def guided_draw_kernel(
    logits: Tensor, without: Tensor | None, noise: Tensor | None, scale: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """See `guided_draw`."""
    shape, width = logits.shape[:-1], logits.shape[-1]
    rows = logits.reshape(-1, width).contiguous()
    others = rows if without is None else without.reshape(-1, width).contiguous()
    drawn = rows if noise is None else noise.reshape(-1, width).contiguous()
    codes = torch.empty(rows.shape[0], dtype=torch.int64, device=logits.device)
    log_p = torch.empty(rows.shape[0], dtype=torch.float32, device=logits.device)
    launch(_draw_kernel, (rows.shape[0],),
        rows, others, drawn, codes, log_p, width, rows.stride(0), others.stride(0), float(scale), float(temperature),
        TINY=torch.finfo(torch.float32).tiny, GUIDED=without is not None, NOISY=noise is not None,
        BLOCK=min(4096, next_power_of_2(width)), num_warps=8,
    )  # fmt: skip
    return codes.view(shape), log_p.view(shape)
