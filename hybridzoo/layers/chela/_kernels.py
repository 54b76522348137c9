"""Triton kernels that lay stretched sub-kernels one behind the other, and add up their gradient.

Sub-kernel i of K taps is 2^e times as long, e = max(i - 1, 0) + DOUBLINGS, and starts where the ones before it end: at
FIRST 2^(i - 1) for i > 0, with FIRST = K 2^DOUBLINGS. Tap u of it lies at (u + 1/2) / 2^e - 1/2 among the K.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def stretch_kernel(small, out, ROWS, COUNT, K, FIRST, DOUBLINGS, TAPS, BLOCK: tl.constexpr):
    """(COUNT, ROWS, K) -> (ROWS, TAPS), fp32."""
    row = tl.program_id(1)
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = tl.zeros([BLOCK], tl.int32)
    for n in range(COUNT - 1):
        i += (t >= FIRST * (1 << n)).to(tl.int32)
    past = tl.maximum(i - 1, 0)
    begin = tl.where(i > 0, FIRST * (1 << past), 0)
    factor = (1 << (past + DOUBLINGS)).to(tl.float32)
    place = ((t - begin).to(tl.float32) + 0.5) / factor - 0.5
    low = tl.floor(place)
    share = place - low
    near = tl.minimum(tl.maximum(low.to(tl.int32), 0), K - 1)
    far = tl.minimum(low.to(tl.int32) + 1, K - 1)
    base = small + (i * ROWS + row) * K
    inside = t < TAPS
    value = tl.load(base + near, mask=inside, other=0.0) * (1.0 - share)
    value += tl.load(base + far, mask=inside, other=0.0) * share
    tl.store(out + row.to(tl.int64) * TAPS + t, value, mask=inside)


@triton.jit
def stretch_backward_kernel(
    grad, out, ROWS, K, FIRST, DOUBLINGS, TAPS, PARTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """(ROWS, TAPS) -> (COUNT, ROWS, K): tap j gathers from between tap j - 1 and tap j + 1."""
    j = tl.program_id(0) * PARTS + tl.arange(0, PARTS)[:, None]
    row = tl.program_id(1)
    i = tl.program_id(2)
    past = tl.maximum(i - 1, 0)
    begin = tl.where(i > 0, FIRST * (1 << past), 0)
    factor = 1 << (past + DOUBLINGS)
    total = tl.zeros([PARTS, BLOCK], tl.float32)
    for n in range(0, 2 * factor, BLOCK):
        step = n + tl.arange(0, BLOCK)[None, :]
        u = j * factor - factor // 2 + step
        place = (u.to(tl.float32) + 0.5) / factor.to(tl.float32) - 0.5
        place = tl.minimum(tl.maximum(place, 0.0), K - 1.0)  # the outermost taps reach to the ends
        weight = tl.maximum(1.0 - tl.abs(place - j.to(tl.float32)), 0.0)
        inside = (step < 2 * factor) & (u >= 0) & (u < K * factor) & (begin + u < TAPS) & (j < K)
        total += weight * tl.load(grad + row.to(tl.int64) * TAPS + begin + u, mask=inside, other=0.0)
    taps = tl.program_id(0) * PARTS + tl.arange(0, PARTS)
    tl.store(out + (i * ROWS + row) * K + taps, tl.sum(total, 1), mask=taps < K)
