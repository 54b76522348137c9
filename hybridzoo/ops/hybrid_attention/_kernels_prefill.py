"""Triton kernel of `hybrid_attention` for whole rows, forward only: softmax in one pass over the keys that are seen.

Keys are walked in up to four stretches: the prefix in front of the window, the window's ragged beginning, what every
query of the tile sees (no mask), and the diagonal.

Legend: B batch, H query heads, G key heads, T queries, S keys, K key width, V value width.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _walk(
    query, k, v, k_s, v_s, best, weight, acc, at, first, last, scale, window, prefix,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, BN: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Keys first to last - 1, in blocks of BN from `first`, joined to the running maximum, sum and values."""
    c, d = tl.arange(0, KP), tl.arange(0, VP)
    for start in range(first, last, BN):
        s = start + tl.arange(0, BN)
        inside = s < last
        keys = tl.load(
            k + s[None, :].to(tl.int64) * k_s + c[:, None], mask=inside[None, :] & (c < K)[:, None], other=0.0
        )
        scores = tl.dot(query, keys) * scale
        if MASK:
            near = (s[None, :] <= at[:, None]) & inside[None, :]
            near = near & ((at[:, None] - s[None, :] < window) | (s[None, :] < prefix))
            scores = tl.where(near, scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(best - base)
        weight = weight * shrink + tl.sum(p, 1)
        values = tl.load(
            v + s[:, None].to(tl.int64) * v_s + d[None, :], mask=inside[:, None] & (d < V)[None, :], other=0.0
        )
        acc = tl.dot(p.to(values.dtype), values, acc * shrink[:, None])
        best = higher
    return best, weight, acc


@triton.jit
def prefill_kernel(
    q, k, v, out, scale, queries, slots, window, prefix, heads, per_group,
    q_b, q_h, q_t, k_b, k_g, k_s, v_b, v_g, v_s,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One tile of BM queries of one (row, head); rows are aligned at their end; out is (B, T, H, V)."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    row = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    m = tile * BM + tl.arange(0, BM)
    offset = slots - queries
    at = offset + m
    c, d = tl.arange(0, KP), tl.arange(0, VP)
    here = q + row * q_b + head * q_h
    query = tl.load(
        here + m[:, None].to(tl.int64) * q_t + c[None, :], mask=(m < queries)[:, None] & (c < K)[None, :], other=0.0
    )
    k += row * k_b + (head // per_group) * k_g
    v += row * v_b + (head // per_group) * v_g
    scale = scale * LOG2E
    best = tl.full((BM,), float("-inf"), tl.float32)
    weight = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, VP), tl.float32)
    lowest = offset + tile * BM
    highest = tl.minimum(lowest + BM, slots) - 1
    begin = tl.maximum(lowest - window + 1, 0) // BN * BN  # the first key that a window shows
    all_from = tl.cdiv(tl.maximum(highest - window + 1, 0), BN) * BN  # from here every query sees
    all_to = tl.maximum((lowest + 1) // BN * BN, begin)  # up to here
    all_from = tl.minimum(tl.maximum(all_from, begin), all_to)
    ahead = tl.minimum(prefix, begin)
    best, weight, acc = _walk(
        query, k, v, k_s, v_s, best, weight, acc, at, 0, ahead, scale, window, prefix, K, V, KP, VP, BN, True
    )  # fmt: skip
    best, weight, acc = _walk(
        query, k, v, k_s, v_s, best, weight, acc, at, begin, all_from, scale, window, prefix, K, V, KP, VP, BN, True
    )  # fmt: skip
    best, weight, acc = _walk(
        query, k, v, k_s, v_s, best, weight, acc, at, all_from, all_to, scale, window, prefix, K, V, KP, VP, BN, False
    )  # fmt: skip
    best, weight, acc = _walk(
        query, k, v, k_s, v_s, best, weight, acc, at, all_to, highest + 1, scale, window, prefix, K, V, KP, VP, BN, True
    )  # fmt: skip
    acc = acc / tl.where(weight == 0.0, 1.0, weight)[:, None]
    spot = ((row * queries + m[:, None].to(tl.int64)) * heads + head) * V + d[None, :]
    tl.store(out + spot, acc.to(out.dtype.element_ty), mask=(m < queries)[:, None] & (d < V)[None, :])
