"""`avg_pool2x2` with autograd: a torch.library operator for graphs, a Function for eager calls."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.ops.avg_pool2x2.triton import pool_2x2, spread_2x2


@torch.library.custom_op("hybridzoo::avg_pool2x2", mutates_args=())
def avg_pool2x2_op(x: Tensor) -> Tensor:
    return pool_2x2(x)


@avg_pool2x2_op.register_fake
def _(x):
    return x.new_empty((x.shape[0], x.shape[1] // 2, x.shape[2] // 2, x.shape[3]))


@torch.library.custom_op("hybridzoo::avg_pool2x2_backward", mutates_args=())
def avg_pool2x2_backward_op(dy: Tensor, height: int, width: int) -> Tensor:
    return spread_2x2(_unit_stride(dy), height, width)


@avg_pool2x2_backward_op.register_fake
def _(dy, height, width):
    return dy.new_empty((dy.shape[0], height, width, dy.shape[3]))


def _setup_context(ctx, inputs, output) -> None:
    ctx.size = inputs[0].shape[1:3]


def _backward(ctx, dy):
    return avg_pool2x2_backward_op(dy, *ctx.size)


avg_pool2x2_op.register_autograd(_backward, setup_context=_setup_context)


class AvgPool2x2(torch.autograd.Function):
    """Eager form: same kernels."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.size = x.shape[1:3]
        return pool_2x2(x)

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return spread_2x2(_unit_stride(dy), *ctx.size)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
