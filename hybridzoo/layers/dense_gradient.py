"""A seam in the backward pass: gradients become contiguous."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _DenseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0].contiguous()


def dense_gradient(x: Tensor) -> Tensor:
    """x itself, any shape and dtype; the gradient that comes back to it is made contiguous.

    For what scaled_dot_product_attention returns, where it is concatenated or split afterwards: cuDNN's backward takes
    the strides of the incoming gradient for those of the output (https://github.com/pytorch/pytorch/issues/138354). A
    slice of a wider gradient gave wrong or NaN gradients in bfloat16 on an H100.
    """
    return _DenseGradient.apply(x) if x.requires_grad else x
