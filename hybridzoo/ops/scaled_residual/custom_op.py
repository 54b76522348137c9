"""`scaled_residual` on (N, C) with autograd: a torch.library operator for graphs, a Function for eager calls."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.ops.scaled_residual.triton import scaled_residual_backward, scaled_residual_forward


@torch.library.custom_op("hybridzoo::scaled_residual", mutates_args=())
def scaled_residual_op(
    x: Tensor,
    y: Tensor,
    y_bias: Tensor | None,
    scale: Tensor | None,
    row_scale: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    return scaled_residual_forward(x, y, y_bias, scale, row_scale, out_dtype)


@scaled_residual_op.register_fake
def _(x, y, y_bias, scale, row_scale, out_dtype):
    return x.new_empty(x.shape, dtype=out_dtype)


@torch.library.custom_op("hybridzoo::scaled_residual_backward", mutates_args=())
def scaled_residual_backward_op(
    d_out: Tensor, y: Tensor, y_bias: Tensor | None, scale: Tensor | None, row_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    return scaled_residual_backward(d_out, y, y_bias, scale, row_scale)


@scaled_residual_backward_op.register_fake
def _(d_out, y, y_bias, scale, row_scale):
    return y.new_empty(d_out.shape), d_out.new_empty((2, d_out.shape[1]), dtype=torch.float32)


def _setup_context(ctx, inputs, output) -> None:
    x, y, y_bias, scale, row_scale, _ = inputs
    ctx.x_dtype = x.dtype
    ctx.save_for_backward(y, y_bias, scale, row_scale)


def _gradients(ctx, d_out, run):
    y, y_bias, scale, row_scale = ctx.saved_tensors
    d_out = d_out if d_out.stride(1) == 1 else d_out.contiguous()
    dx = d_out.to(ctx.x_dtype)
    if y.shape[0] != d_out.shape[0]:  # y repeats, and then has no factors
        dy = d_out.view(-1, *y.shape).sum(0, dtype=torch.float32).to(y.dtype)
        return dx, dy, None, None, None, None
    if y_bias is None and scale is None and row_scale is None:
        return dx, d_out.to(y.dtype), None, None, None, None
    dy, sums = run(d_out, y, y_bias, scale, row_scale)
    d_bias = None if y_bias is None else sums[0].to(y_bias.dtype)
    return dx, dy, d_bias, None if scale is None else sums[1].to(scale.dtype), None, None


def _backward(ctx, d_out):
    return _gradients(ctx, d_out, scaled_residual_backward_op)


scaled_residual_op.register_autograd(_backward, setup_context=_setup_context)


class ScaledResidual(torch.autograd.Function):
    """Eager form: same kernels."""

    @staticmethod
    def forward(ctx, *inputs):
        output = scaled_residual_forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx, d_out):
        return _gradients(ctx, d_out, scaled_residual_backward)
