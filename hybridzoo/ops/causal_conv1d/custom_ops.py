"""The Triton kernels of `causal_conv1d` with autograd: `torch.library` operators for graphs, an eager form beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops._autograd import eager_form
from hybridzoo.ops.causal_conv1d.triton import conv_backward, conv_forward


@torch.library.custom_op("hybridzoo::causal_conv1d_triton", mutates_args=())
def conv_triton_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    left: int,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """See `hybridzoo.ops.causal_conv1d.triton.conv_forward`."""
    return conv_forward(x, weight, bias, silu, left, initial_state, seq_idx, cu_seqlens)


@conv_triton_op.register_fake
def _(x, weight, bias, silu, left, initial_state, seq_idx, cu_seqlens):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("hybridzoo::causal_conv1d_triton_backward", mutates_args=())
def conv_triton_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    left: int,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `hybridzoo.ops.causal_conv1d.triton.conv_backward`."""
    return conv_backward(grad_y, x, weight, bias, silu, left, initial_state, seq_idx, cu_seqlens)


@conv_triton_backward.register_fake
def _(grad_y, x, weight, bias, silu, left, initial_state, seq_idx, cu_seqlens):
    def like(t: Tensor | None) -> Tensor:
        return x.new_empty(0) if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device)

    return like(x), like(weight), like(bias), like(initial_state)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.silu, ctx.left, initial_state, seq_idx, cu_seqlens = inputs
    ctx.save_for_backward(x, weight, bias, initial_state, seq_idx, cu_seqlens)


def _backward(ctx: Any, grad_y: Tensor, run: Callable[..., tuple[Tensor, ...]] = conv_triton_backward) -> tuple:
    x, weight, bias, state, seq_idx, cu_seqlens = ctx.saved_tensors
    dx, dw, db, ds = run(grad_y, x, weight, bias, ctx.silu, ctx.left, state, seq_idx, cu_seqlens)
    return dx, dw, None if bias is None else db, None, None, None if state is None else ds, None, None


conv_triton_op.register_autograd(_backward, setup_context=_setup)
_eager = eager_form(conv_forward, _setup, lambda ctx, grad_y: _backward(ctx, grad_y, conv_backward))


def conv_triton(*inputs: Any) -> Tensor:
    """Arguments of `conv_triton_op`."""
    return (conv_triton_op if torch.compiler.is_compiling() else _eager)(*inputs)
