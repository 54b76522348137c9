"""Triton kernels of `scaled_residual`: one pass forward; one pass backward that also sums the vectors' gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2


@triton.jit
def _forward_kernel(
    x, y, y_bias, scale, row_scale, out, n_rows, C, tokens, period, sx, sy,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_ROW: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # the one axis that may be long
    cols = tl.program_id(1) * BC + tl.arange(0, BC)
    mask_c = cols < C
    mask = (rows < n_rows)[:, None] & mask_c[None, :]
    branch = tl.load(y + (rows % period)[:, None] * sy + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    value = tl.load(x + rows[:, None] * sx + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        branch += tl.load(y_bias + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    if HAS_SCALE:
        branch *= tl.load(scale + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    if HAS_ROW:
        branch *= tl.load(row_scale + rows // tokens, mask=rows < n_rows, other=0.0).to(tl.float32)[:, None]
    tl.store(out + rows[:, None] * C + cols[None, :], (value + branch).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    d_out, y, y_bias, scale, row_scale, dy, partial, n_rows, C, tokens, sd, sy,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_ROW: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    cols = tl.program_id(0) * BC + tl.arange(0, BC)
    mask_c = cols < C
    if HAS_BIAS:
        bias = tl.load(y_bias + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
        sum_b = tl.zeros((ROWS, BC), dtype=tl.float32)
    if HAS_SCALE:
        factor = tl.load(scale + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
        sum_s = tl.zeros((ROWS, BC), dtype=tl.float32)
    for start in range(tl.program_id(1) * ROWS, n_rows, tl.num_programs(1) * ROWS):
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        mask = (rows < n_rows)[:, None] & mask_c[None, :]
        grad = tl.load(d_out + rows[:, None] * sd + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        if HAS_ROW:
            grad *= tl.load(row_scale + rows // tokens, mask=rows < n_rows, other=0.0).to(tl.float32)[:, None]
        if HAS_SCALE:
            branch = tl.load(y + rows[:, None] * sy + cols[None, :], mask=mask, other=0.0).to(tl.float32)
            if HAS_BIAS:
                branch += bias
            sum_s += grad * branch
            grad *= factor
        if HAS_BIAS:
            sum_b += grad
        tl.store(dy + rows[:, None] * C + cols[None, :], grad.to(dy.dtype.element_ty), mask=mask)
    out = partial + tl.program_id(1) * 2 * C + cols
    if HAS_BIAS:
        tl.store(out, tl.sum(sum_b, 0), mask=mask_c)
    if HAS_SCALE:
        tl.store(out + C, tl.sum(sum_s, 0), mask=mask_c)


def _blocks(channels: int) -> dict[str, int]:
    bc = 128 if channels > 128 else next_power_of_2(channels)
    return {"ROWS": max(1, 2048 // bc), "BC": bc}


def scaled_residual_forward(
    x: Tensor,
    y: Tensor,
    y_bias: Tensor | None,
    scale: Tensor | None,
    row_scale: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """x (N, C), y (N, C) or (P, C) with N a multiple of P, which then repeats; unit last strides."""
    n_rows, channels = x.shape
    out = torch.empty((n_rows, channels), dtype=out_dtype, device=x.device)
    blocks = _blocks(channels)
    tokens = n_rows // row_scale.numel() if row_scale is not None else 1
    launch(_forward_kernel, (cdiv(n_rows, blocks["ROWS"]), cdiv(channels, blocks["BC"])),
        x, y, x if y_bias is None else y_bias, x if scale is None else scale, x if row_scale is None else row_scale,
        out, n_rows, channels, tokens, y.shape[0], x.stride(0), y.stride(0),
        HAS_BIAS=y_bias is not None, HAS_SCALE=scale is not None, HAS_ROW=row_scale is not None, **blocks,
    )  # fmt: skip
    return out


def scaled_residual_backward(
    d_out: Tensor, y: Tensor, y_bias: Tensor | None, scale: Tensor | None, row_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradient of y (N, C), and (2, C) fp32: those of y_bias and scale (unset where there is none)."""
    n_rows, channels = d_out.shape
    dy = torch.empty((n_rows, channels), dtype=y.dtype, device=y.device)
    blocks = _blocks(channels)
    n_c = cdiv(channels, blocks["BC"])
    programs = min(cdiv(n_rows, blocks["ROWS"]), max(64, 2112 // n_c))
    partial = torch.empty((programs, 2, channels), dtype=torch.float32, device=y.device)
    tokens = n_rows // row_scale.numel() if row_scale is not None else 1
    launch(_backward_kernel, (n_c, programs),
        d_out, y, y if y_bias is None else y_bias, y if scale is None else scale,
        y if row_scale is None else row_scale, dy, partial, n_rows, channels, tokens, d_out.stride(0), y.stride(0),
        HAS_BIAS=y_bias is not None, HAS_SCALE=scale is not None, HAS_ROW=row_scale is not None, **blocks,
    )  # fmt: skip
    return dy, partial.sum(0)
