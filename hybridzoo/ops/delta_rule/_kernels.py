"""Triton kernels of `delta_rule`, forward. Names as in `reference.py`; a program works on one chunk of one head.

Rows of q, k, v lie at ((b * T + t) * H + h); packed rows share b = 0. `place` turns a program's chunk number into rows.
Products of 16-bit inputs accumulate in fp32; those of fp32 inputs are split into three of tf32, which is as exact.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b):
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def whose(heads, BLOCKS: tl.constexpr):
    """Block of channels, chunk and head of a program of a launch of BLOCKS * heads * chunks.

    Programs side by side work on the heads of a chunk, whose rows lie side by side.
    """
    number = tl.program_id(0) // BLOCKS
    return tl.program_id(0) % BLOCKS, number // heads, number % heads


@triton.jit
def place(chunk, bounds, firsts, S, T, PER_ROW, C: tl.constexpr):
    """First row of a chunk of the launch, and the rows left in its segment: none for a chunk that does not exist."""
    if bounds is None:
        segment = chunk // PER_ROW
        at = (chunk % PER_ROW) * C
        start = segment.to(tl.int64) * T + at
        left = T - at
    else:
        segment = 0  # the last one whose first chunk is not behind this one; empty segments own none
        high = S
        while high - segment > 1:
            middle = (segment + high) // 2
            if tl.load(firsts + middle) <= chunk:
                segment = middle
            else:
                high = middle
        at = tl.load(bounds + segment) + (chunk - tl.load(firsts + segment)) * C
        start = at.to(tl.int64)
        left = tl.maximum(tl.load(bounds + segment + 1) - at, 0)
    return start, left


@triton.jit
def load_tile(x, start, c, heads, head, valid, d, WIDTH):
    """(C, BD) tile of a (rows, H, WIDTH) tensor from row `start`, zero outside. One wide address, narrow offsets."""
    here = x + (start * heads + head) * WIDTH
    offsets = (c * (heads * WIDTH))[:, None] + d[None, :]
    return tl.load(here + offsets, mask=valid[:, None] & (d < WIDTH)[None, :], other=0.0)


@triton.jit
def store_tile(x, tile, start, c, heads, head, valid, d, WIDTH):
    here = x + (start * heads + head) * WIDTH
    offsets = (c * (heads * WIDTH))[:, None] + d[None, :]
    tl.store(here + offsets, tile.to(x.dtype.element_ty), mask=valid[:, None] & (d < WIDTH)[None, :])


@triton.jit
def inverse_of_unit_lower(A, PRECISION: tl.constexpr):
    """(I + A)^-1 of a strictly lower 64x64 matrix.

    The four diagonal blocks of 16 by forward substitution, all at once; then, with D their inverses and N = D * (A
    below the blocks), (I - N)(I + N^2) D, exact because N^4 = 0. Powers of whole chunks would cancel badly.
    """
    block = tl.arange(0, 4)
    inner = tl.arange(0, 16)
    diagonal = (block[:, None] == block[None, :])[:, None, :, None]  # (4, 1, 4, 1)
    folded = tl.reshape(A, (4, 16, 4, 16))
    X = -tl.sum(tl.where(diagonal, folded, 0.0), axis=2)  # (4, 16, 16)
    for i in range(1, 16):
        here = (inner == i)[None, :, None]
        row = tl.sum(tl.where(here, X, 0.0), axis=1)  # (4, 16)
        row += tl.sum(row[:, :, None] * X, axis=1)
        X = tl.where(here, row[:, None, :], X)
    X += (inner[:, None] == inner[None, :]).to(tl.float32)[None, :, :]
    D = tl.reshape(tl.where(diagonal, X[:, :, None, :], 0.0), (64, 64))
    below = tl.reshape(tl.where(diagonal, 0.0, folded), (64, 64))
    N = tl.dot(D, below, input_precision=PRECISION)
    R = tl.dot(N, tl.dot(N, D, input_precision=PRECISION), D, input_precision=PRECISION)
    return R - tl.dot(N, R, input_precision=PRECISION)


@triton.jit
def transform_kernel(
    k, v, beta, inverse, w, u, bounds, firsts, S, T, PER_ROW, heads, K, V,
    INVERT: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, NK: tl.constexpr, NV: tl.constexpr,
):  # fmt: skip
    """W = X diag(beta) K and U = X diag(beta) V with X = (I + tril(diag(beta) K K^T, -1))^-1.

    INVERT computes X (and writes it to `inverse` if KEEP), else it is read from there.
    """
    _, chunk, head = whose(heads, 1)
    start, left = place(chunk, bounds, firsts, S, T, PER_ROW, C)
    if left <= 0:
        return
    c = tl.arange(0, C)
    valid = c < left
    rate = tl.load(beta + start * heads + head + c * heads, mask=valid, other=0.0).to(tl.float32)
    square = inverse + (chunk.to(tl.int64) * heads + head) * C * C + c[:, None] * C + c[None, :]
    if INVERT:
        A = tl.zeros([C, C], tl.float32)
        for i in range(NK):
            key = load_tile(k, start, c, heads, head, valid, i * BK + tl.arange(0, BK), K)
            A += dot(key, tl.trans(key))
        A = tl.where(c[:, None] > c[None, :], A * rate[:, None], 0.0)
        X = inverse_of_unit_lower(A, PRECISION).to(k.dtype.element_ty)
        if KEEP:
            tl.store(square, X)
    else:
        X = tl.load(square)
    for i in range(NK):
        d = i * BK + tl.arange(0, BK)
        key = load_tile(k, start, c, heads, head, valid, d, K)
        key = (key * rate[:, None]).to(X.dtype)
        store_tile(w, dot(X, key), start, c, heads, head, valid, d, K)
    for i in range(NV):
        d = i * BV + tl.arange(0, BV)
        value = load_tile(v, start, c, heads, head, valid, d, V)
        value = (value * rate[:, None]).to(X.dtype)
        store_tile(u, dot(X, value), start, c, heads, head, valid, d, V)


@triton.jit
def state_kernel(
    k, w, u, initial, final, states, written, bounds, firsts, T, PER_ROW, heads, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Walks a segment: the state before each chunk, what each chunk really writes (V'), and the last state."""
    segment = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    if bounds is None:
        start = segment.to(tl.int64) * T
        length = T
        chunk = segment * PER_ROW
    else:
        start = tl.load(bounds + segment).to(tl.int64)
        length = tl.load(bounds + segment + 1) - tl.load(bounds + segment)
        chunk = tl.load(firsts + segment)
    c = tl.arange(0, C)
    d = tl.arange(0, BK)
    e = tl.program_id(0) * BV + tl.arange(0, BV)
    inside = (d < K)[:, None] & (e < V)[None, :]
    place_in_state = d[:, None] * V + e[None, :]
    owner = (segment.to(tl.int64) * heads + head) * K * V
    state = tl.zeros([BK, BV], tl.float32)
    if initial is not None:
        state += tl.load(initial + owner + place_in_state, mask=inside, other=0.0).to(tl.float32)
    for i in range((length + C - 1) // C):
        first = start + i * C
        valid = c < length - i * C
        narrow = state.to(k.dtype.element_ty)
        tl.store(states + ((chunk + i).to(tl.int64) * heads + head) * K * V + place_in_state, narrow, mask=inside)
        tile = load_tile(u, first, c, heads, head, valid, e, V).to(tl.float32)
        tile -= dot(load_tile(w, first, c, heads, head, valid, d, K), narrow)
        store_tile(written, tile, first, c, heads, head, valid, e, V)
        key = load_tile(k, first, c, heads, head, valid, d, K)
        state += dot(tl.trans(key), tile.to(key.dtype))
    if final is not None:
        tl.store(final + owner + place_in_state, state, mask=inside)


@triton.jit
def output_kernel(
    q, k, states, written, o, bounds, firsts, S, T, PER_ROW, heads, K, V, scale,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, NK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """O = scale (Q S + tril(Q K^T) V') of one block of value channels."""
    block, chunk, head = whose(heads, BLOCKS)
    start, left = place(chunk, bounds, firsts, S, T, PER_ROW, C)
    if left <= 0:
        return
    c = tl.arange(0, C)
    valid = c < left
    e = block * BV + tl.arange(0, BV)
    state = states + (chunk.to(tl.int64) * heads + head) * K * V
    total = tl.zeros([C, BV], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for i in range(NK):
        d = i * BK + tl.arange(0, BK)
        query = load_tile(q, start, c, heads, head, valid, d, K)
        key = load_tile(k, start, c, heads, head, valid, d, K)
        before = tl.load(state + d[:, None] * V + e[None, :], mask=(d < K)[:, None] & (e < V)[None, :], other=0.0)
        total += dot(query, before)
        scores += dot(query, tl.trans(key))
    value = load_tile(written, start, c, heads, head, valid, e, V)
    scores = tl.where(c[:, None] >= c[None, :], scores, 0.0).to(value.dtype)
    total += dot(scores, value)
    store_tile(o, total * scale, start, c, heads, head, valid, e, V)
