"""Launches of the Triton kernels of `long_conv`, and their tables."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch
from hybridzoo.ops.long_conv import _half, _kernels, _segments
from hybridzoo.ops.long_conv.keeping import current


class Tuning(NamedTuple):
    """Constants that decide speed only."""

    sides: tuple[tuple[int, int], ...] = ((32, 32), (32, 64), (64, 64))  # N1, N2 by length; the last one is repeated
    sides_half: tuple[tuple[int, int], ...] = ((64, 16), (64, 32), (64, 64))  # of 16-bit inputs: 64 rows for the units
    warps: tuple[int, ...] = (4, 4, 4)
    warps_backward: tuple[int, ...] = (4, 4, 8)  # of the fused backward, which keeps twice as much in registers
    together: int = 16  # segments of 16-bit inputs, at most, whose spectra meet in registers; 0: never
    together_block: int = 128  # frequencies of a program then, one a thread
    programs: int = 264  # of the fused backward: two for each multiprocessor of an H100


TUNING = Tuning()
BLOCK = 256  # frequencies of a program of `product_kernel`


class Plan(NamedTuple):
    """How a call is cut."""

    batch: int
    length: int
    channels: int
    taps: int
    ahead: int  # 0: causal
    N1: int
    N2: int
    warps: int
    warps_backward: int
    segments: int  # S
    lowest: int  # the m of the first H_m (T_m)
    count: int  # of H_m (T_m)
    precision: str
    half: bool  # 16-bit inputs
    block: int  # frequencies of a program where spectra meet in registers; 0: they do not, taps come as H_m not T_m

    @property
    def constants(self) -> dict[str, Any]:
        return {"N1": self.N1, "N2": self.N2, "PRECISION": self.precision, "num_warps": self.warps, "num_stages": 1}


def plan_of(x: Tensor, kernel: Tensor, ahead: Tensor | None) -> Plan:
    """The cut of a call, from shapes alone."""
    batch, length, channels = x.shape
    wide = x.dtype == torch.float32
    sides = TUNING.sides if wide else TUNING.sides_half
    which = next((i for i, (a, b) in enumerate(sides) if length <= a * b), len(sides) - 1)
    N1, N2 = sides[which]
    segments = cdiv(length, N1 * N2)
    together = not wide and 1 < segments <= TUNING.together
    lowest = 0 if ahead is None else int(not together) - segments
    warps = (TUNING.warps[which], TUNING.warps_backward[which]) if wide else (4, 4)
    return Plan(
        batch, length, channels, kernel.shape[1], 0 if ahead is None else ahead.shape[1],
        N1, N2, *warps, segments, lowest, segments - lowest, "tf32x3" if wide else "tf32", not wide,
        TUNING.together_block if together else 0,
    )  # fmt: skip


@lru_cache(maxsize=16)
def tables(N1: int, N2: int, device: torch.device) -> Tensor:
    """F1, its conjugate transpose (with -Im, as `inverse` wants it), T and F2; of each Re, then Im. One flat tensor."""
    with torch.inference_mode(False):
        n1, n2 = (torch.arange(n, dtype=torch.float64) for n in (N1, N2))
        turn = 2 * math.pi
        weight = math.pi / (2 * N1 * N2)
        f1 = torch.polar(torch.ones(N1, N1).double(), -turn / N1 * n1[:, None] * n1 + weight * N2 * n1)  # [k1, n1]
        t = torch.polar(torch.ones(N1, N2).double(), -turn / (N1 * N2) * n1[:, None] * n2 + weight * n2)  # [k1, n2]
        f2 = torch.polar(torch.ones(N2, N2).double(), -turn / N2 * n2[:, None] * n2)
        parts = [f1.real, f1.imag, f1.real.T, f1.imag.T, t.real, t.imag, f2.real, f2.imag]
        return torch.cat([part.flatten() for part in parts]).to(device=device, dtype=torch.float32)


def _swap(x: Tensor) -> Tensor:
    """(B, R, C) -> contiguous (B, C, R)."""
    batch, rows, columns = x.shape
    y = torch.empty(batch, columns, rows, dtype=x.dtype, device=x.device)
    launch(_kernels.swap_kernel, (cdiv(rows, 64), cdiv(columns, 64), batch), x, y, rows, columns, TILE=64)
    return y


def _rows(x: Tensor) -> Tensor:
    """(B, L, D) -> contiguous (B, D, L)."""
    return x.transpose(1, 2) if x.transpose(1, 2).is_contiguous() else _swap(x.contiguous())


def _taps(
    kernel: Tensor, ahead: Tensor | None, skip: Tensor | None, table: Tensor, plan: Plan
) -> tuple[Tensor, Tensor]:
    """(D, M, 2, N) fp32 and nothing; of 16-bit inputs what the `taps_spectra` of `_segments` or `_half` gives."""
    if plan.block:
        return _segments.taps_spectra(kernel, ahead, skip, plan)
    if plan.half:
        return _half.taps_spectra(kernel, ahead, skip, table, plan)
    spectra = torch.empty(taps_shape(plan), dtype=torch.float32, device=table.device)
    launch(_kernels.taps_kernel, (plan.count, plan.channels),
        kernel, ahead, skip, table, spectra, plan.taps, plan.ahead, plan.lowest, **plan.constants,
    )  # fmt: skip
    return spectra, spectra.new_empty(0)


def _kept_taps(
    kernel: Tensor, ahead: Tensor | None, skip: Tensor | None, table: Tensor, plan: Plan
) -> tuple[Tensor, Tensor]:
    """`_taps`, or what they were at the last call with the same store (`keeping`)."""
    store, key = current(), (plan._replace(batch=0), table.device)
    if store is not None and key in store:
        return store[key]
    taps = _taps(kernel, ahead, skip, table, plan)
    # a captured graph computes nothing before it is replayed
    if store is not None and not (table.is_cuda and torch.cuda.is_current_stream_capturing()):
        store.clear()
        store[key] = taps
    return taps


def taps_shape(plan: Plan) -> tuple[int, ...]:
    """Of the taps' spectra: packed for 16-bit inputs, Re and Im apart otherwise."""
    return plan.channels, plan.count, *(() if plan.half else (2,)), plan.N1 * plan.N2


