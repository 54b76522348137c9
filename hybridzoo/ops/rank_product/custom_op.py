"""`rank_product` with autograd: a torch.library operator for graphs, a Function for eager calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops._autograd import eager_form
from hybridzoo.ops.rank_product.triton import forward, gradients


@torch.library.custom_op("hybridzoo::rank_product", mutates_args=())
def rank_product_op(rank: Tensor, weight: Tensor) -> Tensor:
    return forward(rank, weight)


@rank_product_op.register_fake
def _(rank, weight):
    return rank.new_empty((rank.shape[0], *weight.shape[:2]))


@torch.library.custom_op("hybridzoo::rank_product_backward", mutates_args=())
def rank_product_backward_op(grad: Tensor, rank: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return gradients(grad, rank, weight)


@rank_product_backward_op.register_fake
def _(grad, rank, weight):
    return rank.new_empty(rank.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor, run: Any = rank_product_backward_op) -> tuple[Tensor, Tensor]:
    return run(grad, *ctx.saved_tensors)


rank_product_op.register_autograd(_backward, setup_context=_setup)
eager = eager_form(forward, _setup, lambda ctx, grad: _backward(ctx, grad, run=gradients))
