"""Triton kernels of `delta_rule`, backward. X, W, the states and V' come from the forward.

With P = scale tril(Q K^T), dS the gradient of the state after a chunk, dO of the output:

    dV' = P^T dO + K dS          dS <- dS + scale Q^T dO - W^T dV'          (chunk by chunk, backwards)
    dQ = scale dO S^T + dP K     dK = V' dS^T + dP^T Q     dW = -dV' S^T    with dP = scale tril(dO V'^T)

and through W = X diag(beta) K, U = X diag(beta) V, X = (I + A)^-1: dA = -tril(X^T (dW K_b^T + dV' V_b^T) X^T, -1).
"""

from __future__ import annotations

import triton
import triton.language as tl

from hybridzoo.ops.delta_rule._kernels import dot, load_tile, place, store_tile, whose


@triton.jit
def local_kernel(
    q, k, grad_o, grad_written, bounds, firsts, S, T, PER_ROW, heads, K, V, scale,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, NK: tl.constexpr, NV: tl.constexpr,
):  # fmt: skip
    """P^T dO, the part of dV' that stays in its chunk, where the walk has no room for it."""
    _, chunk, head = whose(heads, 1)
    start, left = place(chunk, bounds, firsts, S, T, PER_ROW, C)
    if left <= 0:
        return
    c = tl.arange(0, C)
    valid = c < left
    scores = tl.zeros([C, C], tl.float32)  # transposed: key by query
    for i in range(NK):
        d = i * BK + tl.arange(0, BK)
        query = load_tile(q, start, c, heads, head, valid, d, K)
        key = load_tile(k, start, c, heads, head, valid, d, K)
        scores += dot(key, tl.trans(query))
    scores = tl.where(c[:, None] <= c[None, :], scores * scale, 0.0).to(k.dtype.element_ty)
    for i in range(NV):
        e = i * BV + tl.arange(0, BV)
        grad = load_tile(grad_o, start, c, heads, head, valid, e, V)
        store_tile(grad_written, dot(scores, grad), start, c, heads, head, valid, e, V)


@triton.jit
def state_backward_kernel(
    q, k, w, grad_o, grad_final, grad_initial, grad_states, grad_written,
    bounds, firsts, T, PER_ROW, heads, K, V, scale,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, LOCAL: tl.constexpr,
):  # fmt: skip
    """Walks a segment backwards: dV', and the gradient of the state after each chunk.

    LOCAL computes P^T dO, else `grad_written` holds it and dV' is completed in place.
    """
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
    grad = tl.zeros([BK, BV], tl.float32)
    if grad_final is not None:
        grad += tl.load(grad_final + owner + place_in_state, mask=inside, other=0.0).to(tl.float32)
    count = (length + C - 1) // C
    for step in range(count):
        i = count - 1 - step
        first = start + i * C
        valid = c < length - i * C
        narrow = grad.to(k.dtype.element_ty)
        tl.store(grad_states + ((chunk + i).to(tl.int64) * heads + head) * K * V + place_in_state, narrow, mask=inside)
        key = load_tile(k, first, c, heads, head, valid, d, K)
        query = load_tile(q, first, c, heads, head, valid, d, K)
        out = load_tile(grad_o, first, c, heads, head, valid, e, V)
        if LOCAL:
            scores = tl.where(c[:, None] <= c[None, :], scale * dot(key, tl.trans(query)), 0.0)
            tile = dot(scores.to(key.dtype), out)
        else:
            tile = load_tile(grad_written, first, c, heads, head, valid, e, V).to(tl.float32)
        tile += dot(key, narrow)
        store_tile(grad_written, tile, first, c, heads, head, valid, e, V)
        weight = load_tile(w, first, c, heads, head, valid, d, K)
        grad += dot(tl.trans(weight), (-tile).to(weight.dtype))  # added to in place, which a difference is not
        grad += scale * dot(tl.trans(query), out)
    if grad_initial is not None:
        tl.store(grad_initial + owner + place_in_state, grad, mask=inside)


