"""The definition of `delta_rule` in plain torch: chunkwise, after Yang et al. 2024 (https://arxiv.org/abs/2406.06484).

Within a chunk of C positions the products of Householder-like factors become one unit-triangular system,

    (I + tril(diag(beta) K K^T, -1)) [W U] = diag(beta) [K V],

so that with S the state before the chunk, V' = U - W S are the values really written:
O = Q S + tril(Q K^T) V' and S <- S + K^T V'. Only the last two lines go from chunk to chunk.

Legend: B batch, H heads, T positions, n chunks, C positions of a chunk, K key width, V value width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.errors import InputError

CHUNK = 64


def delta_rule_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output (B, T, H, V) and final states (S, H, K, V)."""
    wide = torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        q, k, values, beta = (x.to(wide).transpose(1, 2) for x in (q * scale, k, v, beta))  # (B, H, T, ...)
        state = None if initial_state is None else initial_state.to(wide)
        if state is None:
            segments = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
            state = q.new_zeros(segments, q.shape[1], q.shape[3], v.shape[3])
        if cu_seqlens is None:
            out, final = _chunkwise(q, k, values, beta, state)
        else:
            bounds = cu_seqlens.tolist()
            if bounds[0] != 0 or bounds[-1] != v.shape[1] or bounds != sorted(bounds):
                raise InputError(f"delta_rule: cu_seqlens must rise from 0 to the length {v.shape[1]}, it is {bounds}")
            outs, finals = [], []
            for s, (lo, hi) in enumerate(pairwise(bounds)):
                part, last = state[s : s + 1, :, :0, :0], state[s : s + 1]
                if hi > lo:
                    part, last = _chunkwise(
                        q[:, :, lo:hi], k[:, :, lo:hi], values[:, :, lo:hi], beta[:, :, lo:hi], last
                    )
                    outs.append(part)
                finals.append(last)
            out, final = torch.cat(outs, 2), torch.cat(finals)
        return out.transpose(1, 2).to(v.dtype), final


def _chunkwise(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    length = q.shape[2]
    size = min(CHUNK, length)
    pad = -length % size  # positions with beta 0 write nothing
    q, k, v = (F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, size)) for x in (q, k, v))  # (B, H, n, C, ...)
    beta = F.pad(beta, (0, pad)).unflatten(2, (-1, size)).unsqueeze(4)
    k_beta = k * beta
    system = (k_beta @ k.transpose(3, 4)).tril(-1)
    right = torch.cat([k_beta, v * beta], 4)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    w, u = solved.split([k.shape[4], v.shape[4]], 4)
    inside = (q @ k.transpose(3, 4)).tril()
    outs = []
    for i in range(q.shape[2]):
        written = u[:, :, i] - w[:, :, i] @ state
        outs.append(q[:, :, i] @ state + inside[:, :, i] @ written)
        state = state + k[:, :, i].transpose(2, 3) @ written
    return torch.cat(outs, 2)[:, :, :length], state
