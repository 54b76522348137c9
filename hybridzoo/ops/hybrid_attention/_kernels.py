"""Triton kernels of `hybrid_attention` for one query a row: the slots of a cache are read once, in parallel pieces.

The query heads that share a key head are the rows of one tile. The slots are cut into pieces ("splits") so that a small
batch fills the device; each piece leaves its maximum, sum and weighted values, which a second kernel joins.

Legend: B batch, H query heads, G key heads, R = H / G rows of a tile, S slots, K key width, V value width.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def decode_kernel(
    q,
    k,
    v,
    q_at,
    k_at,
    out,
    top,
    total,
    scale,
    slots,
    piece,
    window,
    prefix,
    q_b,
    q_h,
    k_b,
    k_g,
    k_s,
    v_b,
    v_g,
    v_s,
    k_at_b,
    groups,
    R: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    RP: tl.constexpr,
    KP: tl.constexpr,
    VP: tl.constexpr,
    BLOCK: tl.constexpr,
    POSITIONS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One (row, key head, piece): out (B, G, SPLITS, R, V), top and total (B, G, SPLITS, R), fp32."""
    pair = tl.program_id(0)
    split = tl.program_id(1)
    row = (pair // groups).to(tl.int64)
    group = (pair % groups).to(tl.int64)
    r, c, d = tl.arange(0, RP), tl.arange(0, KP), tl.arange(0, VP)
    here = row * q_b + (group * R + r)[:, None] * q_h + c[None, :]
    query = tl.load(q + here, mask=(r < R)[:, None] & (c < K)[None, :], other=0.0)
    k += row * k_b + group * k_g
    v += row * v_b + group * v_g
    at = tl.load(q_at + row) if POSITIONS else 0
    best = tl.full((RP,), float("-inf"), tl.float32)
    weight = tl.zeros((RP,), tl.float32)
    acc = tl.zeros((RP, VP), tl.float32)
    first = split * piece
    last = tl.minimum(first + piece, slots)
    for start in range(first, last, BLOCK):
        s = start + tl.arange(0, BLOCK)
        seen = s < last
        if POSITIONS:
            held = tl.load(k_at + row * k_at_b + s, mask=seen, other=-1)
            seen = seen & (held >= 0) & (held <= at) & ((at - held < window) | (held < prefix))
        where = s.to(tl.int64)
        keys = tl.load(k + where[:, None] * k_s + c[None, :], mask=seen[:, None] & (c < K)[None, :], other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2((scores - base[:, None]) * LOG2E)
        shrink = tl.exp2((best - base) * LOG2E)
        weight = weight * shrink + tl.sum(p, 1)
        values = tl.load(v + where[:, None] * v_s + d[None, :], mask=seen[:, None] & (d < V)[None, :], other=0.0)
        acc = acc * shrink[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
        best = higher
    place = pair.to(tl.int64) * SPLITS + split
    if SPLITS == 1:
        acc = acc / tl.where(weight == 0.0, 1.0, weight)[:, None]
    else:
        tl.store(top + place * R + r, best, mask=r < R)
        tl.store(total + place * R + r, weight, mask=r < R)
    spot = (place * R + r)[:, None] * V + d[None, :]
    tl.store(out + spot, acc.to(out.dtype.element_ty), mask=(r < R)[:, None] & (d < V)[None, :])


@triton.jit
def join_kernel(
    parts, top, total, out, R: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, SPLITS: tl.constexpr, SP: tl.constexpr
):
    """One (row, key head, tile row): parts (B, G, SPLITS, R, V) -> out (B, G, R, V)."""
    pair = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1)
    s, d = tl.arange(0, SP), tl.arange(0, VP)
    here = (pair * SPLITS + s) * R + r
    best = tl.load(top + here, mask=s < SPLITS, other=float("-inf"))
    highest = tl.max(best, 0)
    factor = tl.exp2((best - tl.where(highest == float("-inf"), 0.0, highest)) * LOG2E)
    weight = tl.sum(tl.load(total + here, mask=s < SPLITS, other=0.0) * factor, 0)
    acc = tl.load(parts + here[:, None] * V + d[None, :], mask=(s < SPLITS)[:, None] & (d < V)[None, :], other=0.0)
    joined = tl.sum(acc * factor[:, None], 0) / tl.where(weight == 0.0, 1.0, weight)
    tl.store(out + (pair * R + r) * V + d, joined.to(out.dtype.element_ty), mask=d < V)
