"""`depthwise_conv2d` with autograd: a torch.library operator for graphs, a Function for eager calls."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.ops.depthwise_conv2d.triton import depthwise_backward, depthwise_forward, part_gradients


@torch.library.custom_op("hybridzoo::depthwise_conv2d", mutates_args=())
def depthwise_conv2d_op(parts: list[Tensor], weight: Tensor, epilogue: str, bias: Tensor | None) -> Tensor:
    return depthwise_forward(parts, weight, epilogue, bias)


@depthwise_conv2d_op.register_fake
def _(parts, weight, epilogue, bias):
    return parts[0].new_empty((*parts[0].shape[:3], weight.shape[0]))


@torch.library.custom_op("hybridzoo::depthwise_conv2d_backward", mutates_args=())
def depthwise_conv2d_backward_op(
    dy: Tensor, parts: list[Tensor], weight: Tensor, epilogue: str, bias: Tensor | None
) -> tuple[list[Tensor], Tensor, Tensor]:
    dx, weight_grad, bias_grad = depthwise_backward(_unit_stride(dy), parts, weight, epilogue, bias)
    grads = part_gradients(dx, parts)  # an operator's outputs must not share memory
    bias_grad = weight.new_empty(0) if bias_grad is None else bias_grad.clone()
    return [g.contiguous() if len(parts) > 1 else g for g in grads], weight_grad, bias_grad


@depthwise_conv2d_backward_op.register_fake
def _(dy, parts, weight, epilogue, bias):
    vector = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return [part.new_empty(part.shape) for part in parts], weight.new_empty(weight.shape), vector


def _setup_context(ctx, inputs, output) -> None:
    parts, weight, ctx.epilogue, bias = inputs
    ctx.save_for_backward(weight, bias, *parts)


def _backward(ctx, dy):
    weight, bias, *parts = ctx.saved_tensors
    grads, weight_grad, bias_grad = depthwise_conv2d_backward_op(dy, parts, weight, ctx.epilogue, bias)
    return grads, weight_grad, None, None if bias is None else bias_grad


depthwise_conv2d_op.register_autograd(_backward, setup_context=_setup_context)


class DepthwiseConv2d(torch.autograd.Function):
    """Eager form: same kernels; the gradients of several parts are slices of one tensor."""

    @staticmethod
    def forward(ctx, weight: Tensor, epilogue: str, bias: Tensor | None, *parts: Tensor) -> Tensor:
        ctx.epilogue = epilogue
        ctx.save_for_backward(weight, bias, *parts)
        return depthwise_forward(parts, weight, epilogue, bias)

    @staticmethod
    def backward(ctx, dy: Tensor):
        weight, bias, *parts = ctx.saved_tensors
        dx, weight_grad, bias_grad = depthwise_backward(_unit_stride(dy), parts, weight, ctx.epilogue, bias)
        return weight_grad, None, bias_grad, *part_gradients(dx, parts)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
