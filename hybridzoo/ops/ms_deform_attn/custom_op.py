"""The kernels of `ms_deform_attn` with autograd: a torch.library operator for graphs, a Function for eager calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridzoo.ops.ms_deform_attn.triton import msda_backward, msda_forward


@torch.library.custom_op("hybridzoo::ms_deform_attn", mutates_args=())
def ms_deform_attn_op(value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    return msda_forward(value, shapes, locations, weights)


@ms_deform_attn_op.register_fake
def _(value, shapes, locations, weights):
    return value.new_empty((value.shape[0], weights.shape[1], value.shape[2] * value.shape[3]))


@torch.library.custom_op("hybridzoo::ms_deform_attn_backward", mutates_args=())
def ms_deform_attn_backward_op(
    grad_out: Tensor, value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return msda_backward(grad_out, value, shapes, locations, weights)


@ms_deform_attn_backward_op.register_fake
def _(grad_out, value, shapes, locations, weights):
    return value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    by_value, by_locations, by_weights = ms_deform_attn_backward_op(grad_out, value, ctx.shapes, locations, weights)
    return by_value, None, by_locations, by_weights


ms_deform_attn_op.register_autograd(_backward, setup_context=_setup_context)


class MsDeformAttn(torch.autograd.Function):
    """Eager form: same kernels, without the operator's cost on the host."""

    @staticmethod
    def forward(ctx, value, shapes, locations, weights):
        ctx.shapes = shapes
        ctx.save_for_backward(value, locations, weights)
        return msda_forward(value, shapes, locations, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):
        value, locations, weights = ctx.saved_tensors
        by_value, by_locations, by_weights = msda_backward(grad_outputs[0], value, ctx.shapes, locations, weights)
        return by_value, None, by_locations, by_weights