def _spectra(rows: Tensor, table: Tensor, plan: Plan) -> Tensor:
    """(B, D, S, 2, N)"""
    shape = (plan.batch, plan.channels, plan.segments, 2, plan.N1 * plan.N2)
    spectra = torch.empty(shape, dtype=torch.float32, device=rows.device)
    launch(_kernels.transform_kernel, (plan.batch * plan.channels, plan.segments),
        rows, table, spectra, plan.length, **plan.constants,
    )  # fmt: skip
    return spectra


def _combine(spectra: Tensor, taps: Tensor, like: Tensor, table: Tensor, plan: Plan, *, flip: bool) -> Tensor:
    y = torch.empty_like(like)
    launch(_kernels.combine_kernel, (plan.batch * plan.channels, plan.segments),
        spectra, taps, y, table, plan.channels, plan.length, plan.count, plan.lowest,
        CAUSAL=plan.ahead == 0, FLIP=flip, **plan.constants,
    )  # fmt: skip
    return y


def _dense(*tensors: Tensor | None) -> list[Any]:
    return [None if x is None else x.contiguous() for x in tensors]


def conv_forward(x: Tensor, kernel: Tensor, ahead: Tensor | None, skip: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L, D) -> (B, L, D), and the taps' spectra and sizes for the backward."""
    kernel, ahead, skip = _dense(kernel, ahead, skip)
    plan = plan_of(x, kernel, ahead)
    table = tables(plan.N1, plan.N2, x.device)
    rows = _rows(x)
    taps, sizes = _kept_taps(kernel, ahead, skip, table, plan)
    if plan.block:
        y = _segments.forward(rows, (taps, sizes), plan)
    elif plan.half:
        y = _half.forward(rows, (taps, sizes), plan)
    elif plan.segments > 1:
        y = _combine(_spectra(rows, table, plan), taps, rows, table, plan, flip=False)
    else:
        y = torch.empty_like(rows)
        launch(_kernels.conv_kernel, (plan.batch * plan.channels,),
            rows, taps, y, table, plan.channels, plan.length, FLIP=False, **plan.constants,
        )  # fmt: skip
    return _swap(y), taps, sizes


def conv_backward(
    grad: Tensor, x: Tensor, kernel: Tensor, ahead: Tensor | None, taps: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of the taps in both directions (fp32; the second one empty if causal), and of skip (fp32)."""
    plan = plan_of(x, kernel, ahead)
    table = tables(plan.N1, plan.N2, x.device)
    rows, grads = _rows(x), _rows(grad)
    grad_kernel = torch.empty(kernel.shape, dtype=torch.float32, device=x.device)
    grad_ahead = None if ahead is None else torch.empty(ahead.shape, dtype=torch.float32, device=x.device)
    parts, totals = 1, None
    if plan.block:
        grad_x = _segments.backward(rows, grads, (taps, sizes), plan, grad_kernel, grad_ahead)
    elif plan.half:
        grad_x, totals = _half.backward(rows, grads, (taps, sizes), plan)
        parts = totals.shape[0]
    elif plan.segments > 1:
        spectra = _spectra(grads, table, plan)
        grad_x = _combine(spectra, taps, rows, table, plan, flip=True)
        totals = torch.empty_like(taps)
        N = plan.N1 * plan.N2
        launch(_kernels.product_kernel, (N // BLOCK, plan.count, plan.channels),
            _spectra(rows, table, plan), spectra, totals, plan.batch, plan.channels, plan.segments, plan.count,
            plan.lowest, N, BLOCK=BLOCK,
        )  # fmt: skip
    else:
        per = max(1, min(plan.batch, plan.batch * plan.channels // TUNING.programs))
        parts = cdiv(plan.batch, per)
        totals = torch.empty(parts, *taps.shape, dtype=torch.float32, device=x.device)
        grad_x = torch.empty_like(rows)
        launch(_kernels.gradient_kernel, (parts, plan.channels),
            rows, grads, taps, grad_x, totals, table, plan.batch, plan.channels, plan.length, per,
            **{**plan.constants, "num_warps": plan.warps_backward},
        )  # fmt: skip
    if totals is not None:
        first = 0 if ahead is None else -plan.segments
        launch(_kernels.taps_backward_kernel, (plan.segments - first, plan.channels),
            totals, grad_kernel, grad_ahead, table, parts, plan.channels, plan.count, plan.lowest, first, plan.taps,
            plan.ahead, **plan.constants,
        )  # fmt: skip
    empty = grad_kernel.new_empty(0)
    return _swap(grad_x), grad_kernel, empty if grad_ahead is None else grad_ahead, grad_kernel[:, 0].clone()
