"""Launches of the Triton kernels of `causal_conv1d`, and those for packed rows, states and any width.

Rows without packing and state, with 2 to 4 taps, go to the kernels of `_kernels.py`. The ones here work on channel-last
tiles of BT positions x BD channels. The taps of a tile re-read its rows from L1, so device memory sees one read and
one write. The backward is two passes: gradient before the activation, with the sums for the weights (one partial row
per tile: deterministic), then the same convolution with reversed taps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch
from hybridzoo.ops.causal_conv1d import _kernels
from hybridzoo.ops.causal_conv1d.reference import Bounds, bounds_of

_BT, _BD, _WARPS = 32, 64, 4


class Tuning(NamedTuple):
    """Constants of the walking kernels that decide speed only; a thread has 16 bytes of channels, backward half."""

    runs: int = 4  # of a program, for 16-bit inputs
    length: int = 16  # positions of a run
    runs_back: int = 4
    length_back: int = 32
    unrolled_back: int = 8  # divides length_back


TUNING = Tuning()


@triton.jit
def _seen(x, state, b, t, start, end, row, left, k, d, md, mt, DM, sxb, sxl, W: tl.constexpr):
    """What tap k sees at positions t: the input inside the segment, the initial state before it, else zero."""
    source = t - left + k
    inside = mt & (source >= start) & (source < end)
    value = tl.load(x + b * sxb + source[:, None] * sxl + d[None, :], mask=inside[:, None] & md[None, :], other=0.0)
    value = value.to(tl.float32)
    if state is not None:
        before = mt & (source < start) & (row >= 0)
        slot = row * (W - 1) + source - start + W - 1
        kept = tl.load(state + slot[:, None] * DM + d[None, :], mask=before[:, None] & md[None, :], other=0.0)
        value += kept.to(tl.float32)
    return value


@triton.jit
def _place(first, last, owner, L, DM, BT: tl.constexpr, BD: tl.constexpr):
    b = tl.program_id(2).to(tl.int64)
    t = tl.program_id(1) * BT + tl.arange(0, BT)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    mt = t < L
    md = d < DM
    if first is not None:
        start = tl.load(first + b * L + t, mask=mt, other=0)
        end = tl.load(last + b * L + t, mask=mt, other=0)
        row = tl.load(owner + b * L + t, mask=mt, other=-1).to(tl.int64)
    else:
        start = tl.zeros([BT], tl.int32)
        end = tl.zeros([BT], tl.int32) + L
        row = tl.zeros([BT], tl.int64) + b
    return b, t, d, mt, md, start, end, row


@triton.jit
def conv_kernel(
    x, weight, bias, state, first, last, owner, y, L, DM, sxb, sxl, left,
    W: tl.constexpr, SILU: tl.constexpr, FLIP: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    b, t, d, mt, md, start, end, row = _place(first, last, owner, L, DM, BT, BD)
    total = tl.zeros([BT, BD], tl.float32)
    if bias is not None:
        total += tl.load(bias + d, mask=md, other=0.0).to(tl.float32)[None, :]
    for k in range(0, W):
        tap = W - 1 - k if FLIP else k
        w = tl.load(weight + d * W + tap, mask=md, other=0.0).to(tl.float32)
        total += w[None, :] * _seen(x, state, b, t, start, end, row, left, k, d, md, mt, DM, sxb, sxl, W)
    if SILU:
        total = total / (1.0 + tl.exp2(-total * 1.4426950408889634))
    out = y + (b * L + t)[:, None] * DM + d[None, :]
    tl.store(out, total.to(y.dtype.element_ty), mask=mt[:, None] & md[None, :])


@triton.jit
def gradient_kernel(
    x, weight, bias, state, first, last, owner, gy, g, dw, db, L, DM, sxb, sxl, left,
    W: tl.constexpr, SILU: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradient before the activation (written only if SILU), and this tile's part of the weights' and bias' sums."""
    b, t, d, mt, md, start, end, row = _place(first, last, owner, L, DM, BT, BD)
    at = (b * L + t)[:, None] * DM + d[None, :]
    mask = mt[:, None] & md[None, :]
    grad = tl.load(gy + at, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        total = tl.zeros([BT, BD], tl.float32)
        if bias is not None:
            total += tl.load(bias + d, mask=md, other=0.0).to(tl.float32)[None, :]
        for k in range(0, W):
            w = tl.load(weight + d * W + k, mask=md, other=0.0).to(tl.float32)
            total += w[None, :] * _seen(x, state, b, t, start, end, row, left, k, d, md, mt, DM, sxb, sxl, W)
        sig = 1.0 / (1.0 + tl.exp2(-total * 1.4426950408889634))
        grad = grad * sig * (1.0 + total * (1.0 - sig))
        tl.store(g + at, grad.to(g.dtype.element_ty), mask=mask)
    tile = b * tl.num_programs(1) + tl.program_id(1)
    for k in range(0, W):
        seen = _seen(x, state, b, t, start, end, row, left, k, d, md, mt, DM, sxb, sxl, W)
        tl.store(dw + (tile * W + k) * DM + d, tl.sum(grad * seen, 0), mask=md)
    if db is not None:
        tl.store(db + tile * DM + d, tl.sum(grad, 0), mask=md)


def _tables(x: Tensor, seq_idx: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor | None, ...]:
    bounds: Bounds | None = bounds_of(seq_idx, cu_seqlens, x.shape[1])
    return (None,) * 3 if bounds is None else tuple(t.contiguous() for t in bounds)


def _launch(x: Tensor) -> tuple[tuple[int, int, int], dict[str, Any]]:
    batch, length, channels = x.shape
    grid = (cdiv(channels, _BD), cdiv(length, _BT), batch)
    return grid, {"BT": _BT, "BD": _BD, "num_warps": _WARPS}


def _walks(taps: int, tables: tuple[Tensor | None, ...], state: Tensor | None) -> bool:
    return 2 <= taps <= 4 and tables[0] is None and state is None


def _walk_forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, left: int) -> Tensor:
    (batch, length, channels), tuning = x.shape, TUNING
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    runs = tuning.runs if x.element_size() == 2 else tuning.runs // 2
    grid = (cdiv(channels, 128), cdiv(length, runs * tuning.length), batch)
    launch(_kernels.walk_kernel, grid,
        x, weight, bias, y, length, channels, *x.stride()[:2], left,
        W=weight.shape[1], SILU=silu, RUNS=runs, T=tuning.length, BD=128,
    )  # fmt: skip
    return y


