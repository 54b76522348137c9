"""The Triton kernels of `long_conv` with autograd: `torch.library` operators for graphs, an eager form beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops._autograd import eager_form
from hybridzoo.ops.long_conv.triton import conv_backward, conv_forward


@torch.library.custom_op("hybridzoo::long_conv_triton", mutates_args=())
def long_conv_triton_op(x: Tensor, kernel: Tensor, reverse_kernel: Tensor | None, skip: Tensor | None) -> Tensor:
    """See `hybridzoo.ops.long_conv.triton.conv_forward`."""
    return conv_forward(x, kernel, reverse_kernel, skip)


@long_conv_triton_op.register_fake
def _(x, kernel, reverse_kernel, skip):
    return x.new_empty(x.shape)


@torch.library.custom_op("hybridzoo::long_conv_triton_backward", mutates_args=())
def long_conv_triton_backward(
    grad: Tensor, x: Tensor, kernel: Tensor, reverse_kernel: Tensor | None, skip: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `hybridzoo.ops.long_conv.triton.conv_backward`."""
    return conv_backward(grad, x, kernel, reverse_kernel, skip)


@long_conv_triton_backward.register_fake
def _(grad, x, kernel, reverse_kernel, skip):
    wide = {"dtype": torch.float32}
    ahead = 0 if reverse_kernel is None else reverse_kernel.shape
    return (
        x.new_empty(x.shape),
        x.new_empty(kernel.shape, **wide),
        x.new_empty(ahead, **wide),
        x.new_empty(kernel.shape[:1], **wide),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor, run: Callable[..., Any] = long_conv_triton_backward) -> tuple[Any, ...]:
    found = run(grad, *ctx.saved_tensors)
    return tuple(None if x is None else g.to(x.dtype) for x, g in zip(ctx.saved_tensors, found))


long_conv_triton_op.register_autograd(_backward, setup_context=_setup)
_eager = eager_form(conv_forward, _setup, lambda ctx, grad: _backward(ctx, grad, run=conv_backward))


def long_conv_triton(*inputs: Any) -> Tensor:
    """Arguments of `long_conv_triton_op`."""
    return (long_conv_triton_op if torch.compiler.is_compiling() else _eager)(*inputs)
