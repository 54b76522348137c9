"""Triton kernels for the small operations of a decoding step; see `decode_kernels.py`.

Sums are fp32. Results are rounded to the tensors' dtype where the chains of torch operations that they stand for round,
so that a decoded token sees the same norms, rotations and gates as a prefilled one.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def log1p(x):
    """log(1 + x) of x >= 0, exact also where 1 + x is rounded."""
    total = 1.0 + x
    return tl.where(total == 1.0, x, tl.log(total) * (x / tl.where(total == 1.0, 1.0, total - 1.0)))


@triton.jit
def normed(x, weight, dtype: tl.constexpr, D: tl.constexpr, eps):
    """x / rms(x) rounded, times the weight and rounded; x is zero outside of D."""
    scale = tl.rsqrt(tl.sum(x * x, 0) / D + eps)
    return ((x * scale).to(dtype).to(tl.float32) * weight).to(dtype)


@triton.jit
def norm_kernel(x, weight, out, x_b, eps, D: tl.constexpr, DP: tl.constexpr):
    """A row of (B, D)."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, DP)
    inside = d < D
    row = tl.load(x + b * x_b + d, mask=inside, other=0.0)
    w = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + b * D + d, normed(row.to(tl.float32), w, out.dtype.element_ty, D, eps), mask=inside)


@triton.jit
def add_norm_kernel(x, y, weight, total, out, eps, D: tl.constexpr, DP: tl.constexpr):
    """x + y, and that normalised."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, DP)
    inside = d < D
    here = b * D + d
    dtype = total.dtype.element_ty
    row = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    row = (row + tl.load(y + here, mask=inside, other=0.0).to(tl.float32)).to(dtype)
    w = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(total + here, row, mask=inside)
    tl.store(out + here, normed(row.to(tl.float32), w, dtype, D, eps), mask=inside)


@triton.jit
def mean_kernel(x, weight_x, y, weight_y, out, eps, D: tl.constexpr, DP: tl.constexpr):
    """Half the sum of two normalised rows."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, DP)
    inside = d < D
    here = b * D + d
    dtype = out.dtype.element_ty
    one = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    one = normed(one, tl.load(weight_x + d, mask=inside, other=0.0).to(tl.float32), dtype, D, eps)
    two = tl.load(y + here, mask=inside, other=0.0).to(tl.float32)
    two = normed(two, tl.load(weight_y + d, mask=inside, other=0.0).to(tl.float32), dtype, D, eps)
    both = (one.to(tl.float32) + two.to(tl.float32)).to(dtype).to(tl.float32)
    tl.store(out + here, (both * 0.5).to(dtype), mask=inside)