def _walk_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, left: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (batch, length, channels), tuning, taps = x.shape, TUNING, weight.shape[1]
    dx, dw = torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(weight)
    db = None if bias is None else torch.empty_like(bias)
    grid = (cdiv(channels, 128), cdiv(length, tuning.runs_back * tuning.length_back), batch)
    sums = torch.empty(grid[1] * batch, taps + 1, channels, dtype=torch.float32, device=x.device)
    launch(_kernels.walk_back_kernel, grid,
        x, weight, bias, grad_y, dx, sums, length, channels, *x.stride()[:2], W=taps, LEFT=left, SILU=silu,
        RUNS=tuning.runs_back, T=tuning.length_back, UN=tuning.unrolled_back, BD=128,
    )  # fmt: skip
    launch(_kernels.add_kernel, (cdiv(channels, 32), taps + 1),
        sums, dw, db, sums.shape[0], channels, W=taps, BR=64, BD=32,
    )  # fmt: skip
    return dx, dw, x.new_empty(0) if db is None else db, x.new_empty(0)


def conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    left: int,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """(B, L, D) -> (B, L, D)"""
    x = x if x.stride(2) == 1 else x.contiguous()
    tables = _tables(x, seq_idx, cu_seqlens)
    if _walks(weight.shape[1], tables, initial_state):
        return _walk_forward(x, weight.contiguous(), None if bias is None else bias.contiguous(), silu, left)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    state = None if initial_state is None else initial_state.contiguous()
    grid, tile = _launch(x)
    launch(conv_kernel, grid,
        x, weight.contiguous(), bias, state, *tables, y, *x.shape[1:], *x.stride()[:2], left,
        W=weight.shape[1], SILU=silu, FLIP=False, **tile,
    )  # fmt: skip
    return y


def conv_backward(
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
    """Gradients of x, weight, bias, initial_state; those of absent inputs are empty tensors."""
    x = x if x.stride(2) == 1 else x.contiguous()
    weight, grad_y = weight.contiguous(), grad_y.contiguous()
    state = None if initial_state is None else initial_state.contiguous()
    (_, length, channels), taps = x.shape, weight.shape[1]
    tables = _tables(x, seq_idx, cu_seqlens)
    if _walks(taps, tables, state):
        return _walk_backward(grad_y, x, weight, None if bias is None else bias.contiguous(), silu, left)
    grid, tile = _launch(x)
    tiles = grid[1] * grid[2]
    g = torch.empty_like(grad_y) if silu else grad_y
    dw = torch.empty(tiles, taps, channels, device=x.device, dtype=torch.float32)
    db = None if bias is None else torch.empty(tiles, channels, device=x.device, dtype=torch.float32)
    launch(gradient_kernel, grid,
        x, weight, bias, state, *tables, grad_y, g, dw, db, length, channels, *x.stride()[:2], left,
        W=taps, SILU=silu, **tile,
    )  # fmt: skip
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch(conv_kernel, grid,
        g, weight, None, None, *tables, dx, length, channels, *g.stride()[:2], taps - 1 - left,
        W=taps, SILU=False, FLIP=True, **tile,
    )  # fmt: skip
    none = x.new_empty(0)
    return (
        dx,
        dw.sum(0).t().contiguous().to(weight.dtype),
        none if db is None else db.sum(0).to(bias.dtype),
        none.clone() if state is None else _state_gradient(g, weight, state, tables, cu_seqlens),
    )


def _state_gradient(
    g: Tensor, weight: Tensor, state: Tensor, tables: tuple[Tensor | None, ...], cu_seqlens: Tensor | None
) -> Tensor:
    """d state[j] = sum over i <= j of weight[j - i] g[i], i < W - 1 the segment's first positions."""
    keep = state.shape[1]
    length = g.shape[1]
    if cu_seqlens is None:
        first = torch.zeros(g.shape[0], dtype=torch.int64, device=g.device)
        last = first + length if tables[1] is None else tables[1][:, 0].long()
        row = torch.arange(g.shape[0], device=g.device)
    else:
        first, last = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
        row = torch.zeros_like(first)
    at = first.unsqueeze(1) + torch.arange(keep, device=g.device)  # (S, W - 1)
    heads = g[row.unsqueeze(1), at.clamp(max=length - 1)].float()
    heads = torch.where((at < last.unsqueeze(1)).unsqueeze(2), heads, 0.0)
    lag = torch.arange(keep, device=g.device).unsqueeze(1) - torch.arange(keep, device=g.device)
    taps = weight.float().t()[lag.clamp(min=0)] * (lag >= 0).unsqueeze(2)  # (j, i, D)
    return (heads.unsqueeze(1) * taps).sum(2).to(state.dtype)
