"""The Triton kernels of `delta_rule` with autograd: `torch.library` operators for graphs, an eager form beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops._autograd import eager_form
from hybridzoo.ops._launch import cdiv
from hybridzoo.ops.delta_rule.triton import C, delta_rule_backward, delta_rule_forward, kept_shapes


@torch.library.custom_op("hybridzoo::delta_rule_triton", mutates_args=())
def delta_rule_triton_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `hybridzoo.ops.delta_rule.triton.delta_rule_forward`."""
    return delta_rule_forward(q, k, v, beta, scale, initial_state, cu_seqlens, keep)


@delta_rule_triton_op.register_fake
def _(q, k, v, beta, scale, initial_state, cu_seqlens, keep):
    batch, length, heads, keys = k.shape
    segments = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    chunks = batch * cdiv(length, C) + (0 if cu_seqlens is None else segments)
    final = k.new_empty(segments, heads, keys, v.shape[3], dtype=torch.float32)
    return v.new_empty(v.shape), final, *(k.new_empty(shape) for shape in kept_shapes(k, v, chunks, keep))


@torch.library.custom_op("hybridzoo::delta_rule_triton_backward", mutates_args=())
def delta_rule_triton_backward(
    grad_o: Tensor,
    grad_final: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    inverse: Tensor,
    w: Tensor,
    states: Tensor,
    written: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `hybridzoo.ops.delta_rule.triton.delta_rule_backward`."""
    inputs = q, k, v, beta, scale, initial_state, cu_seqlens
    *grads, state = delta_rule_backward(grad_o, grad_final, *inputs, inverse, w, states, written)
    return (*grads, q.new_empty(0) if state is None else state)  # type: ignore[return-value]


@delta_rule_triton_backward.register_fake
def _(grad_o, grad_final, q, k, v, beta, scale, initial_state, cu_seqlens, inverse, w, states, written):
    state = q.new_empty(0) if initial_state is None else initial_state.new_empty(initial_state.shape)
    return *(x.new_empty(x.shape) for x in (q, k, v, beta)), state


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, beta, ctx.scale, initial_state, cu_seqlens, keep = inputs
    if not keep:
        raise RuntimeError("delta_rule_triton was asked to keep nothing for a backward that follows all the same")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, beta, initial_state, cu_seqlens, *output[2:])


def _backward(
    ctx: Any,
    grad_o: Tensor | None,
    grad_final: Tensor | None,
    *_: None,
    run: Callable[..., tuple[Any, ...]] = delta_rule_triton_backward,
) -> tuple[Any, ...]:
    q, k, v, beta, state, cu, *kept = ctx.saved_tensors
    grad_o = torch.zeros_like(v) if grad_o is None else grad_o
    *grads, grad_state = run(grad_o, grad_final, q, k, v, beta, ctx.scale, state, cu, *kept)
    return *grads, None, None if state is None else grad_state, None, None


delta_rule_triton_op.register_autograd(_backward, setup_context=_setup)
_eager = eager_form(delta_rule_forward, _setup, lambda ctx, *grads: _backward(ctx, *grads, run=delta_rule_backward))


def delta_rule_triton(*inputs: Any) -> tuple[Tensor, ...]:
    """Arguments of `delta_rule_triton_op`."""
    if torch.compiler.is_compiling():
        return delta_rule_triton_op(*inputs)
    return _eager(*inputs) if inputs[-1] else delta_rule_forward(*inputs)