@triton.jit
def inner_backward_kernel(
    q, k, states, written, grad_o, grad_states, grad_written, grad_q, grad_k, grad_w,
    bounds, firsts, S, T, PER_ROW, heads, K, V, scale,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """dQ, dW, and dK but for its part through W and U, of one block of key channels."""
    block, chunk, head = whose(heads, BLOCKS)
    start, left = place(chunk, bounds, firsts, S, T, PER_ROW, C)
    if left <= 0:
        return
    c = tl.arange(0, C)
    valid = c < left
    d = block * BK + tl.arange(0, BK)
    own = (chunk.to(tl.int64) * heads + head) * K * V
    scores = tl.zeros([C, C], tl.float32)
    dq = tl.zeros([C, BK], tl.float32)
    dk = tl.zeros([C, BK], tl.float32)
    dw = tl.zeros([C, BK], tl.float32)
    for i in range(NV):
        e = i * BV + tl.arange(0, BV)
        inside = (e < V)[:, None] & (d < K)[None, :]
        turned = e[:, None] + d[None, :] * V
        state = tl.load(states + own + turned, mask=inside, other=0.0)  # (BV, BK): transposed
        grad_state = tl.load(grad_states + own + turned, mask=inside, other=0.0)
        out = load_tile(grad_o, start, c, heads, head, valid, e, V)
        value = load_tile(written, start, c, heads, head, valid, e, V)
        grad_value = load_tile(grad_written, start, c, heads, head, valid, e, V)
        scores += dot(out, tl.trans(value))
        dq += dot(out, state)
        dk += dot(value, grad_state)
        dw -= dot(grad_value, state)
    query = load_tile(q, start, c, heads, head, valid, d, K)
    key = load_tile(k, start, c, heads, head, valid, d, K)
    scores = tl.where(c[:, None] >= c[None, :], scores, 0.0).to(key.dtype)
    dq = scale * (dq + dot(scores, key))
    dk += scale * dot(tl.trans(scores), query)
    store_tile(grad_q, dq, start, c, heads, head, valid, d, K)
    store_tile(grad_k, dk, start, c, heads, head, valid, d, K)
    store_tile(grad_w, dw, start, c, heads, head, valid, d, K)


@triton.jit
def transform_backward_kernel(
    k, v, beta, inverse, grad_w, grad_written, inner_k, grad_k, grad_v, grad_beta,
    bounds, firsts, S, T, PER_ROW, heads, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, NK: tl.constexpr, NV: tl.constexpr,
):  # fmt: skip
    """dV, dbeta, and dK: `inner_k` and the part through W and U."""
    _, chunk, head = whose(heads, 1)
    start, left = place(chunk, bounds, firsts, S, T, PER_ROW, C)
    if left <= 0:
        return
    c = tl.arange(0, C)
    valid = c < left
    rate = tl.load(beta + start * heads + head + c * heads, mask=valid, other=0.0).to(tl.float32)
    own = (chunk.to(tl.int64) * heads + head) * C * C
    turned = tl.load(inverse + own + c[None, :] * C + c[:, None])  # X^T
    grad_rate = tl.zeros([C], tl.float32)
    grad_x = tl.zeros([C, C], tl.float32)
    gram = tl.zeros([C, C], tl.float32)
    for i in range(NV):
        e = i * BV + tl.arange(0, BV)
        value = load_tile(v, start, c, heads, head, valid, e, V)
        grad = load_tile(grad_written, start, c, heads, head, valid, e, V)
        grad_x += dot(grad, tl.trans((value * rate[:, None]).to(grad.dtype)))
        through = dot(turned, grad)
        grad_rate += tl.sum(through * value, axis=1)
        store_tile(grad_v, through * rate[:, None], start, c, heads, head, valid, e, V)
    for i in range(NK):
        d = i * BK + tl.arange(0, BK)
        key = load_tile(k, start, c, heads, head, valid, d, K)
        grad = load_tile(grad_w, start, c, heads, head, valid, d, K)
        gram += dot(key, tl.trans(key))
        grad_x += dot(grad, tl.trans((key * rate[:, None]).to(grad.dtype)))
        through = dot(turned, grad)
        grad_rate += tl.sum(through * key, axis=1)
    grad_a = dot(turned, grad_x.to(turned.dtype)).to(turned.dtype)
    grad_a = -dot(grad_a, turned)
    grad_a = tl.where(c[:, None] > c[None, :], grad_a, 0.0)
    grad_rate += tl.sum(grad_a * gram, axis=1)
    tl.store(grad_beta + start * heads + head + c * heads, grad_rate.to(grad_beta.dtype.element_ty), mask=valid)
    grad_gram = grad_a * rate[:, None]
    grad_gram = (grad_gram + tl.trans(grad_gram)).to(turned.dtype)
    for i in range(NK):
        d = i * BK + tl.arange(0, BK)
        key = load_tile(k, start, c, heads, head, valid, d, K)
        grad = load_tile(grad_w, start, c, heads, head, valid, d, K)
        total = load_tile(inner_k, start, c, heads, head, valid, d, K).to(tl.float32)
        total += dot(turned, grad) * rate[:, None]  # again: cheaper than keeping it
        total += dot(grad_gram, key)
        store_tile(grad_k, total, start, c, heads, head, valid, d, K)


@triton.jit
def load_turned(states, number, e, d, K, V):
    """(BV, BK) tile of a transposed state."""
    place_in_state = number * K * V + (e[:, None] + d[None, :] * V)
    return tl.load(states + place_in_state, mask=(e < V)[:, None] & (d < K)[None, :], other=0.0)


@triton.jit
def chunk_backward_kernel(
    q, k, v, beta, inverse, states, written, grad_o, grad_states, grad_written, grad_q, grad_k, grad_v, grad_beta,
    bounds, firsts, S, T, PER_ROW, heads, K, V, scale,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr,
):  # fmt: skip
    """`inner_backward_kernel` and `transform_backward_kernel` in one: dW and a part of dK stay in registers.

    A program has every key channel, BK of them. With G = dW K^T + dV' V^T, X's gradient is G diag(beta), and the part
    of dbeta through W and U the column sums of X * G: matrices of channels are operands of products only.
    """
    _, chunk, head = whose(heads, 1)
    start, left = place(chunk, bounds, firsts, S, T, PER_ROW, C)
    if left <= 0:
        return
    c = tl.arange(0, C)
    valid = c < left
    d = tl.arange(0, BK)
    number = chunk.to(tl.int64) * heads + head
    scores = tl.zeros([C, C], tl.float32)
    dq = tl.zeros([C, BK], tl.float32)
    for i in range(NV):
        e = i * BV + tl.arange(0, BV)
        out = load_tile(grad_o, start, c, heads, head, valid, e, V)
        scores += dot(out, tl.trans(load_tile(written, start, c, heads, head, valid, e, V)))
        dq += dot(out, load_turned(states, number, e, d, K, V))
    key = load_tile(k, start, c, heads, head, valid, d, K)
    scores = tl.where(c[:, None] >= c[None, :], scores * scale, 0.0).to(key.dtype)
    dq = dq * scale + dot(scores, key)
    store_tile(grad_q, dq, start, c, heads, head, valid, d, K)
    G = tl.zeros([C, C], tl.float32)
    dw = tl.zeros([C, BK], tl.float32)
    for i in range(NV):
        e = i * BV + tl.arange(0, BV)
        grad = load_tile(grad_written, start, c, heads, head, valid, e, V)
        G += dot(grad, tl.trans(load_tile(v, start, c, heads, head, valid, e, V)))
        dw -= dot(grad, load_turned(states, number, e, d, K, V))
    weight = dw.to(key.dtype)
    rate = tl.load(beta + start * heads + head + c * heads, mask=valid, other=0.0).to(tl.float32)
    X = tl.load(inverse + number * C * C + c[:, None] * C + c[None, :])
    for i in range(NV):
        e = i * BV + tl.arange(0, BV)
        grad = load_tile(grad_written, start, c, heads, head, valid, e, V)
        store_tile(grad_v, dot(tl.trans(X), grad) * rate[:, None], start, c, heads, head, valid, e, V)
    G += dot(weight, tl.trans(key))
    grad_a = dot(tl.trans(X), (G * rate[None, :]).to(X.dtype)).to(X.dtype)
    grad_a = tl.where(c[:, None] > c[None, :], -dot(grad_a, tl.trans(X)), 0.0)
    grad_rate = tl.sum(X * G, axis=0)[:, None] + tl.sum(grad_a * dot(key, tl.trans(key)), axis=1)[:, None]
    tl.store(
        grad_beta + start * heads + head + (c * heads)[:, None],
        grad_rate.to(grad_beta.dtype.element_ty),
        mask=valid[:, None],
    )
    dk = dot(tl.trans(X), weight) * rate[:, None]
    grad_a *= rate[:, None]
    dk += dot((grad_a + tl.trans(grad_a)).to(key.dtype), key)
    dk += dot(tl.trans(scores), load_tile(q, start, c, heads, head, valid, d, K))
    for i in range(NV):
        e = i * BV + tl.arange(0, BV)
        value = load_tile(written, start, c, heads, head, valid, e, V)
        dk += dot(value, load_turned(grad_states, number, e, d, K, V))
    store_tile(grad_k, dk, start, c, heads, head, valid, d, K)
