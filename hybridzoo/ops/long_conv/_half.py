"""Launches of the kernels for 16-bit inputs (`_kernels_half.py`)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch
from hybridzoo.ops.long_conv import _kernels_half as kernels

if TYPE_CHECKING:
    from hybridzoo.ops.long_conv.triton import Plan

PROGRAMS = 1056  # that walk rows: two rounds of four for each multiprocessor of an H100
WALKERS = 1056  # programs that walk over segments
BLOCK = 256  # frequencies of a program of `product_kernel`


@lru_cache(maxsize=16)
def tables(N1: int, N2: int, device: torch.device) -> tuple[Tensor, Tensor, float]:
    """F1 and F2 (of each Re, then Im) in fp16, `unit` spread over them; T packed; `unit`, 2 ** n near N ** -0.5."""
    from hybridzoo.ops.long_conv.triton import tables as wide

    with torch.inference_mode(False):
        f1, t, f2 = wide(N1, N2, device).cpu().split([4 * N1 * N1, 2 * N1 * N2, 2 * N2 * N2])
        units = [2.0 ** -math.ceil(math.log2(n) / 2) for n in (N1, N2)]
        flat = torch.cat([f1[: 2 * N1 * N1] * units[0], f2 * units[1]]).half()
        turns = t.half().view(2, -1).T.contiguous().view(torch.int32).flatten()  # Re comes first: it is the low half
        return flat.to(device), turns.to(device), units[0] * units[1]


def _share(batch: int, others: int) -> tuple[int, int]:
    """Batch rows of a program, and programs for each of `others`."""
    per = cdiv(batch, max(1, PROGRAMS // others))
    return per, cdiv(batch, per)


def share_out(segments: int) -> tuple[int, int]:
    """Segments of a program that walks over them, and programs."""
    per = cdiv(segments, WALKERS)
    return per, cdiv(segments, per)


def constants(plan: Plan) -> dict[str, Any]:
    return {"N1": plan.N1, "N2": plan.N2, "num_warps": plan.warps}


def taps_spectra(
    kernel: Tensor, ahead: Tensor | None, skip: Tensor | None, table: Tensor, plan: Plan
) -> tuple[Tensor, Tensor]:
    """(D, M, N) packed, and sizes (D, M); `table` is the one in fp32."""
    spectra = torch.empty(plan.channels, plan.count, plan.N1 * plan.N2, dtype=torch.int32, device=table.device)
    sizes = torch.empty(plan.channels, plan.count, dtype=torch.float32, device=table.device)
    launch(kernels.taps_kernel, (plan.count, plan.channels),
        kernel, ahead, skip, table, spectra, sizes, plan.taps, plan.ahead, plan.lowest, **constants(plan),
    )  # fmt: skip
    return spectra, sizes


def spectra_of(rows: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """(B, D, L) -> (B, D, S, N) packed, and sizes (B, D, S)."""
    return transformed(rows, None, None, plan, plan.segments, 0)


def transformed(
    rows: Tensor, ahead: Tensor | None, skip: Tensor | None, plan: Plan, count: int, lowest: int
) -> tuple[Tensor, Tensor]:
    """Spectra (..., count, N) of the segments of rows (..., L) from the segment `lowest` on, and sizes (..., count).

    `ahead` and `skip` as `load_taps` takes them.
    """
    table, turns, _ = tables(plan.N1, plan.N2, rows.device)
    shape = (*rows.shape[:-1], count)
    spectra = torch.empty(*shape, plan.N1 * plan.N2, dtype=torch.int32, device=rows.device)
    sizes = torch.empty(shape, dtype=torch.float32, device=rows.device)
    per, programs = share_out(sizes.numel())
    launch(kernels.transform_kernel, (programs,),
        rows, ahead, skip, spectra, sizes, table, turns, sizes.numel() // count, count, lowest, rows.shape[-1],
        plan.ahead, per, **constants(plan),
    )  # fmt: skip
    return spectra, sizes


def _scale(plan: Plan, unit: float) -> float:
    """What a product of two spectra lacks after `inverse`: each transform gave `unit`, the inverse N `unit`."""
    return 1.0 / (plan.N1 * plan.N2 * unit * unit)


def _combine(spectra: tuple[Tensor, Tensor], taps: tuple[Tensor, Tensor], like: Tensor, plan: Plan, flip: bool):
    table, turns, unit = tables(plan.N1, plan.N2, like.device)
    y = torch.empty_like(like)
    per, parts = _share(plan.batch, plan.channels * plan.segments)
    launch(kernels.combine_kernel, (parts, plan.segments, plan.channels),
        *spectra, *taps, y, table, turns, plan.batch, plan.channels, plan.length, plan.segments, plan.count,
        plan.lowest, per, _scale(plan, unit), CAUSAL=plan.ahead == 0, FLIP=flip, **constants(plan),
    )  # fmt: skip
    return y


def _conv(rows: Tensor, taps: tuple[Tensor, Tensor], plan: Plan, flip: bool) -> Tensor:
    """One segment."""
    table, turns, unit = tables(plan.N1, plan.N2, rows.device)
    y = torch.empty_like(rows)
    per, parts = _share(plan.batch, plan.channels)
    launch(kernels.conv_kernel, (parts, plan.channels),
        rows, *taps, y, table, turns, plan.batch, plan.channels, plan.length, per, _scale(plan, unit),
        FLIP=flip, **constants(plan),
    )  # fmt: skip
    return y


def forward(rows: Tensor, taps: tuple[Tensor, Tensor], plan: Plan) -> Tensor:
    """(B, D, L) and what `taps_spectra` gives -> (B, D, L)"""
    if plan.segments > 1:
        return _combine(spectra_of(rows, plan), taps, rows, plan, flip=False)
    return _conv(rows, taps, plan, flip=False)


def backward(rows: Tensor, grads: Tensor, taps: tuple[Tensor, Tensor], plan: Plan) -> tuple[Tensor, Tensor]:
    """Gradients of x (B, D, L) and, in parts, of the taps' spectra (parts, D, M, 2, N) fp32."""
    table, turns, unit = tables(plan.N1, plan.N2, rows.device)
    scale = 1.0 / (unit * unit)
    N = plan.N1 * plan.N2
    totals_shape = (plan.channels, plan.count, 2, N)
    if plan.segments > 1:
        spectra = spectra_of(grads, plan)
        grad_x = _combine(spectra, taps, rows, plan, flip=True)
        totals = torch.empty(1, *totals_shape, dtype=torch.float32, device=rows.device)
        launch(kernels.product_kernel, (N // BLOCK, plan.count, plan.channels),
            *spectra_of(rows, plan), *spectra, totals, plan.batch, plan.channels, plan.segments, plan.count,
            plan.lowest, scale, N=N, BLOCK=BLOCK,
        )  # fmt: skip
        return grad_x, totals
    per, parts = _share(plan.batch, plan.channels)
    totals = torch.empty(parts, *totals_shape, dtype=torch.float32, device=rows.device)
    launch(kernels.gradient_kernel, (parts, plan.channels),
        rows, grads, totals, table, turns, plan.batch, plan.channels, plan.length, per, scale, **constants(plan),
    )  # fmt: skip
    return _conv(grads, taps, plan, flip=True), totals
