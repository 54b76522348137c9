"""`selective_scan_2d` on the kernels of `selective_scan`, which then read and write rows in the order of the paths.

Nothing is gathered or copied: every scan is a group of channels with a path of its own. What the scans give at a
position is summed afterwards, so that the result does not depend on scheduling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops._autograd import eager_form
from hybridzoo.ops.selective_scan.triton import kept_states, scan_backward, scan_forward

Outputs = tuple[Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _flat(x: Tensor | None) -> Tensor | None:
    """(K, D) -> (K * D,)"""
    return None if x is None else x.flatten()


def _forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    paths: Tensor,
    softplus: bool,
    keep: bool,
) -> Outputs:
    y, _, kept = scan_forward(
        u, dt.flatten(2), A.flatten(0, 1), B, C, _flat(D), None, _flat(dt_bias), softplus, None, None, None, keep, paths
    )
    return y.unflatten(2, dt.shape[2:]).sum(2, dtype=torch.float32).to(u.dtype), kept


def _gradients(
    grad_y: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    paths: Tensor,
    softplus: bool,
    kept: Tensor,
) -> Gradients:
    rest: Any = (softplus, None, None, kept, paths)
    du, ddt, dA, dB, dC, dD, _, dbias, _ = scan_backward(
        grad_y, None, u, dt.flatten(2), A.flatten(0, 1), B, C, _flat(D), None, _flat(dt_bias), *rest
    )
    du = du.unflatten(2, dt.shape[2:]).sum(2, dtype=torch.float32).to(u.dtype)
    vectors = [g.view(x.shape) if x is not None else g for g, x in ((dD, D), (dbias, dt_bias))]
    return du, ddt.view(dt.shape), dA.view(A.shape), dB, dC, vectors[0], vectors[1]


@torch.library.custom_op("hybridzoo::selective_scan_2d_triton", mutates_args=())
def scan_2d_op(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    paths: Tensor,
    softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The sum over the scans (B, L, D), and a state of each every few steps if `keep`."""
    return _forward(u, dt, A, B, C, D, dt_bias, paths, softplus, keep)


@scan_2d_op.register_fake
def _(u, dt, A, B, C, D, dt_bias, paths, softplus, keep):
    states = kept_states(u.shape[1], u.shape[0], None, paths=True)
    kept = (states, A.shape[0] * A.shape[1], A.shape[2]) if keep else (0,)
    return u.new_empty(u.shape), u.new_empty(kept, dtype=torch.float32)


@torch.library.custom_op("hybridzoo::selective_scan_2d_triton_backward", mutates_args=())
def scan_2d_backward_op(
    grad_y: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    paths: Tensor,
    softplus: bool,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, dt, A, B, C, D and dt_bias; those of absent inputs are empty."""
    return _gradients(grad_y, u, dt, A, B, C, D, dt_bias, paths, softplus, kept)


@scan_2d_backward_op.register_fake
def _(grad_y, u, dt, A, B, C, D, dt_bias, paths, softplus, kept):
    return tuple(u.new_empty(0) if x is None else x.new_empty(x.shape) for x in (u, dt, A, B, C, D, dt_bias))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    u, dt, A, B, C, D, dt_bias, paths, ctx.softplus, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(u, dt, A, B, C, D, dt_bias, paths, output[1])


def _backward(
    ctx: Any, grad_y: Tensor | None, _: None, run: Callable[..., Gradients] = scan_2d_backward_op
) -> tuple[Tensor | None, ...]:
    u, dt, A, B, C, D, dt_bias, paths, kept = ctx.saved_tensors
    grad_y = torch.zeros_like(u) if grad_y is None else grad_y
    *grads, dD, dbias = run(grad_y, u, dt, A, B, C, D, dt_bias, paths, ctx.softplus, kept)
    return *grads, None if D is None else dD, None if dt_bias is None else dbias, None, None, None


scan_2d_op.register_autograd(_backward, setup_context=_setup)
_eager = eager_form(_forward, _setup, lambda ctx, *grads: _backward(ctx, *grads, run=_gradients))


def scan_2d_triton(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    paths: Tensor,
    dt_softplus: bool,
) -> Tensor:
    """See `hybridzoo.ops.selective_scan_2d`."""
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (u, dt, A, B, C, D, dt_bias))
    paths = paths.to(device=u.device, dtype=torch.int32).contiguous()
    run = scan_2d_op if torch.compiler.is_compiling() else _eager if keep else _forward
    return run(u, dt, A, B, C, D, dt_bias, paths, dt_softplus, keep)[0]
