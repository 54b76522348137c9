"""The definition of `causal_conv1d` in plain torch, the tables that packing needs, and the carried state.

Legend: B batch, L length, D channels, W taps, S segments. `left` is how many positions before t the first tap reads:
W - 1 for a causal, (W - 1) // 2 for a same-padded convolution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Bounds(NamedTuple):
    """Where the segment of each position begins and ends, and whose initial state precedes it (-1: none)."""

    start: Tensor  # (B, L) int32
    end: Tensor  # (B, L) int32, one past the last
    state_row: Tensor  # (B, L) int32


def bounds_of(seq_idx: Tensor | None, cu_seqlens: Tensor | None, length: int) -> Bounds | None:
    """Tables for packed rows, without waiting for the device; None for an unpacked batch."""
    if cu_seqlens is not None:
        cu = cu_seqlens.to(torch.int64)
        at = torch.arange(length, device=cu.device)
        seg = (torch.searchsorted(cu, at, right=True) - 1).clamp(0, cu.numel() - 2)
        return Bounds(*(x.to(torch.int32).unsqueeze(0) for x in (cu[seg], cu[seg + 1], seg)))
    if seq_idx is None:
        return None
    batch = seq_idx.shape[0]
    at = torch.arange(length, device=seq_idx.device).expand(batch, length)
    change = seq_idx[:, 1:] != seq_idx[:, :-1]
    start = torch.where(F.pad(change, (1, 0)), at, 0).cummax(1).values
    end = torch.where(F.pad(change, (0, 1), value=True), at + 1, length).flip(1).cummin(1).values.flip(1)
    row = torch.where(start == 0, torch.arange(batch, device=seq_idx.device).unsqueeze(1), -1)
    return Bounds(*(x.to(torch.int32) for x in (start, end, row)))


def conv_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    left: int,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """(B, L, D) -> (B, L, D); sums in fp32 (fp64 for fp64 inputs), rounded once at the end."""
    wide = torch.promote_types(x.dtype, torch.float32)
    (batch, length, channels), taps = x.shape, weight.shape[1]
    xw, w = x.to(wide), weight.to(wide)
    bounds = bounds_of(seq_idx, cu_seqlens, length)
    with torch.autocast(x.device.type, enabled=False):
        if bounds is None and initial_state is None:
            y = F.conv1d(F.pad(xw.transpose(1, 2), (left, taps - 1 - left)), w.unsqueeze(1), groups=channels)
            y = y.transpose(1, 2)
        else:
            before = xw.new_zeros(batch, left, channels)
            if initial_state is not None and bounds is None:
                before = initial_state.to(wide)
            rows = torch.cat([before, xw, xw.new_zeros(batch, taps - 1 - left, channels)], 1)
            states = None if initial_state is None or bounds is None else initial_state.to(wide)
            y = _tap(rows, w, 0, left, length, bounds, states)
            for k in range(1, taps):
                y = y + _tap(rows, w, k, left, length, bounds, states)
        if bias is not None:
            y = y + bias.to(wide)
        return (F.silu(y) if silu else y).to(x.dtype)


def _tap(
    rows: Tensor, w: Tensor, k: int, left: int, length: int, bounds: Bounds | None, states: Tensor | None
) -> Tensor:
    """Weight k times what it sees at every position: the input, zero outside the segment, or the initial state."""
    seen = rows[:, k : k + length]
    if bounds is not None:
        source = torch.arange(length, device=rows.device) - left + k  # (L,)
        inside = (source >= bounds.start) & (source < bounds.end)
        seen = torch.where(inside.unsqueeze(2), seen, 0.0)
        if states is not None:
            before = (source < bounds.start) & (bounds.state_row >= 0)
            slot = (source - bounds.start + left).clamp(0, max(left - 1, 0))
            seen = torch.where(before.unsqueeze(2), states[bounds.state_row.clamp(min=0), slot], seen)
    return seen * w[:, k]


def final_state(
    x: Tensor, taps: int, initial_state: Tensor | None, seq_idx: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    """The last W - 1 inputs of each row or segment (S, W - 1, D), oldest first; short ones start with the state."""
    keep = taps - 1
    if cu_seqlens is None and seq_idx is None and x.shape[1] >= keep:
        return x[:, x.shape[1] - keep :]
    if cu_seqlens is None:
        bounds = bounds_of(seq_idx, None, x.shape[1])
        start = 0 if bounds is None else bounds.start[:, -1:].long()
        source = torch.arange(x.shape[1] - keep, x.shape[1], device=x.device).expand(x.shape[0], keep)
        begin = torch.zeros_like(source) + start
        row = torch.arange(x.shape[0], device=x.device).unsqueeze(1).expand_as(source)
        has_state = begin == 0
    else:
        cu = cu_seqlens.to(torch.int64)
        source = cu[1:].unsqueeze(1) - keep + torch.arange(keep, device=x.device)
        begin = cu[:-1].unsqueeze(1).expand_as(source)
        row = torch.zeros_like(source)
        has_state = torch.ones_like(source, dtype=torch.bool)
    taken = x[row, source.clamp(0, x.shape[1] - 1)]
    before = torch.zeros_like(taken)
    if initial_state is not None:
        which = torch.arange(source.shape[0], device=x.device).unsqueeze(1)
        slot = (source - begin + keep).clamp(0, max(keep - 1, 0))
        before = torch.where(has_state.unsqueeze(2), initial_state[which, slot].to(x.dtype), before)
    return torch.where((source >= begin).unsqueeze(2), taken, before)
