"""Triton kernels of `linear_attention`. Rows of q, k, v lie at ((b * T + t) * H + h).

A sequence is cut into spans of SPAN positions and a span into tiles of C. States exist only between spans: inside one,
a tile meets the other tiles of its span directly, as in ordinary attention. So every tile of every span runs at once,
and nothing walks along the sequence but `carry_kernel`, over the spans' sums.

The same two kernels serve forward and backward with other operands (`triton.py` lists them). FLIP turns time around:
row i meets the rows j >= i of its span, and the state that follows the span.

    forward    state before a span reaches its local row l with age l + 1; the span adds rows with age length - 1 - l
    FLIP       state after a span reaches row l with age length - 1 - l;   the span adds rows with age l + 1

With a normaliser, states have one more column, for values of one: its row sums are the denominators.
Products of 16-bit inputs accumulate in fp32; those of fp32 inputs are split into three of tf32, which is as exact.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b):
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def load_tile(x, rows, heads, head, valid, d, WIDTH):
    """(C, BD) tile of a (rows, H, WIDTH) tensor, zero outside."""
    return tl.load(
        x + ((rows * heads + head) * WIDTH)[:, None] + d[None, :], mask=valid[:, None] & (d < WIDTH)[None, :], other=0.0
    )


@triton.jit
def load_rows(x, rows, heads, head, valid):
    """(C,) of a (rows, H) tensor, zero outside."""
    return tl.load(x + rows * heads + head, mask=valid, other=0.0)


@triton.jit
def state_tile(states, base, d, e, K, V, WIDTH):
    """(BK, BV) of a (K, WIDTH) matrix, columns below V."""
    return tl.load(states + base + d[:, None] * WIDTH + e[None, :], mask=(d < K)[:, None] & (e < V)[None, :], other=0.0)


@triton.jit
def sums_kernel(
    x, y, factor, bias, decay, states, T, heads, K, V, WIDTH, SPANS, scale,
    NORMALIZE: tl.constexpr, FLIP: tl.constexpr,
    C: tl.constexpr, SPAN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """states[span] = scale * sum over its rows of age * factor * x y^T.

    NORMALIZE: the last column is the same sum with `bias` in place of y, with ones if there is no bias.
    """
    span = tl.program_id(1)
    head = tl.program_id(2)
    first = (span % SPANS) * SPAN
    length = tl.minimum(T - first, SPAN)
    start = (span // SPANS).to(tl.int64) * T + first
    base = (span.to(tl.int64) * heads + head) * K * WIDTH
    c = tl.arange(0, C)
    d = tl.arange(0, BK)
    e = tl.program_id(0) * BV + tl.arange(0, BV)
    total = tl.zeros([BK, BV], tl.float32)
    column = tl.zeros([BK], tl.float32)
    for i in range(SPAN // C):
        local = i * C + c
        valid = local < length
        left = load_tile(x, start + local, heads, head, valid, d, K)
        right = load_tile(y, start + local, heads, head, valid, e, V)
        weight = tl.zeros([C], tl.float32) + scale
        if decay is not None:
            rate = tl.load(decay + head).to(tl.float32)
            age = (local + 1) if FLIP else (length - 1 - local)
            weight *= tl.exp(-rate * tl.where(valid, age, 0).to(tl.float32))
        if factor is not None:
            weight *= load_rows(factor, start + local, heads, head, valid)
        aged = left * weight[:, None]
        total += dot(tl.trans(aged.to(left.dtype)), right)
        if NORMALIZE:
            if bias is not None:
                aged *= load_rows(bias, start + local, heads, head, valid)[:, None]
            column += tl.sum(aged, axis=0)
    tl.store(states + base + d[:, None] * WIDTH + e[None, :], total, mask=(d < K)[:, None] & (e < V)[None, :])
    if NORMALIZE:
        first_block = tl.program_id(0) == 0
        tl.store(states + base + d * WIDTH + V, column, mask=(d < K) & first_block)


@triton.jit
def carry_kernel(
    states, initial, final, decay, T, heads, SIZE, SPANS,
    CAUSAL: tl.constexpr, FLIP: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """In place: what each span adds becomes the state before it (FLIP: after it); the last state goes to `final`.

    Not CAUSAL: `final` is the sum over all spans, and `states` stays. AHEAD spans are read before the first is written.
    """
    row = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE
    owner = tl.program_id(1).to(tl.int64) * SIZE + at
    state = tl.zeros([BLOCK], tl.float32)
    if initial is not None:
        state += tl.load(initial + owner, mask=inside, other=0.0).to(tl.float32)
    rate = 0.0
    if decay is not None:
        rate = tl.load(decay + head).to(tl.float32)
    for first in range(0, SPANS, AHEAD):
        added = ()
        for n in tl.static_range(AHEAD):
            span = SPANS - 1 - first - n if FLIP else first + n
            place = states + ((row.to(tl.int64) * SPANS + span) * heads + head) * SIZE + at
            found = tl.load(place, mask=inside & (first + n < SPANS), other=0.0)
            added = added + (found,)  # noqa: RUF005  (a starred tuple is not Triton)
        for n in tl.static_range(AHEAD):
            span = SPANS - 1 - first - n if FLIP else first + n
            if CAUSAL:
                place = states + ((row.to(tl.int64) * SPANS + span) * heads + head) * SIZE + at
                tl.store(place, state, mask=inside & (first + n < SPANS))
            if decay is not None:
                length = tl.where(first + n < SPANS, tl.minimum(T - span * SPAN, SPAN), 0)
                state *= tl.exp(-rate * length.to(tl.float32))
            state += added[n]
    if final is not None:
        tl.store(final + owner, state, mask=inside)


@triton.jit
def values_kernel(
    x, y, v, factor, decay, states, out, sums, T, heads, K, V, WIDTH, SPANS,
    scale, state_scale, eps,
    NORMALIZE: tl.constexpr, CAUSAL: tl.constexpr, FLIP: tl.constexpr,
    C: tl.constexpr, SPAN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """out_i = scale * sum over j of age (x_i . y_j) factor_j v_j  +  state_scale * age x_i state.

    NORMALIZE: divided by the same with values of one, plus eps; that denominator goes to `sums`.
    """
    tile = tl.program_id(1)
    head = tl.program_id(2)
    TILES = SPANS * (SPAN // C)
    row = tile // TILES
    span = (tile % TILES) // (SPAN // C)
    inner = (tile % TILES) % (SPAN // C)
    length = tl.minimum(T - span * SPAN, SPAN)
    if inner * C >= length:
        return
    start = row.to(tl.int64) * T + span * SPAN
    c = tl.arange(0, C)
    d = tl.arange(0, BK)
    e = tl.program_id(0) * BV + tl.arange(0, BV)
    local = inner * C + c
    valid = local < length
    left = load_tile(x, start + local, heads, head, valid, d, K)
    if CAUSAL:
        owner = row.to(tl.int64) * SPANS + span
    else:
        owner = row.to(tl.int64)
    base = (owner * heads + head) * K * WIDTH
    state = state_tile(states, base, d, e, K, V, WIDTH)
    total = dot(left, state.to(left.dtype)) * state_scale
    below = tl.zeros([C], tl.float32)
    if NORMALIZE:
        column = tl.load(states + base + d * WIDTH + V, mask=d < K, other=0.0)
        below += tl.sum(left.to(tl.float32) * column[None, :], axis=1) * state_scale
    if CAUSAL:
        rate = 0.0
        if decay is not None:
            rate = tl.load(decay + head).to(tl.float32)
            age = (length - 1 - local) if FLIP else (local + 1)
            weight = tl.exp(-rate * tl.where(valid, age, 0).to(tl.float32))
            total *= weight[:, None]
            below *= weight
        low = inner if FLIP else 0
        high = (length + C - 1) // C if FLIP else inner + 1
        for j in range(low, high):
            others = j * C + c
            there = others < length
            right = load_tile(y, start + others, heads, head, there, d, K)
            scores = dot(left, tl.trans(right)) * scale
            lag = (others[None, :] - local[:, None]) if FLIP else (local[:, None] - others[None, :])
            if decay is not None:
                scores *= tl.exp(-rate * tl.maximum(lag, 0).to(tl.float32))
            if factor is not None:
                scores *= load_rows(factor, start + others, heads, head, there)[None, :]
            scores = tl.where(lag >= 0, scores, 0.0)
            if NORMALIZE:
                below += tl.sum(scores, axis=1)
            value = load_tile(v, start + others, heads, head, there, e, V)
            total += dot(scores.to(value.dtype), value)
    if NORMALIZE:
        below += eps
        total /= tl.where(valid, below, 1.0)[:, None]
        if tl.program_id(0) == 0:
            tl.store(sums + (start + local) * heads + head, below, mask=valid)
    place = ((start + local) * heads + head) * V
    tl.store(out + place[:, None] + e[None, :], total.to(out.dtype.element_ty), mask=valid[:, None] & (e < V)[None, :])


@triton.jit
def keys_kernel(
    x, v, y, row_factor, column_factor, row_bias, column_bias, decay, states, own, out, shares,
    T, heads, K, V, WIDTH, SPANS, scale, state_scale, eps,
    NORMALIZE: tl.constexpr, CAUSAL: tl.constexpr, FLIP: tl.constexpr,
    C: tl.constexpr, SPAN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr,
):  # fmt: skip
    """out_i = row_factor_i (scale * sum over j of age (x_i . v_j + bias) column_factor_j y_j
                          + state_scale * age state (x_i; bias_i)).

    x and v have V channels, y and the result K. The bias, of row i or of column j, comes with NORMALIZE: it stands for
    the product of the extra value of one with its gradient.

    `own` holds what `out` is the gradient of. `shares` (rows, H) gets the rows' part of the gradient of decay: every
    term of own . out times minus its age; FLIP: of the terms with the state alone, since the others count once.

    The gradient of a normalised q is a difference of sums a hundred times larger. So a row bias makes terms small
    before they are rounded, the state loses what its rows share, and the bias, made of rounded outputs, is put
    right (in place) by what must hold exactly: eps aside, q . (gradient of q) = 0, because q's length cancels in o.
    """
    tile = tl.program_id(0)
    head = tl.program_id(1)
    TILES = SPANS * (SPAN // C)
    row = tile // TILES
    span = (tile % TILES) // (SPAN // C)
    inner = (tile % TILES) % (SPAN // C)
    length = tl.minimum(T - span * SPAN, SPAN)
    if inner * C >= length:
        return
    start = row.to(tl.int64) * T + span * SPAN
    c = tl.arange(0, C)
    d = tl.arange(0, BK)
    local = inner * C + c
    valid = local < length
    if CAUSAL:
        owner = row.to(tl.int64) * SPANS + span
    else:
        owner = row.to(tl.int64)
    base = (owner * heads + head) * K * WIDTH
    total = tl.zeros([C, BK], tl.float32)
    mine = tl.full([C], 1.0, tl.float32)
    if NORMALIZE:
        column = tl.load(states + base + d * WIDTH + V, mask=d < K, other=0.0)
        beside = mine
    if row_bias is not None:
        mine = load_rows(row_bias, start + local, heads, head, valid)
        beside = mine
        common = column / tl.maximum(tl.sum(column * column, axis=0), 1e-30)
    for i in range(NV):
        e = i * BV + tl.arange(0, BV)
        left = load_tile(x, start + local, heads, head, valid, e, V)
        state = state_tile(states, base, d, e, K, V, WIDTH)
        if row_bias is not None:
            mean = tl.sum(state * common[:, None], axis=0)  # column times mean is nearest to the state
            state -= column[:, None] * mean[None, :]
            beside += tl.sum(left.to(tl.float32) * mean[None, :], axis=1)
        total += dot(left, tl.trans(state.to(left.dtype)))
    if NORMALIZE:
        total += beside[:, None] * column[None, :]
    total *= state_scale
    if row_bias is not None:  # what the bias has been multiplied with
        weights = tl.zeros([C, BK], tl.float32) + (column * state_scale)[None, :]
    if CAUSAL:
        rate = 0.0
        if decay is not None:
            rate = tl.load(decay + head).to(tl.float32)
            age = tl.where(valid, (length - 1 - local) if FLIP else (local + 1), 0).to(tl.float32)
            total *= tl.exp(-rate * age)[:, None]
            if row_bias is not None:
                weights *= tl.exp(-rate * age)[:, None]
        if shares is not None:
            carrier = load_tile(own, start + local, heads, head, valid, d, K).to(tl.float32)
            share = -age * tl.sum(carrier * total, axis=1)
            lagged = tl.zeros([C, BK], tl.float32)
            if row_bias is not None:
                excess = -age * tl.sum(carrier * weights, axis=1)
                lagged_weights = tl.zeros([C, BK], tl.float32)
        low = inner if FLIP else 0
        high = (length + C - 1) // C if FLIP else inner + 1
        for j in range(low, high):
            others = j * C + c
            there = others < length
            scores = tl.zeros([C, C], tl.float32)
            for i in range(NV):
                e = i * BV + tl.arange(0, BV)
                left = load_tile(x, start + local, heads, head, valid, e, V)
                right = load_tile(v, start + others, heads, head, there, e, V)
                scores += dot(left, tl.trans(right))
            if row_bias is not None:
                scores += mine[:, None]
            if column_bias is not None:
                scores += load_rows(column_bias, start + others, heads, head, there)[None, :]
            lag = (others[None, :] - local[:, None]) if FLIP else (local[:, None] - others[None, :])
            aged = tl.where(lag >= 0, scale, 0.0)
            if decay is not None:
                aged *= tl.exp(-rate * tl.maximum(lag, 0).to(tl.float32))
            if column_factor is not None:
                aged *= load_rows(column_factor, start + others, heads, head, there)[None, :]
            scores *= aged
            key = load_tile(y, start + others, heads, head, there, d, K)
            total += dot(scores.to(key.dtype), key)
            if row_bias is not None:
                weights += dot(aged.to(key.dtype), key)
            if shares is not None and not FLIP:
                lagged += dot((scores * (lag.to(tl.float32) / SPAN)).to(key.dtype), key)
                if row_bias is not None:
                    lagged_weights += dot((aged * (lag.to(tl.float32) / SPAN)).to(key.dtype), key)
        if shares is not None and not FLIP:
            share -= SPAN * tl.sum(carrier * lagged, axis=1)
    if row_factor is not None:
        factor = load_rows(row_factor, start + local, heads, head, valid)
        if row_bias is not None:
            query = load_tile(own, start + local, heads, head, valid, d, K).to(tl.float32)
            wrong = (tl.sum(query * total, axis=1) + eps * mine) * factor
            total -= wrong[:, None] * weights
            if shares is not None:
                share -= wrong * (excess - SPAN * tl.sum(carrier * lagged_weights, axis=1))
            tl.store(row_bias + (start + local) * heads + head, mine - wrong, mask=valid)
        total *= factor[:, None]
    if shares is not None:
        if row_factor is not None:
            share *= factor
        tl.store(shares + (start + local) * heads + head, share, mask=valid)
    place = ((start + local) * heads + head) * K
    tl.store(out + place[:, None] + d[None, :], total.to(out.dtype.element_ty), mask=valid[:, None] & (d < K)[None, :])


@triton.jit
def quotient_kernel(grad, out, sums, factor, bias, ROWS, V, C: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr):
    """Of o = n / s: factor = 1 / s, bias = -(grad . o), row by row."""
    rows = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)
    valid = rows < ROWS
    total = tl.zeros([C], tl.float32)
    for i in range(NV):
        e = i * BV + tl.arange(0, BV)
        mask = valid[:, None] & (e < V)[None, :]
        place = (rows * V)[:, None] + e[None, :]
        g = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(g * tl.load(out + place, mask=mask, other=0.0).to(tl.float32), axis=1)
    below = tl.load(sums + rows, mask=valid, other=1.0)
    tl.store(factor + rows, 1.0 / below, mask=valid)
    tl.store(bias + rows, -total, mask=valid)
