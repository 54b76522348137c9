"""`conv2d_relu` as a torch.library operator for graphs; without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.ops.conv2d_relu import output_shape
from hybridzoo.ops.conv2d_relu.triton import conv2d_forward


@torch.library.custom_op("hybridzoo::conv2d_relu", mutates_args=())
def conv2d_relu_op(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, relu: bool, tf32: bool
) -> Tensor:
    return conv2d_forward(x, weight, bias, residual, stride, relu, tf32)


@conv2d_relu_op.register_fake
def _(x, weight, bias, residual, stride, relu, tf32):
    return x.new_empty(output_shape(x, weight, stride))
