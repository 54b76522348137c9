"""`instance_norm_silu` on (B, L, C) with autograd: a torch.library operator for graphs, a Function for eager calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops._autograd import eager_form
from hybridzoo.ops.instance_norm_silu.triton import norm_backward, norm_forward


@torch.library.custom_op("hybridzoo::instance_norm_silu", mutates_args=())
def instance_norm_silu_op(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The map, and means and inverse deviations (B, C) for the backward."""
    return norm_forward(x, eps)


@instance_norm_silu_op.register_fake
def _(x, eps):
    vectors = [x.new_empty((x.shape[0], x.shape[2]), dtype=torch.float32) for _ in range(2)]
    return x.new_empty(x.shape), vectors[0], vectors[1]


@torch.library.custom_op("hybridzoo::instance_norm_silu_backward", mutates_args=())
def instance_norm_silu_backward_op(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    return norm_backward(dy, x, mean, rstd)


@instance_norm_silu_backward_op.register_fake
def _(dy, x, mean, rstd):
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # else two fills a call for the statistics' gradients, which nobody reads
    ctx.save_for_backward(inputs[0], *output[1:])


def _backward(ctx: Any, dy: Tensor, *_: Any, run: Any = instance_norm_silu_backward_op) -> tuple[Tensor, None]:
    return run(dy, *ctx.saved_tensors), None


instance_norm_silu_op.register_autograd(_backward, setup_context=_setup)
eager = eager_form(norm_forward, _setup, lambda ctx, *grads: _backward(ctx, *grads, run=norm_backward))
