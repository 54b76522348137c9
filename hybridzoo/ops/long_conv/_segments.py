"""Launches of the kernels for 16-bit inputs of a few segments (`_kernels_segments.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hybridzoo.ops._launch import launch, next_power_of_2
from hybridzoo.ops.long_conv import _kernels_segments as kernels
from hybridzoo.ops.long_conv._half import constants, share_out, spectra_of, tables, transformed

if TYPE_CHECKING:
    from hybridzoo.ops.long_conv.triton import Plan

Spectra = tuple[Tensor, Tensor]  # (..., segments, N) packed, and sizes (..., segments)


def taps_spectra(kernel: Tensor, ahead: Tensor | None, skip: Tensor | None, plan: Plan) -> Spectra:
    """T_m, (D, M, N) and (D, M)."""
    return transformed(kernel, ahead, skip, plan, plan.count, plan.lowest)


def _kinds(plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constants of a kernel over the sizes, and what one over the spectra has more."""
    block = min(plan.block, plan.N1 * plan.N2)
    sizes = {"CAUSAL": plan.ahead == 0, "SEGMENTS": next_power_of_2(plan.segments), "num_stages": 1}
    whole = plan.segments == sizes["SEGMENTS"]
    return sizes, {"WHOLE": whole, "N": plan.N1 * plan.N2, "BLOCK": block, "num_warps": max(1, block // 32)}


def _convolved(spectra: Spectra, taps: Spectra, like: Tensor, plan: Plan, *, flip: bool) -> Tensor:
    """Rows (B, D, L) from spectra, which are overwritten."""
    bounds = torch.empty_like(spectra[1])
    sizes, more = _kinds(plan)
    launch(kernels.product_bounds_kernel, (plan.batch, plan.channels),
        spectra[1], taps[1], bounds, plan.channels, plan.segments, FLIP=flip, **sizes, num_warps=1,
    )  # fmt: skip
    launch(kernels.product_kernel, (more["N"] // more["BLOCK"], plan.batch, plan.channels),
        *spectra, *taps, bounds, spectra[0], plan.channels, plan.segments, FLIP=flip, **sizes, **more,
    )  # fmt: skip
    y = torch.empty_like(like)
    _inverse((spectra[0], bounds), y, None, plan, plan.segments, 0, plan.length, 0)
    return y


def _inverse(
    spectra: Spectra, y: Tensor, ahead: Tensor | None, plan: Plan, count: int, lowest: int, length: int, before: int
) -> None:
    table, turns, unit = tables(plan.N1, plan.N2, y.device)
    scale = 1.0 / (plan.N1 * plan.N2 * unit**3)  # of three transforms, the inverse times N
    number = spectra[1].numel()
    per, programs = share_out(number)
    launch(kernels.inverse_kernel, (programs,),
        *spectra, y, ahead, table, turns, number // count, count, lowest, length, before, per, scale, **constants(plan),
    )  # fmt: skip


def forward(rows: Tensor, taps: Spectra, plan: Plan) -> Tensor:
    """(B, D, L) and what `taps_spectra` gives -> (B, D, L)"""
    return _convolved(spectra_of(rows, plan), taps, rows, plan, flip=False)


def backward(
    rows: Tensor, grads: Tensor, taps: Spectra, plan: Plan, grad_kernel: Tensor, grad_ahead: Tensor | None
) -> Tensor:
    """Gradient of x (B, D, L); those of the taps are written to the tensors given."""
    spectra, found = spectra_of(grads, plan), (torch.empty_like(taps[0]), torch.empty_like(taps[1]))
    inputs = spectra_of(rows, plan)
    sizes, more = _kinds(plan)
    launch(kernels.correlate_bounds_kernel, (plan.channels,),
        inputs[1], spectra[1], found[1], plan.batch, plan.channels, plan.segments, **sizes,
        LAGS=sizes["SEGMENTS"] * (1 if plan.ahead == 0 else 2), num_warps=1,
    )  # fmt: skip
    launch(kernels.correlate_kernel, (more["N"] // more["BLOCK"], plan.channels),
        *inputs, *spectra, found[1], found[0], plan.batch, plan.channels, plan.segments, **sizes, **more,
    )  # fmt: skip
    _inverse(found, grad_kernel, grad_ahead, plan, plan.count, plan.lowest, plan.taps, plan.ahead)
    return _convolved(spectra, taps, rows, plan, flip=True)
