"""Triton kernels of `causal_conv1d` for rows without packing and state: each input is read once, into registers.

A program has RUNS runs of T consecutive positions and BD channels; a thread walks along one run with a few channels of
its own, the last W inputs in registers. Loads of UN positions stand before the arithmetic of the UN before them: a
load after a store would wait for it. The backward makes both gradients in one walk: g, the gradient before the
activation, needs the inputs around it, and the input's gradient the g around it, so a run starts and ends W - 1
positions outside. Sums for the weights go to one row a program (deterministic), added up by `add_kernel`.
"""

# ruff: noqa: RUF005 (Triton has no tuple unpacking in a display)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(x, t, first, stride, d, md, L, COUNT: tl.constexpr):
    """COUNT rows from position t + first on, a tuple of (RUNS, BD) in x's dtype; zero outside [0, L)."""
    rows = ()
    for i in tl.static_range(COUNT):
        s = t + (first + i)
        at = x + s.to(tl.int64)[:, None] * stride + d[None, :]
        rows = rows + (tl.load(at, mask=((s >= 0) & (s < L))[:, None] & md[None, :], other=0.0),)
    return rows


@triton.jit
def taps_of(weight, d, md, W: tl.constexpr):
    """The W taps, a tuple of (1, BD) fp32."""
    taps = ()
    for k in tl.static_range(W):
        tap = tl.load(weight + d * W + k, mask=md, other=0.0)
        taps = taps + (tap.to(tl.float32)[None, :],)
    return taps


@triton.jit
def shift_of(bias, d, md):
    """The bias (1, BD) fp32, zero if there is none."""
    if bias is None:  # with an else: what follows an early return is compiled all the same
        shift = tl.zeros([1, d.shape[0]], tl.float32)
    else:
        shift = tl.load(bias + d, mask=md, other=0.0).to(tl.float32)[None, :]
    return shift


@triton.jit
def convolved(taps, shift, rows, W: tl.constexpr):
    total = shift + taps[0] * rows[0]
    for k in tl.static_range(1, W):
        total += taps[k] * rows[k]
    return total


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) in six instructions; a division takes as many by itself."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -1.4426950408889634))
    return root * root


@triton.jit
def walk_kernel(
    x, weight, bias, y, L, DM, sxb, sxl, left,
    W: tl.constexpr, SILU: tl.constexpr, RUNS: tl.constexpr, T: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The convolution: all T + W - 1 rows of a run are on their way before the first sum."""
    b = tl.program_id(2).to(tl.int64)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    md = d < DM
    t = (tl.program_id(1) * RUNS + tl.arange(0, RUNS)) * T
    rows = rows_of(x + b * sxb, t, -left, sxl, d, md, L, T + W - 1)
    taps = taps_of(weight, d, md, W)
    shift = shift_of(bias, d, md)
    y += b * L * DM
    window = ()
    for k in tl.static_range(W - 1):
        window = window + (rows[k].to(tl.float32),)
    for i in tl.static_range(T):
        window = window + (rows[i + W - 1].to(tl.float32),)
        total = convolved(taps, shift, window, W)
        window = window[1:]
        if SILU:
            total *= sigmoid(total)
        s = t + i
        at = y + s.to(tl.int64)[:, None] * DM + d[None, :]
        tl.store(at, total.to(y.dtype.element_ty), mask=(s < L)[:, None] & md[None, :])


@triton.jit
def before_activation(g, taps, shift, rows, SILU: tl.constexpr, W: tl.constexpr):
    """The gradient before the activation, of one position that sees `rows`."""
    g = g.to(tl.float32)
    if SILU:
        total = convolved(taps, shift, rows, W)
        share = sigmoid(total)
        g *= share * (1.0 + total * (1.0 - share))
    return g


@triton.jit
def walk_back_kernel(
    x, weight, bias, gy, dx, sums, L, DM, sxb, sxl,
    W: tl.constexpr, LEFT: tl.constexpr, SILU: tl.constexpr,
    RUNS: tl.constexpr, T: tl.constexpr, UN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The input's gradient, and this program's row of `sums` (rows, W + 1, D): those of the taps and of the bias.

    Position s of x meets g at s - right ... s + left, which see x at s - (W - 1) ... s + W - 1.
    """
    b = tl.program_id(2).to(tl.int64)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    md = d < DM
    t = (tl.program_id(1) * RUNS + tl.arange(0, RUNS)) * T
    x += b * sxb
    gy += b * L * DM
    dx += b * L * DM
    right: tl.constexpr = W - 1 - LEFT
    early = rows_of(x, t, 1 - W, sxl, d, md, L, 2 * (W - 1))
    early_g = rows_of(gy, t, -right, DM, d, md, L, W - 1)
    next_x = rows_of(x, t, W - 1, sxl, d, md, L, UN)
    next_g = rows_of(gy, t, LEFT, DM, d, md, L, UN)
    taps = taps_of(weight, d, md, W)
    shift = shift_of(bias, d, md)
    added = ()
    for _ in tl.static_range(W + 1):
        added = added + (tl.zeros([RUNS, BD], tl.float32),)
    window = ()  # the last W - 1 rows of x
    grads = ()  # the last W - 1 rows of g
    for k in tl.static_range(W - 1):
        window = window + (early[k].to(tl.float32),)
    for k in tl.static_range(W - 1):
        window = window + (early[W - 1 + k].to(tl.float32),)
        grads = grads + (before_activation(early_g[k], taps, shift, window, SILU, W),)
        window = window[1:]
    for block in range(0, T, UN):
        now_x, now_g = next_x, next_g
        next_x = rows_of(x, t, block + UN + W - 1, sxl, d, md, L, UN)
        next_g = rows_of(gy, t, block + UN + LEFT, DM, d, md, L, UN)
        for i in tl.static_range(UN):
            s = t + (block + i)
            window = window + (now_x[i].to(tl.float32),)
            grads = grads + (before_activation(now_g[i], taps, shift, window, SILU, W),)
            mine = window[0]  # x at s, beside g at s - right ... s + left
            total = taps[W - 1] * grads[0]
            renewed = ()
            for k in tl.static_range(W):
                renewed = renewed + (added[k] + mine * grads[W - 1 - k],)
                if k > 0:
                    total += taps[W - 1 - k] * grads[k]
            added = renewed + (added[W] + grads[right],)
            at = dx + s.to(tl.int64)[:, None] * DM + d[None, :]
            tl.store(at, total.to(dx.dtype.element_ty), mask=(s < L)[:, None] & md[None, :])
            window = window[1:]
            grads = grads[1:]
    row = (b * tl.num_programs(1) + tl.program_id(1)) * (W + 1)
    for k in tl.static_range(W + 1):
        tl.store(sums + (row + k) * DM + d, tl.sum(added[k], axis=0), mask=md)


@triton.jit
def add_kernel(sums, dw, db, ROWS, DM, W: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr):
    """(rows, W + 1, D) -> dw (D, W) and db (D,)"""
    k = tl.program_id(1)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    r = tl.arange(0, BR)
    total = tl.zeros([BR, BD], tl.float32)
    for first in range(0, ROWS, BR):
        at = ((first + r) * (W + 1) + k).to(tl.int64)[:, None] * DM + d[None, :]
        total += tl.load(sums + at, mask=((first + r) < ROWS)[:, None] & (d < DM)[None, :], other=0.0)
    value = tl.sum(total, axis=0)
    if k < W:
        tl.store(dw + d * W + k, value.to(dw.dtype.element_ty), mask=d < DM)
    elif db is not None:
        tl.store(db + d, value.to(db.dtype.element_ty), mask=d < DM)
