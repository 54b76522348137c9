"""`add_layer_norm` on (N, C) with autograd: a torch.library operator for graphs, a Function for eager calls."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.ops.add_layer_norm.triton import add_layer_norm_backward, add_layer_norm_forward


@torch.library.custom_op("hybridzoo::add_layer_norm", mutates_args=())
def add_layer_norm_op(
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
    return add_layer_norm_forward(x, y, y_bias, scale, row_scale, weight, bias, eps, out_dtype)


@add_layer_norm_op.register_fake
def _(x, y, y_bias, scale, row_scale, weight, bias, eps, out_dtype):
    dtype = x.dtype if y is None else torch.promote_types(x.dtype, y.dtype)
    rows = 0 if y is None else x.shape[0]
    return x.new_empty((rows, x.shape[1]), dtype=dtype), x.new_empty(x.shape, dtype=out_dtype)


@torch.library.custom_op("hybridzoo::add_layer_norm_backward", mutates_args=())
def add_layer_norm_backward_op(
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
    return add_layer_norm_backward(total, y, y_bias, scale, row_scale, weight, d_total, d_out, eps, dx_dtype)


@add_layer_norm_backward_op.register_fake
def _(total, y, y_bias, scale, row_scale, weight, d_total, d_out, eps, dx_dtype):
    return (
        total.new_empty(total.shape, dtype=dx_dtype),
        total.new_empty(total.shape if y is not None else (0,), dtype=y.dtype if y is not None else dx_dtype),
        weight.new_empty((4, *weight.shape), dtype=torch.float32),
    )


def _setup_context(ctx, inputs, output) -> None:
    x, y, y_bias, scale, row_scale, weight, bias, ctx.eps, _ = inputs
    ctx.x_dtype, ctx.bias_dtype = x.dtype, bias.dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if y is None else output[0], y, y_bias, scale, row_scale, weight)


def _gradients(ctx, d_total, d_out, run):
    total, y, y_bias, scale, row_scale, weight = ctx.saved_tensors
    if y is None:
        d_total = None  # x itself was the sum: its other uses send their gradient to x, not here
    if d_out is None:
        d_out = torch.zeros_like(total)
    d_out = d_out if d_out.stride(1) == 1 else d_out.contiguous()
    if d_total is not None and d_total.stride(1) != 1:
        d_total = d_total.contiguous()
    dx, dy, sums = run(total, y, y_bias, scale, row_scale, weight, d_total, d_out, ctx.eps, ctx.x_dtype)
    return (
        dx,
        None if y is None else dy,
        None if y_bias is None else sums[3].to(y_bias.dtype),
        None if scale is None else sums[2].to(scale.dtype),
        None,
        sums[0].to(weight.dtype),
        sums[1].to(ctx.bias_dtype),
        None,
        None,
    )


def _backward(ctx, d_total, d_out):
    return _gradients(ctx, d_total, d_out, add_layer_norm_backward_op)


add_layer_norm_op.register_autograd(_backward, setup_context=_setup_context)


class AddLayerNorm(torch.autograd.Function):
    """Eager form: same kernels."""

    @staticmethod
    def forward(ctx, *inputs):
        output = add_layer_norm_forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx, d_total, d_out):
        return _gradients(ctx, d_total, d_out, add_layer_norm_backward)