@triton.jit
def three_norms_kernel(
    x, y, z, weight_x, weight_y, weight_z, out_x, out_y, out_z, x_b, y_b, z_b, eps,
    DX: tl.constexpr, DXO: tl.constexpr, DXP: tl.constexpr, DY: tl.constexpr, DYP: tl.constexpr,
):  # fmt: skip
    """A row of three tensors, each normalised by itself; y and z are of one width, out_x is DXO wide, zero from DX."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, DXP)
    dtype = out_x.dtype.element_ty
    row = tl.load(x + b * x_b + d, mask=d < DX, other=0.0).to(tl.float32)
    w = tl.load(weight_x + d, mask=d < DX, other=0.0).to(tl.float32)
    tl.store(out_x + b * DXO + d, normed(row, w, dtype, DX, eps), mask=d < DXO)
    e = tl.arange(0, DYP)
    row = tl.load(y + b * y_b + e, mask=e < DY, other=0.0).to(tl.float32)
    w = tl.load(weight_y + e, mask=e < DY, other=0.0).to(tl.float32)
    tl.store(out_y + b * DY + e, normed(row, w, dtype, DY, eps), mask=e < DY)
    row = tl.load(z + b * z_b + e, mask=e < DY, other=0.0).to(tl.float32)
    w = tl.load(weight_z + e, mask=e < DY, other=0.0).to(tl.float32)
    tl.store(out_z + b * DY + e, normed(row, w, dtype, DY, eps), mask=e < DY)


@triton.jit
def rotate_kernel(
    x, cos, sin, out, T, x_b, x_h, x_t, table_b,
    H: tl.constexpr, K2: tl.constexpr, K2P: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """BT positions of one head of (B, H, T, 2 K2), half-split; out is contiguous."""
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    t = (tl.program_id(1) * BT + tl.arange(0, BT)).to(tl.int64)[:, None]
    d = tl.arange(0, K2P)[None, :]
    inside = (t < T) & (d < K2)
    dtype = out.dtype.element_ty
    c = tl.load(cos + b * table_b + t * K2 + d, mask=inside, other=0.0).to(dtype).to(tl.float32)
    s = tl.load(sin + b * table_b + t * K2 + d, mask=inside, other=0.0).to(dtype).to(tl.float32)
    source = x + b * x_b + h * x_h + t * x_t + d
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + K2, mask=inside, other=0.0).to(tl.float32)
    here = out + ((b * H + h) * T + t) * 2 * K2 + d
    low = (first * c).to(dtype).to(tl.float32) - (second * s).to(dtype).to(tl.float32)
    high = (second * c).to(dtype).to(tl.float32) + (first * s).to(dtype).to(tl.float32)
    tl.store(here, low.to(dtype), mask=inside)
    tl.store(here + K2, high.to(dtype), mask=inside)


@triton.jit
def conv_kernel(
    state, x, weight, bias, out, after, x_b,
    D: tl.constexpr, W: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One position of a causal convolution of W taps; `after` may be `state`."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    new = tl.load(x + b * x_b + d, mask=inside, other=0.0)
    total = new.to(tl.float32) * tl.load(weight + d * W + (W - 1), mask=inside, other=0.0).to(tl.float32)
    here = b * (W - 1) * D + d
    for t in tl.static_range(W - 1):
        old = tl.load(state + here + t * D, mask=inside, other=0.0)
        total += old.to(tl.float32) * tl.load(weight + d * W + t, mask=inside, other=0.0).to(tl.float32)
        if t > 0:
            tl.store(after + here + (t - 1) * D, old, mask=inside)
    tl.store(after + here + (W - 2) * D, new.to(after.dtype.element_ty), mask=inside)
    if bias is not None:
        total += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        total = silu(total)
    tl.store(out + b * D + d, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def scan_kernel(
    state, u, dt, A_log, B, C, skip, z, dt_bias, out, after, u_b, dt_b, B_b, C_b, z_b,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One position of the selective scan with softplus, skip and gate; `after` may be `state`."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, NP)
    inside = d < D
    both = inside[:, None] & (n < N)[None, :]
    here = (b * D + d)[:, None] * N + n[None, :]
    step = tl.load(dt + b * dt_b + d, mask=inside, other=0.0).to(tl.float32)
    step += tl.load(dt_bias + d, mask=inside, other=0.0).to(tl.float32)
    step = tl.where(step > 20.0, step, log1p(tl.exp(tl.minimum(step, 20.0))))
    rate = -tl.exp(tl.load(A_log + d[:, None] * N + n[None, :], mask=both, other=0.0).to(tl.float32))
    x = tl.load(u + b * u_b + d, mask=inside, other=0.0).to(tl.float32)
    drive = tl.load(B + b * B_b + n, mask=n < N, other=0.0).to(tl.float32)
    read = tl.load(C + b * C_b + n, mask=n < N, other=0.0).to(tl.float32)
    h = tl.load(state + here, mask=both, other=0.0) * tl.exp(step[:, None] * rate)
    h += (step * x)[:, None] * drive[None, :]
    tl.store(after + here, h, mask=both)
    y = tl.sum(h * read[None, :], 1) + tl.load(skip + d, mask=inside, other=0.0).to(tl.float32) * x
    y = y * silu(tl.load(z + b * z_b + d, mask=inside, other=0.0).to(tl.float32))
    tl.store(out + b * D + d, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def delta_kernel(
    state, q, k, v, beta, out, after, scale, q_b, k_b, v_b, beta_b,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One position of the delta rule for a block of value channels; `after` may be `state`."""
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    d = tl.arange(0, KP)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    both = (d < K)[:, None] & (e < V)[None, :]
    here = (b * H + h) * K * V + d[:, None] * V + e[None, :]
    key = tl.load(k + b * k_b + h * K + d, mask=d < K, other=0.0).to(tl.float32)
    query = tl.load(q + b * q_b + h * K + d, mask=d < K, other=0.0).to(tl.float32)
    value = tl.load(v + b * v_b + h * V + e, mask=e < V, other=0.0).to(tl.float32)
    rate = tl.load(beta + b * beta_b + h).to(tl.float32)
    s = tl.load(state + here, mask=both, other=0.0)
    said = tl.sum(s * key[:, None], 0)
    s += key[:, None] * ((value - said) * rate)[None, :]
    tl.store(after + here, s, mask=both)
    o = tl.sum(s * query[:, None], 0) * scale
    tl.store(out + (b * H + h) * V + e, o.to(out.dtype.element_ty), mask=e < V)
