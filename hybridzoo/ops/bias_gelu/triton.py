"""Triton kernels of `bias_gelu`: one pass forward; one pass backward that sums the bias gradient on the way."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2


@triton.jit
def _forward_kernel(x, bias, y, n_rows, C, sx, ROWS: tl.constexpr, BC: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # the one axis that may be long
    cols = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (rows < n_rows)[:, None] & (cols < C)[None, :]
    value = tl.load(x + rows[:, None] * sx + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
    value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    tl.store(y + rows[:, None] * C + cols[None, :], value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(dy, x, bias, dx, partial, n_rows, C, sd, sx, ROWS: tl.constexpr, BC: tl.constexpr):
    cols = tl.program_id(0) * BC + tl.arange(0, BC)
    shift = tl.load(bias + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((ROWS, BC), dtype=tl.float32)
    for start in range(tl.program_id(1) * ROWS, n_rows, tl.num_programs(1) * ROWS):
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        mask = (rows < n_rows)[:, None] & (cols < C)[None, :]
        value = tl.load(x + rows[:, None] * sx + cols[None, :], mask=mask, other=0.0).to(tl.float32) + shift
        grad = tl.load(dy + rows[:, None] * sd + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        density = tl.exp(-0.5 * value * value) * 0.3989422804014327
        grad *= 0.5 * (1.0 + tl.erf(value * 0.7071067811865476)) + value * density
        total += grad
        tl.store(dx + rows[:, None] * C + cols[None, :], grad.to(dx.dtype.element_ty), mask=mask)
    tl.store(partial + tl.program_id(1) * C + cols, tl.sum(total, 0), mask=cols < C)


def _blocks(channels: int) -> dict[str, int]:
    bc = 128 if channels % 128 == 0 or channels > 128 else next_power_of_2(channels)
    return {"ROWS": max(1, 2048 // bc), "BC": bc}


def bias_gelu_forward(x: Tensor, bias: Tensor) -> Tensor:
    """x (N, C) with unit last stride."""
    n_rows, channels = x.shape
    y = torch.empty((n_rows, channels), dtype=x.dtype, device=x.device)
    blocks = _blocks(channels)
    grid = (cdiv(n_rows, blocks["ROWS"]), cdiv(channels, blocks["BC"]))
    launch(_forward_kernel, grid, x, bias, y, n_rows, channels, x.stride(0), **blocks)
    return y


def bias_gelu_backward(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the bias (fp32 sums, in the bias's dtype)."""
    n_rows, channels = x.shape
    dx = torch.empty((n_rows, channels), dtype=x.dtype, device=x.device)
    blocks = _blocks(channels)
    n_c = cdiv(channels, blocks["BC"])
    programs = min(cdiv(n_rows, blocks["ROWS"]), max(64, 2112 // n_c))  # 16 to a multiprocessor of an H100
    partial = torch.empty((programs, channels), dtype=torch.float32, device=x.device)
    launch(
        _backward_kernel,
        (n_c, programs),
        dy,
        x,
        bias,
        dx,
        partial,
        n_rows,
        channels,
        dy.stride(0),
        x.stride(0),
        **blocks,
    )
    return dx, partial.sum(0).to(bias.dtype)
