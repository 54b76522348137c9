"""The definition of `selective_scan` in plain torch: any device, any float type, forward and backward.

Per channel d and state n, in fp32 (fp64 for fp64 inputs):

    delta_t = softplus(dt_t + dt_bias)                    (softplus and bias optional)
    h_t     = exp(delta_t A) h_{t-1} + delta_t B_t u_t
    y_t     = (C_t . h_t + D u_t) silu(z_t)               (D and z optional)

The sequence is walked in pieces: within one, everything is batched but the recurrence itself, which is one in-place
`addcmul_` per step, and only the state at the start of each piece is kept for the backward, which recomputes the rest.
So nothing of size (B, L, D, N) ever exists, and a training step costs O(L), not the O(L^2) of autograd through a loop.

Legend: B batch, L length, D channels, G groups of channels sharing B and C, N states, S segments, c steps of a piece.
Inside this file states are (B, N, D) and pieces time-first, (c, B, N, D), so that each step is one contiguous block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.errors import InputError

_PIECE_ELEMENTS = 1 << 18  # of the (c, B, N, D) buffers: they stay in a core's cache
_MIN_PIECE, _MAX_PIECE = 32, 256


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of states and sums: fp64 for fp64 inputs, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def piece_length(u: Tensor, d_state: int) -> int:
    """Steps between two kept states."""
    per_step = max(1, u.shape[0] * u.shape[2] * d_state)
    return max(_MIN_PIECE, min(_MAX_PIECE, _PIECE_ELEMENTS // per_step))


def max_pieces(length: int, piece: int, segments: int | None) -> int:
    """How many pieces a sequence can have at most; with packing every segment may end in a part of one."""
    return -(-length // piece) + (segments or 0)


def _pieces(length: int, piece: int, bounds: Sequence[int] | None) -> list[tuple[int, int, int]]:
    """(first step, one past the last, segment); an unpacked batch is segment 0. Zero-length segments have none."""
    bounds = [0, length] if bounds is None else bounds
    return [
        (start, min(start + piece, end), s)
        for s, (begin, end) in enumerate(pairwise(bounds))
        for start in range(begin, end, piece)
    ]


@dataclass
class _Piece:
    """Inputs of one piece in compute precision, time-first."""

    u: Tensor  # (c, B, D)
    raw: Tensor  # (c, B, D) dt with its bias
    delta: Tensor  # (c, B, D)
    B: Tensor  # (c, B, G, N)
    C: Tensor  # (c, B, G, N)
    decay: Tensor  # (c, B, N, D)
    h: Tensor  # (c, B, N, D)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(..., N, D) -> (..., G, N, D / G), a view."""
    return x.unflatten(-1, (groups, -1)).transpose(-3, -2)


def _scan_piece(u, dt, A_t, B, C, dt_bias, softplus, resets, h0, lo: int, hi: int) -> _Piece:
    """Run steps lo..hi from the state h0 (B, N, D)."""
    wide = A_t.dtype
    u = u[:, lo:hi].transpose(0, 1).to(wide)
    raw = dt[:, lo:hi].transpose(0, 1).to(wide)
    raw = raw + dt_bias.to(wide) if dt_bias is not None else raw
    delta = F.softplus(raw) if softplus else raw
    B, C = (x[:, lo:hi].transpose(0, 1).to(wide) for x in (B, C))
    groups = B.shape[2]
    decay = (delta.unsqueeze(2) * (A_t * math.log2(math.e))).exp2_()  # twice as fast as exp on a CPU
    if resets is not None:
        decay.masked_fill_(resets[:, lo:hi].t()[:, :, None, None], 0.0)
    h = torch.empty_like(decay)
    drive = (delta * u).unflatten(2, (groups, -1)).unsqueeze(3)  # (c, B, G, 1, D / G)
    torch.mul(drive, B.unsqueeze(4), out=_grouped(h, groups))
    steps, decays = h.unbind(0), decay.unbind(0)
    steps[0].addcmul_(decays[0], h0)
    for step, x, previous in zip(steps[1:], decays[1:], steps):
        step.addcmul_(x, previous)
    return _Piece(u, raw, delta, B, C, decay, h)


