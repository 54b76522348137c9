"""The Triton kernels of `linear_attention` with autograd: `torch.library` operators and an eager form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops._autograd import eager_form
from hybridzoo.ops._launch import cdiv
from hybridzoo.ops.linear_attention import triton as kernels


@torch.library.custom_op("hybridzoo::linear_attention_triton", mutates_args=())
def linear_attention_triton_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    causal: bool,
    normalize: bool,
    scale: float,
    eps: float,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `hybridzoo.ops.linear_attention.triton.attention_forward`."""
    return kernels.attention_forward(q, k, v, decay, causal, normalize, scale, eps, initial_state)


@linear_attention_triton_op.register_fake
def _(q, k, v, decay, causal, normalize, scale, eps, initial_state):
    batch, length, heads, keys = q.shape
    state = (heads, keys, v.shape[3] + int(normalize))  # a symbol plus a truth value fails in torch 2.11
    spans = batch * cdiv(length, kernels.TUNING.span)
    wide = {"dtype": torch.float32}
    return (
        v.new_empty(v.shape),
        v.new_empty(batch, *state, **wide),
        v.new_empty(spans, *state, **wide) if causal else v.new_empty(0, **wide),
        v.new_empty(q.shape[:3] if normalize else 0, **wide),
    )


@torch.library.custom_op("hybridzoo::linear_attention_triton_backward", mutates_args=())
def linear_attention_triton_backward(
    grad_out: Tensor,
    grad_final: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    causal: bool,
    normalize: bool,
    scale: float,
    eps: float,
    out: Tensor,
    final: Tensor,
    states: Tensor,
    sums: Tensor,
    learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `hybridzoo.ops.linear_attention.triton.attention_backward`."""
    return kernels.attention_backward(
        grad_out, grad_final, q, k, v, decay, causal, normalize, scale, eps, out, final, states, sums, learned
    )


@linear_attention_triton_backward.register_fake
def _(grad_out, grad_final, q, k, v, decay, causal, normalize, scale, eps, out, final, states, sums, learned):
    grads = [x.new_empty(x.shape) for x in (q, k, v)]
    return *grads, final.new_empty(final.shape), final.new_empty(q.shape[2] if learned else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, decay, ctx.causal, ctx.normalize, ctx.scale, ctx.eps, initial = inputs
    out, final, states, sums = output
    ctx.state_dtype = None if initial is None else initial.dtype
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(states, sums)
    ctx.save_for_backward(q, k, v, decay, out, final, states, sums)


def _backward(
    ctx: Any,
    grad_out: Tensor | None,
    grad_final: Tensor | None,
    *_: None,
    run: Callable[..., tuple[Tensor, ...]] = linear_attention_triton_backward,
) -> tuple[Any, ...]:
    q, k, v, decay, out, final, states, sums = ctx.saved_tensors
    grad_out = torch.zeros_like(v) if grad_out is None else grad_out
    learned = decay is not None and ctx.needs_input_grad[3]
    options = ctx.causal, ctx.normalize, ctx.scale, ctx.eps
    *grads, state, rate = run(grad_out, grad_final, q, k, v, decay, *options, out, final, states, sums, learned)
    grad_decay = None if decay is None or not learned else rate.to(decay.dtype)
    return *grads, grad_decay, *[None] * 4, None if ctx.state_dtype is None else state.to(ctx.state_dtype)


linear_attention_triton_op.register_autograd(_backward, setup_context=_setup)
_eager = eager_form(
    kernels.attention_forward, _setup, lambda ctx, *grads: _backward(ctx, *grads, run=kernels.attention_backward)
)


def linear_attention_triton(*inputs: Any) -> tuple[Tensor, Tensor | None]:
    """Output and final state; arguments of `linear_attention_triton_op`."""
    run = linear_attention_triton_op if torch.compiler.is_compiling() else _eager
    out, final = run(*inputs)[:2]
    return out, final if inputs[4] else None
