"""Triton kernels of `add_layer_norm`: residual sum and LayerNorm in one pass over rows, statistics in fp32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2


@triton.jit
def _forward_kernel(
    x, y, y_bias, scale, row_scale, weight, bias, total, out, n_rows, C, tokens, sx, sy, eps,
    HAS_Y: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_ROW: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    mask_c = cols < C
    mask = (rows < n_rows)[:, None] & mask_c[None, :]
    value = tl.load(x + rows[:, None] * sx + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_Y:
        branch = tl.load(y + rows[:, None] * sy + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            branch += tl.load(y_bias + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
        if HAS_SCALE:
            branch *= tl.load(scale + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
        if HAS_ROW:
            branch *= tl.load(row_scale + rows // tokens, mask=rows < n_rows, other=0.0).to(tl.float32)[:, None]
        rounded = (value + branch).to(total.dtype.element_ty)
        tl.store(total + rows[:, None] * C + cols[None, :], rounded, mask=mask)
        value = rounded.to(tl.float32)
    mean = tl.sum(value, 1) / C
    centred = tl.where(mask_c[None, :], value - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / C + eps)
    w = tl.load(weight + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    normed = centred * rstd[:, None] * w + b
    tl.store(out + rows[:, None] * C + cols[None, :], normed.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    total, y, y_bias, scale, row_scale, weight, d_total, d_out, dx, dy, partial,
    n_rows, C, tokens, st, sy, sdt, sdo, eps,
    HAS_Y: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_ROW: tl.constexpr,
    HAS_TOTAL_GRAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, BLOCK)
    mask_c = cols < C
    w = tl.load(weight + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    if HAS_SCALE:
        layer_scale = tl.load(scale + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        branch_bias = tl.load(y_bias + cols, mask=mask_c, other=0.0).to(tl.float32)[None, :]
        sum_y = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    sum_w = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    sum_b = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    sum_s = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for start in range(tl.program_id(0) * ROWS, n_rows, tl.num_programs(0) * ROWS):
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        mask = (rows < n_rows)[:, None] & mask_c[None, :]
        value = tl.load(total + rows[:, None] * st + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(d_out + rows[:, None] * sdo + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        mean = tl.sum(value, 1) / C
        centred = tl.where(mask_c[None, :], value - mean[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, 1) / C + eps)[:, None]
        normed = centred * rstd
        sum_w += grad * normed
        sum_b += grad
        grad *= w
        grad = rstd * (grad - (tl.sum(grad, 1) / C)[:, None] - normed * (tl.sum(grad * normed, 1) / C)[:, None])
        if HAS_TOTAL_GRAD:
            grad += tl.load(d_total + rows[:, None] * sdt + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + rows[:, None] * C + cols[None, :], grad.to(dx.dtype.element_ty), mask=mask)
        if HAS_Y:
            if HAS_ROW:
                keep = tl.load(row_scale + rows // tokens, mask=rows < n_rows, other=0.0).to(tl.float32)
                grad *= keep[:, None]
            if HAS_SCALE:
                branch = tl.load(y + rows[:, None] * sy + cols[None, :], mask=mask, other=0.0).to(tl.float32)
                if HAS_BIAS:
                    branch += branch_bias
                sum_s += tl.where(mask, grad * branch, 0.0)
                grad *= layer_scale
            if HAS_BIAS:
                sum_y += tl.where(mask, grad, 0.0)
            tl.store(dy + rows[:, None] * C + cols[None, :], grad.to(dy.dtype.element_ty), mask=mask)
    out = partial + tl.program_id(0) * 4 * C + cols
    tl.store(out, tl.sum(sum_w, 0), mask=mask_c)
    tl.store(out + C, tl.sum(sum_b, 0), mask=mask_c)
    if HAS_SCALE:  # else nobody reads it
        tl.store(out + 2 * C, tl.sum(sum_s, 0), mask=mask_c)
    if HAS_BIAS:
        tl.store(out + 3 * C, tl.sum(sum_y, 0), mask=mask_c)


def _blocks(channels: int) -> dict[str, int]:
    block = next_power_of_2(channels)
    rows = max(1, 2048 // block)
    return {"ROWS": rows, "BLOCK": block, "num_warps": max(4, rows * block // 1024)}


def add_layer_norm_forward(
    x: Tensor,
    y: Tensor | None,
    y_bias: Tensor | None,
    scale: Tensor | None,
    row_scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Arguments as checked by `add_layer_norm`, x and y as (N, C) with unit last stride."""
    n_rows, channels = x.shape
    total_dtype = x.dtype if y is None else torch.promote_types(x.dtype, y.dtype)
    total = torch.empty((n_rows if y is not None else 0, channels), dtype=total_dtype, device=x.device)
    out = torch.empty((n_rows, channels), dtype=out_dtype, device=x.device)
    blocks = _blocks(channels)
    tokens = n_rows // row_scale.numel() if row_scale is not None else 1
    launch(_forward_kernel, (cdiv(n_rows, blocks["ROWS"]),),
        x, x if y is None else y, weight if y_bias is None else y_bias, weight if scale is None else scale,
        weight if row_scale is None else row_scale,
        weight, bias, total, out, n_rows, channels, tokens, x.stride(0), 0 if y is None else y.stride(0), eps,
        HAS_Y=y is not None, HAS_BIAS=y_bias is not None, HAS_SCALE=scale is not None, HAS_ROW=row_scale is not None,
        **blocks,
    )  # fmt: skip
    return total, out


def add_layer_norm_backward(
    total: Tensor,
    y: Tensor | None,
    y_bias: Tensor | None,
    scale: Tensor | None,
    row_scale: Tensor | None,
    weight: Tensor,
    d_total: Tensor | None,
    d_out: Tensor,
    eps: float,
    dx_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and y (empty without y), and (4, C) fp32: those of weight, bias, scale, y_bias."""
    n_rows, channels = total.shape
    blocks = _blocks(channels)
    tiles = cdiv(n_rows, blocks["ROWS"])
    programs = min(tiles, 528)  # four to a multiprocessor of an H100; each keeps its sums in registers
    dx = torch.empty((n_rows, channels), dtype=dx_dtype, device=total.device)
    dy = torch.empty((n_rows, channels), dtype=y.dtype, device=total.device) if y is not None else dx.new_empty(0)
    partial = torch.empty((programs, 4, channels), dtype=torch.float32, device=total.device)
    tokens = n_rows // row_scale.numel() if row_scale is not None else 1
    launch(_backward_kernel, (programs,),
        total, total if y is None else y, weight if y_bias is None else y_bias, weight if scale is None else scale,
        weight if row_scale is None else row_scale, weight, d_out if d_total is None else d_total, d_out,
        dx, dx if y is None else dy, partial, n_rows, channels, tokens,
        total.stride(0), 0 if y is None else y.stride(0), 0 if d_total is None else d_total.stride(0),
        d_out.stride(0), eps,
        HAS_Y=y is not None, HAS_BIAS=y_bias is not None, HAS_SCALE=scale is not None, HAS_ROW=row_scale is not None,
        HAS_TOTAL_GRAD=d_total is not None, **blocks,
    )  # fmt: skip
    return dx, dy, partial.sum(0)
