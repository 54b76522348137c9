"""`add_layer_norm` as torch.library operators on (N, C) matrices, with fake and autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.ops.add_layer_norm.triton import add_layer_norm_backward, add_layer_norm_forward


@torch.library.custom_op("hybridzoo::add_layer_norm", mutates_args=())
def add_layer_norm_op(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor | None,
    row_scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return add_layer_norm_forward(x, y, scale, row_scale, weight, bias, eps, out_dtype)


@add_layer_norm_op.register_fake
def _(x, y, scale, row_scale, weight, bias, eps, out_dtype):
    dtype = x.dtype if y is None else torch.promote_types(x.dtype, y.dtype)
    rows = 0 if y is None else x.shape[0]
    return x.new_empty((rows, x.shape[1]), dtype=dtype), x.new_empty(x.shape, dtype=out_dtype)


@torch.library.custom_op("hybridzoo::add_layer_norm_backward", mutates_args=())
def add_layer_norm_backward_op(
    total: Tensor,
    y: Tensor | None,
    scale: Tensor | None,
    row_scale: Tensor | None,
    weight: Tensor,
    d_total: Tensor | None,
    d_out: Tensor,
    eps: float,
    dx_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    d_out = d_out if d_out.stride(1) == 1 else d_out.contiguous()
    if d_total is not None and d_total.stride(1) != 1:
        d_total = d_total.contiguous()
    return add_layer_norm_backward(total, y, scale, row_scale, weight, d_total, d_out, eps, dx_dtype)


@add_layer_norm_backward_op.register_fake
def _(total, y, scale, row_scale, weight, d_total, d_out, eps, dx_dtype):
    return (
        total.new_empty(total.shape, dtype=dx_dtype),
        total.new_empty(total.shape if y is not None else (0,), dtype=y.dtype if y is not None else dx_dtype),
        weight.new_empty((3, *weight.shape), dtype=torch.float32),
    )


def _setup_context(ctx, inputs, output) -> None:
    x, y, scale, row_scale, weight, bias, ctx.eps, _ = inputs
    total = x if y is None else output[0]
    ctx.dx_dtype = x.dtype
    ctx.set_materialize_grads(False)
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(total, y, scale, row_scale, weight)


def _backward(ctx, d_total, d_out):
    total, y, scale, row_scale, weight = ctx.saved_tensors
    if y is None:
        d_total = None  # x itself was the sum: its other uses send their gradient to x, not here
    if d_out is None:
        d_out = torch.zeros_like(total)
    dx, dy, sums = add_layer_norm_backward_op(total, y, scale, row_scale, weight, d_total, d_out, ctx.eps, ctx.dx_dtype)
    d_scale = None if scale is None else sums[2].to(scale.dtype)
    return (
        dx,
        None if y is None else dy,
        d_scale,
        None,
        sums[0].to(weight.dtype),
        sums[1].to(ctx.bias_dtype),
        None,
        None,
    )


add_layer_norm_op.register_autograd(_backward, setup_context=_setup_context)
