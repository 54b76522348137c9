"""`bias_gelu` on (N, C) with autograd: a torch.library operator for graphs, a Function for eager calls."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.ops.bias_gelu.triton import bias_gelu_backward, bias_gelu_forward


@torch.library.custom_op("hybridzoo::bias_gelu", mutates_args=())
def bias_gelu_op(x: Tensor, bias: Tensor) -> Tensor:
    return bias_gelu_forward(x, bias)


@bias_gelu_op.register_fake
def _(x, bias):
    return x.new_empty(x.shape)


@torch.library.custom_op("hybridzoo::bias_gelu_backward", mutates_args=())
def bias_gelu_backward_op(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return bias_gelu_backward(_unit_stride(dy), x, bias)


@bias_gelu_backward_op.register_fake
def _(dy, x, bias):
    return x.new_empty(x.shape), bias.new_empty(bias.shape)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy):
    return bias_gelu_backward_op(dy, *ctx.saved_tensors)


bias_gelu_op.register_autograd(_backward, setup_context=_setup_context)


class BiasGelu(torch.autograd.Function):
    """Eager form: same kernels."""

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias)
        return bias_gelu_forward(x, bias)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor]:
        return bias_gelu_backward(_unit_stride(dy), *ctx.saved_tensors)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
