"""The Triton kernels of `long_conv` with autograd: `torch.library` operators for graphs, an eager form beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops._autograd import eager_form
from hybridzoo.ops.long_conv.triton import conv_backward, conv_forward, plan_of, taps_shape


@torch.library.custom_op("hybridzoo::long_conv_triton", mutates_args=())
def long_conv_triton_op(
    x: Tensor, kernel: Tensor, reverse_kernel: Tensor | None, skip: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `hybridzoo.ops.long_conv.triton.conv_forward`."""
    return conv_forward(x, kernel, reverse_kernel, skip)


@long_conv_triton_op.register_fake
def _(x, kernel, reverse_kernel, skip):
    plan = plan_of(x, kernel, reverse_kernel)
    sizes = (plan.channels, plan.count) if plan.half else (0,)
    return (
        x.new_empty(x.shape),
        x.new_empty(taps_shape(plan), dtype=torch.int32 if plan.half else torch.float32),
        x.new_empty(sizes, dtype=torch.float32),
    )


@torch.library.custom_op("hybridzoo::long_conv_triton_backward", mutates_args=())
def long_conv_triton_backward(
    grad: Tensor, x: Tensor, kernel: Tensor, reverse_kernel: Tensor | None, taps: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `hybridzoo.ops.long_conv.triton.conv_backward`."""
    return conv_backward(grad, x, kernel, reverse_kernel, taps, sizes)


@long_conv_triton_backward.register_fake
def _(grad, x, kernel, reverse_kernel, taps, sizes):
    wide = {"dtype": torch.float32}
    ahead = 0 if reverse_kernel is None else reverse_kernel.shape
    return (
        x.new_empty(x.shape),
        x.new_empty(kernel.shape, **wide),
        x.new_empty(ahead, **wide),
        x.new_empty(kernel.shape[:1], **wide),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, kernel, ahead, _ = inputs
    ctx.dtypes = [None if leaf is None else leaf.dtype for leaf in inputs]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, kernel, ahead, *output[1:])


def _backward(
    ctx: Any, grad: Tensor | None, *_: None, run: Callable[..., Any] = long_conv_triton_backward
) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None, None
    found = run(grad, *ctx.saved_tensors)
    return tuple(None if dtype is None else g.to(dtype) for dtype, g in zip(ctx.dtypes, found))


long_conv_triton_op.register_autograd(_backward, setup_context=_setup)
_eager = eager_form(conv_forward, _setup, lambda ctx, *grads: _backward(ctx, *grads, run=conv_backward))


def long_conv_triton(*inputs: Any) -> Tensor:
    """Arguments of `long_conv_triton_op`."""
    return (long_conv_triton_op if torch.compiler.is_compiling() else _eager)(*inputs)[0]
