"""`max_pool3x3` with autograd: a torch.library operator for graphs, a Function for eager calls."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.ops.max_pool3x3.triton import max_pool_backward, max_pool_forward


@torch.library.custom_op("hybridzoo::max_pool3x3", mutates_args=())
def max_pool3x3_op(x: Tensor, save_taps: bool) -> tuple[Tensor, Tensor]:
    return max_pool_forward(x, save_taps)


@max_pool3x3_op.register_fake
def _(x, save_taps):
    return x.new_empty(x.shape), torch.empty(x.shape if save_taps else (0,), dtype=torch.uint8, device=x.device)


@torch.library.custom_op("hybridzoo::max_pool3x3_backward", mutates_args=())
def max_pool3x3_backward_op(dy: Tensor, taps: Tensor) -> Tensor:
    return max_pool_backward(_unit_stride(dy), taps)


@max_pool3x3_backward_op.register_fake
def _(dy, taps):
    return dy.new_empty(taps.shape)


def _setup_context(ctx, inputs, output) -> None:
    _, taps = output
    ctx.mark_non_differentiable(taps)
    ctx.save_for_backward(taps)


def _backward(ctx, dy, _):
    return max_pool3x3_backward_op(dy, *ctx.saved_tensors), None


max_pool3x3_op.register_autograd(_backward, setup_context=_setup_context)


class MaxPool3x3(torch.autograd.Function):
    """Eager form: same kernels."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y, taps = max_pool_forward(x, ctx.needs_input_grad[0])
        ctx.save_for_backward(taps)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return max_pool_backward(_unit_stride(dy), *ctx.saved_tensors)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
