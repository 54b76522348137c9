"""`linear` on (M, K) with autograd: a torch.library operator for graphs, a Function for eager calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops._autograd import eager_form
from hybridzoo.ops.linear.triton import input_gradient, linear_forward, weight_gradient


@torch.library.custom_op("hybridzoo::linear", mutates_args=())
def linear_op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear_forward(x, weight, bias)


@linear_op.register_fake
def _(x, weight, bias):
    return x.new_empty((x.shape[0], weight.shape[0]))


@torch.library.custom_op("hybridzoo::linear_input_gradient", mutates_args=())
def input_gradient_op(dy: Tensor, weight: Tensor) -> Tensor:
    return input_gradient(dy, weight)


@input_gradient_op.register_fake
def _(dy, weight):
    return dy.new_empty((dy.shape[0], weight.shape[1]))


@torch.library.custom_op("hybridzoo::linear_weight_gradient", mutates_args=())
def weight_gradient_op(dy: Tensor, x: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    dw, db = weight_gradient(dy, x, bias=bias)
    return dw.clone(), dw.new_empty(0) if db is None else db.clone()  # outputs must not share memory


@weight_gradient_op.register_fake
def _(dy, x, bias):
    return dy.new_empty((dy.shape[1], x.shape[1])), dy.new_empty(dy.shape[1] if bias else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, dy: Tensor, to_input: Any, to_weight: Any) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dx = to_input(dy, weight) if needs[0] else None
    dw, db = to_weight(dy, x, ctx.has_bias) if needs[1] or needs[2] else (None, None)
    return dx, dw if needs[1] else None, db if needs[2] and ctx.has_bias else None


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, dy, input_gradient_op, weight_gradient_op)


def _backward_eager(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, dy, input_gradient, lambda dy, x, bias: weight_gradient(dy, x, bias=bias))


linear_op.register_autograd(_backward, setup_context=_setup)
eager = eager_form(linear_forward, _setup, _backward_eager)
