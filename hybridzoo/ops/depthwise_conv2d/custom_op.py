"""`depthwise_conv2d` as torch.library operators: fake, autograd, so that torch.compile and torch.export see one node."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.ops.depthwise_conv2d.triton import depthwise_backward, depthwise_forward


@torch.library.custom_op("hybridzoo::depthwise_conv2d", mutates_args=())
def depthwise_conv2d_op(parts: list[Tensor], weight: Tensor, epilogue: str) -> Tensor:
    return depthwise_forward(parts, weight, epilogue)


@depthwise_conv2d_op.register_fake
def _(parts, weight, epilogue):
    batch, height, width, _ = parts[0].shape
    return parts[0].new_empty((batch, height, width, weight.shape[0]))


@torch.library.custom_op("hybridzoo::depthwise_conv2d_backward", mutates_args=())
def depthwise_conv2d_backward_op(dy: Tensor, parts: list[Tensor], weight: Tensor, epilogue: str) -> list[Tensor]:
    return depthwise_backward(dy if dy.stride(3) == 1 else dy.contiguous(), parts, weight, epilogue)


@depthwise_conv2d_backward_op.register_fake
def _(dy, parts, weight, epilogue):
    return [part.new_empty(part.shape) for part in parts] + [weight.new_empty(weight.shape)]


def _setup_context(ctx, inputs, output) -> None:
    parts, weight, ctx.epilogue = inputs
    ctx.save_for_backward(weight, *parts)


def _backward(ctx, dy):
    weight, *parts = ctx.saved_tensors
    *grads, weight_grad = depthwise_conv2d_backward_op(dy, parts, weight, ctx.epilogue)
    return grads, weight_grad, None


depthwise_conv2d_op.register_autograd(_backward, setup_context=_setup_context)
