"""Triton kernels with gradients for the elementwise parts of long rows; see `decode_kernels.py`. Sums are fp32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gate_kernel(gate, up, out, size, BLOCK: tl.constexpr):
    """silu(gate) * up, the first factor rounded."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    dtype = out.dtype.element_ty
    g = tl.load(gate + i, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + i, ((g / (1.0 + tl.exp(-g))).to(dtype).to(tl.float32) * u).to(dtype), mask=inside)


@triton.jit
def gate_backward_kernel(gate, up, grad, grad_gate, grad_up, size, BLOCK: tl.constexpr):
    """Gradients of both factors."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    g = tl.load(gate + i, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + i, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(grad + i, mask=inside, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-g))
    tl.store(grad_up + i, (d * g * s).to(grad_up.dtype.element_ty), mask=inside)
    tl.store(grad_gate + i, (d * u * s * (1.0 + g * (1.0 - s))).to(grad_gate.dtype.element_ty), mask=inside)


@triton.jit
def unit_kernel(x, out, rows, eps, K: tl.constexpr, KP: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK rows of (rows, K), each made of length 1."""
    r = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, KP)
    here = r[:, None] * K + d[None, :]
    inside = (r < rows)[:, None] & (d < K)[None, :]
    tile = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    tile = tile * tl.rsqrt(tl.sum(tile * tile, 1) + eps)[:, None]
    tl.store(out + here, tile.to(out.dtype.element_ty), mask=inside)


@triton.jit
def unit_backward_kernel(x, grad, grad_x, rows, eps, K: tl.constexpr, KP: tl.constexpr, BLOCK: tl.constexpr):
    """dx = r (dy - y (y . dy)) with r = 1 / |x| and y = r x."""
    r = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, KP)
    here = r[:, None] * K + d[None, :]
    inside = (r < rows)[:, None] & (d < K)[None, :]
    tile = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(grad + here, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(tile * tile, 1) + eps)[:, None]
    unit = tile * scale
    down = scale * (up - unit * tl.sum(unit * up, 1)[:, None])
    tl.store(grad_x + here, down.to(grad_x.dtype.element_ty), mask=inside)
