"""Triton kernels of `layer_norm_gate` on (N, C): one pass over rows each way, statistics in fp32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2

PROGRAMS = 528  # of the backward, four to a multiprocessor of an H100; each keeps its sums in registers


@triton.jit
def _rows(x, rows, cols, stride, mask):
    return tl.load(x + rows[:, None] * stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _normed(value, mask_c, C, eps):
    mean = tl.sum(value, 1) / C
    centred = tl.where(mask_c[None, :], value - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / C + eps)[:, None]
    return centred * rstd, rstd


@triton.jit
def _forward_kernel(x, gate, weight, bias, y, N, C, sx, sg, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    mask_c = cols < C
    mask = (rows < N)[:, None] & mask_c[None, :]
    w = tl.load(weight + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    normed, _ = _normed(_rows(x, rows, cols, sx, mask), mask_c, C, eps)
    z = _rows(gate, rows, cols, sg, mask)
    out = (normed * w + b) * z / (1.0 + tl.exp(-z))
    tl.store(y + rows[:, None] * C + cols[None, :], out.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    x, gate, weight, bias, dy, dx, dgate, partial, N, C, sx, sg, sdy, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, BLOCK)
    mask_c = cols < C
    w = tl.load(weight + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    sum_w = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    sum_b = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for start in range(tl.program_id(0) * ROWS, N, tl.num_programs(0) * ROWS):
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        mask = (rows < N)[:, None] & mask_c[None, :]
        normed, rstd = _normed(_rows(x, rows, cols, sx, mask), mask_c, C, eps)
        z = _rows(gate, rows, cols, sg, mask)
        grad = _rows(dy, rows, cols, sdy, mask)
        sig = 1.0 / (1.0 + tl.exp(-z))
        to = rows[:, None] * C + cols[None, :]
        through = grad * (normed * w + b) * sig * (1.0 + z * (1.0 - sig))
        tl.store(dgate + to, through.to(dgate.dtype.element_ty), mask=mask)
        grad *= z * sig
        sum_w += grad * normed
        sum_b += grad
        grad *= w
        grad = rstd * (grad - (tl.sum(grad, 1) / C)[:, None] - normed * (tl.sum(grad * normed, 1) / C)[:, None])
        tl.store(dx + to, grad.to(dx.dtype.element_ty), mask=mask)
    out = partial + tl.program_id(0) * 2 * C + cols
    tl.store(out, tl.sum(sum_w, 0), mask=mask_c)
    tl.store(out + C, tl.sum(sum_b, 0), mask=mask_c)


def _blocks(channels: int) -> dict[str, int]:
    block = next_power_of_2(channels)
    rows = max(1, 2048 // block)
    return {"ROWS": rows, "BLOCK": block, "num_warps": max(4, rows * block // 1024)}


def _unit(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def gate_forward(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(N, C) each, weights (C,) -> (N, C)."""
    x, gate = _unit(x), _unit(gate)
    count, channels = x.shape
    y = torch.empty((count, channels), dtype=x.dtype, device=x.device)
    blocks = _blocks(channels)
    launch(_forward_kernel, (cdiv(count, blocks["ROWS"]),),
        x, gate, weight, bias, y, count, channels, x.stride(0), gate.stride(0), float(eps), **blocks,
    )  # fmt: skip
    return y


def gate_backward(
    dy: Tensor, x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gate, weight and bias."""
    x, gate, dy = _unit(x), _unit(gate), _unit(dy)
    count, channels = x.shape
    blocks = _blocks(channels)
    programs = min(cdiv(count, blocks["ROWS"]), PROGRAMS)
    dx, dgate = (torch.empty((count, channels), dtype=x.dtype, device=x.device) for _ in range(2))
    partial = torch.empty((programs, 2, channels), dtype=torch.float32, device=x.device)
    launch(_backward_kernel, (programs,),
        x, gate, weight, bias, dy, dx, dgate, partial,
        count, channels, x.stride(0), gate.stride(0), dy.stride(0), float(eps), **blocks,
    )  # fmt: skip
    sums = partial.sum(0)
    return dx, dgate, sums[0].to(weight.dtype), sums[1].to(bias.dtype)
