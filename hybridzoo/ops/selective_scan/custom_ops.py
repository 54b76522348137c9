"""`torch.library` operators around the implementations of `selective_scan`, with fake kernels and autograd.

`hybridzoo::selective_scan_torch` and `hybridzoo::selective_scan_triton` have one schema; so do their `_backward`s.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops._autograd import eager_form
from hybridzoo.ops.selective_scan import reference

Scan = Callable[..., tuple[Tensor, Tensor]]


def _segments(u: Tensor, cu_seqlens: Tensor | None) -> int:
    return u.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _kept_torch(u: Tensor, A: Tensor, cu_seqlens: Tensor | None) -> tuple[int, ...]:
    piece = reference.piece_length(u, A.shape[1])
    pieces = reference.max_pieces(u.shape[1], piece, None if cu_seqlens is None else _segments(u, cu_seqlens))
    return (pieces, u.shape[0], A.shape[1], A.shape[0])


def _kept_triton(u: Tensor, A: Tensor, cu_seqlens: Tensor | None) -> tuple[int, ...]:
    from hybridzoo.ops.selective_scan.triton import kept_states

    segments = None if cu_seqlens is None else _segments(u, cu_seqlens)
    return (kept_states(u.shape[1], u.shape[0], segments), A.shape[0], A.shape[1])


def _define(name: str, module: str, kept_shape: Callable[..., tuple[int, ...]]) -> Scan:
    """Register forward and backward of one implementation; returns the differentiable function."""

    @torch.library.custom_op(f"hybridzoo::{name}", mutates_args=())
    def forward(
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        softplus: bool,
        initial_state: Tensor | None,
        seq_idx: Tensor | None,
        cu_seqlens: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        scan = importlib.import_module(module).scan_forward
        with torch.autocast(u.device.type, enabled=False):
            return scan(u, dt, A, B, C, D, z, dt_bias, softplus, initial_state, seq_idx, cu_seqlens, keep)

    @forward.register_fake
    def _(u, dt, A, B, C, D, z, dt_bias, softplus, initial_state, seq_idx, cu_seqlens, keep):
        wide = reference.compute_dtype(u.dtype)
        y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
        final = u.new_empty(_segments(u, cu_seqlens), *A.shape, dtype=wide)
        return y, final, u.new_empty(kept_shape(u, A, cu_seqlens) if keep else (0,), dtype=wide)

    @torch.library.custom_op(f"hybridzoo::{name}_backward", mutates_args=())
    def backward(
        grad_y: Tensor,
        grad_final: Tensor | None,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        softplus: bool,
        seq_idx: Tensor | None,
        cu_seqlens: Tensor | None,
        kept: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        scan = importlib.import_module(module).scan_backward
        with torch.autocast(u.device.type, enabled=False):
            return scan(grad_y, grad_final, u, dt, A, B, C, D, z, dt_bias, softplus, seq_idx, cu_seqlens, kept)

    @backward.register_fake
    def _(grad_y, grad_final, u, dt, A, B, C, D, z, dt_bias, softplus, seq_idx, cu_seqlens, kept):
        def like(x: Tensor | None) -> Tensor:
            return kept.new_empty(0) if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)

        d_init = kept.new_empty(_segments(u, cu_seqlens), *A.shape)
        return like(u), like(dt), like(A), like(B), like(C), like(D), like(z), like(dt_bias), d_init

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        u, dt, A, B, C, D, z, dt_bias, ctx.softplus, initial, seq_idx, cu_seqlens, _ = inputs
        ctx.initial_dtype, ctx.device_type = None if initial is None else initial.dtype, u.device.type
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(u, dt, A, B, C, D, z, dt_bias, seq_idx, cu_seqlens, output[2])

    def run_backward(
        ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None, _: Tensor | None, run: Callable[..., Any] = backward
    ) -> tuple[Any, ...]:
        u, dt, A, B, C, D, z, dt_bias, seq_idx, cu_seqlens, kept = ctx.saved_tensors
        if grad_y is None:
            grad_y = torch.zeros(u.shape, dtype=u.dtype, device=u.device)
        du, ddt, dA, dB, dC, dD, dz, dbias, d_init = run(
            grad_y, grad_final, u, dt, A, B, C, D, z, dt_bias, ctx.softplus, seq_idx, cu_seqlens, kept
        )
        optional = [g if x is not None else None for g, x in ((dD, D), (dz, z), (dbias, dt_bias))]
        d_init = None if ctx.initial_dtype is None else d_init.to(ctx.initial_dtype)
        return du, ddt, dA, dB, dC, *optional, None, d_init, None, None, None

    forward.register_autograd(run_backward, setup_context=setup_context)

    def eager_forward(u: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(u.device.type, enabled=False):
            return importlib.import_module(module).scan_forward(u, *rest)

    def eager_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        with torch.autocast(ctx.device_type, enabled=False):  # checkpoints let saved tensors be read once only
            return run_backward(ctx, *grads, run=importlib.import_module(module).scan_backward)

    eager = eager_form(eager_forward, setup_context, eager_backward)

    def scan(u, dt, A, B, C, D, z, dt_bias, softplus, initial_state, seq_idx, cu_seqlens) -> tuple[Tensor, Tensor]:
        inputs = (u, dt, A, B, C, D, z, dt_bias, initial_state)
        keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
        # meta tensors know shapes only, which the operator gives; autocast does not know their device
        run = forward if torch.compiler.is_compiling() or u.is_meta else eager
        y, final, _ = run(u, dt, A, B, C, D, z, dt_bias, softplus, initial_state, seq_idx, cu_seqlens, keep)
        return y, final

    return scan


scan_torch = _define("selective_scan_torch", "hybridzoo.ops.selective_scan.reference", _kept_torch)
scan_triton = _define("selective_scan_triton", "hybridzoo.ops.selective_scan.triton", _kept_triton)
