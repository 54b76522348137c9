"""`layer_norm_gate` on (N, C) with autograd: a torch.library operator for graphs, a Function for eager calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops._autograd import eager_form
from hybridzoo.ops.layer_norm_gate.triton import gate_backward, gate_forward


@torch.library.custom_op("hybridzoo::layer_norm_gate", mutates_args=())
def layer_norm_gate_op(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return gate_forward(x, gate, weight, bias, eps)


@layer_norm_gate_op.register_fake
def _(x, gate, weight, bias, eps):
    return x.new_empty(x.shape)


@torch.library.custom_op("hybridzoo::layer_norm_gate_backward", mutates_args=())
def layer_norm_gate_backward_op(
    dy: Tensor, x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, dgate, dw, db = gate_backward(dy, x, gate, weight, bias, eps)
    return dx, dgate, dw.clone(), db.clone()  # an operator's outputs must not share memory


@layer_norm_gate_backward_op.register_fake
def _(dy, x, gate, weight, bias, eps):
    return x.new_empty(x.shape), x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor, run: Any = layer_norm_gate_backward_op) -> tuple[Tensor | None, ...]:
    return *run(dy, *ctx.saved_tensors, ctx.eps), None


layer_norm_gate_op.register_autograd(_backward, setup_context=_setup)
eager = eager_form(gate_forward, _setup, lambda ctx, dy: _backward(ctx, dy, run=gate_backward))