def _read_out(p: _Piece) -> Tensor:
    """C . h: (c, B, D)"""
    return torch.matmul(p.C.unsqueeze(3), _grouped(p.h, p.C.shape[2])).squeeze(3).flatten(2)


def _reset_mask(seq_idx: Tensor | None) -> Tensor | None:
    """(B, L) true where a new sequence starts inside a row."""
    return None if seq_idx is None else F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))


def scan_forward(
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
    """Output (B, L, D), final states (S, D, N), the states at piece starts (P, B, N, D) for the backward if `keep`."""
    wide = compute_dtype(u.dtype)
    batch, length, channels = u.shape
    bounds = None if cu_seqlens is None else cu_seqlens.tolist()
    if bounds is not None and (bounds[0] != 0 or bounds[-1] != length or bounds != sorted(bounds)):
        raise InputError(f"selective_scan: cu_seqlens must rise from 0 to the length {length}, it is {bounds[:20]}")
    segments = batch if bounds is None else len(bounds) - 1
    piece = piece_length(u, A.shape[1])
    A_t = A.to(wide).t().contiguous()
    final = u.new_zeros(segments, channels, A.shape[1], dtype=wide)
    if initial_state is not None:
        final.copy_(initial_state)
    pieces = max_pieces(length, piece, None if bounds is None else segments) if keep else 1
    kept = u.new_zeros(pieces, batch, *A_t.shape, dtype=wide)
    resets = _reset_mask(seq_idx)
    y = torch.zeros(u.shape, dtype=u.dtype, device=u.device)  # packing may leave positions outside every segment
    for i, (lo, hi, s) in enumerate(_pieces(length, piece, bounds)):
        states = final if bounds is None else final[s : s + 1]
        h0 = kept[i if keep else 0]
        h0.copy_(states.transpose(1, 2))
        p = _scan_piece(u, dt, A_t, B, C, dt_bias, softplus, resets, h0, lo, hi)
        out = _read_out(p)
        if D is not None:
            out.addcmul_(p.u, D.to(wide))
        if z is not None:
            out.mul_(F.silu(z[:, lo:hi].transpose(0, 1).to(wide)))
        y[:, lo:hi] = out.transpose(0, 1)
        states.copy_(p.h[-1].transpose(1, 2))
    return y, final, kept if keep else u.new_empty(0, dtype=wide)


def scan_backward(
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
    """Gradients of u, dt, A, B, C, D, z, dt_bias, initial_state; those of absent inputs are empty tensors."""
    wide = kept.dtype
    batch, length, _ = u.shape
    groups = B.shape[2]
    bounds = None if cu_seqlens is None else cu_seqlens.tolist()
    piece = piece_length(u, A.shape[1])
    A_t = A.to(wide).t().contiguous()
    resets = _reset_mask(seq_idx)
    du, ddt, dB, dC = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (u, dt, B, C))
    dz = u.new_empty(0) if z is None else torch.zeros(z.shape, dtype=z.dtype, device=u.device)
    dA, dD, dbias = torch.zeros_like(A_t), torch.zeros_like(A_t[0]), torch.zeros_like(A_t[0])
    segments = batch if bounds is None else len(bounds) - 1
    carry_all = u.new_zeros(segments, *A.shape, dtype=wide)  # gradient of the state after the piece at hand
    if grad_final is not None:
        carry_all.copy_(grad_final)
    for i, (lo, hi, s) in reversed([*enumerate(_pieces(length, piece, bounds))]):
        carry = carry_all if bounds is None else carry_all[s : s + 1]
        p = _scan_piece(u, dt, A_t, B, C, dt_bias, softplus, resets, kept[i], lo, hi)
        gy = grad_y[:, lo:hi].transpose(0, 1).to(wide)
        if z is not None:
            gate = z[:, lo:hi].transpose(0, 1).to(wide)
            sig = gate.sigmoid()
            out = _read_out(p)
            if D is not None:
                out.addcmul_(p.u, D.to(wide))
            dz[:, lo:hi] = (gy * out * sig * (1 + gate * (1 - sig))).transpose(0, 1)
            gy = gy * gate * sig
        gy_g = gy.unflatten(2, (groups, -1)).unsqueeze(3)  # (c, B, G, 1, D / G)
        g = torch.empty_like(p.h)  # gradient of h_t; scratch before that
        g_grouped = _grouped(g, groups)
        # products are written out and summed: a batched matmul is 5, einsum 40 times slower at these shapes
        dC[:, lo:hi] = torch.mul(_grouped(p.h, groups), gy_g, out=g_grouped).sum(4).transpose(0, 1)
        torch.mul(gy_g, p.C.unsqueeze(4), out=g_grouped)
        steps, decays = g.unbind(0), p.decay.unbind(0)
        steps[-1].add_(carry.transpose(1, 2))
        for t in range(hi - lo - 2, -1, -1):
            steps[t].addcmul_(decays[t + 1], steps[t + 1])
        carry.copy_((decays[0] * steps[0]).transpose(1, 2))

        through_B = torch.matmul(p.B.unsqueeze(3), g_grouped).squeeze(3).flatten(2)  # (c, B, D)
        p.decay.mul_(g)
        p.decay[1:].mul_(p.h[:-1])
        p.decay[0].mul_(kept[i])  # from here on: gradient of delta_t A
        drive = (p.delta * p.u).unflatten(2, (groups, -1)).unsqueeze(3)
        dB[:, lo:hi] = g_grouped.mul_(drive).sum(4).transpose(0, 1)
        dA += torch.mul(p.decay, p.delta.unsqueeze(2), out=p.h).sum((0, 1))
        d_delta = p.decay.mul_(A_t).sum(2).addcmul_(through_B, p.u)
        d_u = through_B.mul_(p.delta)
        if D is not None:
            d_u.addcmul_(gy, D.to(wide))
            dD += (gy * p.u).sum((0, 1))
        du[:, lo:hi] = d_u.transpose(0, 1)
        if softplus:  # torch's softplus is the identity above 20
            d_delta = torch.where(p.raw > 20, d_delta, d_delta * p.raw.sigmoid())
        ddt[:, lo:hi] = d_delta.transpose(0, 1)
        if dt_bias is not None:
            dbias += d_delta.sum((0, 1))
    none = u.new_empty(0)
    return (
        du,
        ddt,
        dA.t().contiguous().to(A.dtype),
        dB,
        dC,
        none if D is None else dD.to(D.dtype),
        dz,
        none.clone() if dt_bias is None else dbias.to(dt_bias.dtype),
        carry_all,
    )


def scan_traceable(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    softplus: bool = False,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same function in ATen operators alone, log2(L) doubling steps: for torch.export and ONNX.

    It keeps (B, L, D, N) tensors and does O(L log L) work, so nothing but export takes it.
    """
    wide = compute_dtype(u.dtype)
    repeats = u.shape[2] // B.shape[2]
    uw, delta = u.to(wide), dt.to(wide)
    if dt_bias is not None:
        delta = delta + dt_bias.to(wide)
    if softplus:
        delta = F.softplus(delta)
    Bw, Cw = (x.to(wide).repeat_interleave(repeats, 2) for x in (B, C))  # (B, L, D, N)
    a = torch.exp(delta.unsqueeze(3) * A.to(wide))
    resets = _reset_mask(seq_idx)
    if resets is not None:
        a = a.masked_fill(resets[:, :, None, None], 0.0)
    h = (delta * uw).unsqueeze(3) * Bw
    if initial_state is not None:
        h = torch.cat([h[:, :1] + a[:, :1] * initial_state.to(wide).unsqueeze(1), h[:, 1:]], 1)
    reach = 1
    while reach < u.shape[1]:
        h = torch.cat([h[:, :reach], h[:, reach:] + a[:, reach:] * h[:, :-reach]], 1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], 1)
        reach *= 2
    y = (h * Cw).sum(3)
    if D is not None:
        y = y + uw * D.to(wide)
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(u.dtype), h[:, -1]
