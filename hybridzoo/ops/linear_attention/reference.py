"""The definition of `linear_attention` in plain torch: chunks of positions in parallel, states from chunk to chunk.

Legend: B batch, T positions, H heads, K key width, V value width, n chunks, C positions of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64


def attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    causal: bool,
    normalize: bool,
    scale: float,
    eps: float,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Output (B, T, H, V) and the final state (B, H, K, V or V + 1); None where not causal."""
    wide = torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        q, k, values = (x.to(wide).transpose(1, 2) for x in (q * scale, k, v))  # (B, H, T, ...)
        center = None
        if normalize and not causal:  # the mean that all rows have in common comes back exactly; see below
            center = values.mean(2, keepdim=True).detach()
            values = values - center
        if normalize:  # the denominator is one more value column, of ones
            values = F.pad(values, (0, 1), value=1.0)
        if causal:
            out, final = _causal(q, k, values, None if decay is None else decay.to(wide), initial_state)
        else:
            out, final = q @ (k.transpose(2, 3) @ values), None
        if normalize:
            sums = out[..., -1:] + eps
            out = out[..., :-1] / sums
            if center is not None:
                # With the mean left in the values, the gradients of q and k are small differences of large sums, by way
                # of numerator and denominator. The result does not depend on `center`, so neither do its gradients.
                out = out + center - center * (eps / sums)
        return out.transpose(1, 2).to(v.dtype), final


def _causal(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, heads, length, keys = q.shape
    size = min(CHUNK, length)
    pad = -length % size
    # zero keys and values after the end change nothing; ages count to the last chunk's own end
    q, k, v = (F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, size)) for x in (q, k, v))  # (B, H, n, C, ...)
    chunks = q.shape[2]
    at = torch.arange(size, device=q.device, dtype=q.dtype)
    lag = at.unsqueeze(1) - at
    weights = (lag >= 0).to(q.dtype)
    keys_aged, queries_aged, chunk_decay = k, q, None
    if decay is not None:
        rate = decay.view(-1, 1, 1)
        weights = torch.where(lag >= 0, torch.exp(-rate * lag.clamp(min=0)), 0.0).unsqueeze(1)  # (H, 1, C, C)
        queries_aged = q * torch.exp(-rate * (at + 1).unsqueeze(1)).unsqueeze(1)
        lengths = torch.full((chunks, 1), float(size), device=q.device, dtype=q.dtype)
        lengths[-1] -= pad
        keys_aged = k * torch.exp(-rate * (lengths - 1 - at).clamp(min=0)).unsqueeze(3)  # (H, n, C, 1)
        chunk_decay = torch.exp(-rate * lengths).unsqueeze(3)  # (H, n, 1, 1)
    inside = (q @ k.transpose(3, 4) * weights) @ v
    added = keys_aged.transpose(3, 4) @ v  # (B, H, n, K, V)
    state = q.new_zeros(batch, heads, keys, v.shape[4]) if initial_state is None else initial_state.to(q.dtype)
    before = []
    for i in range(chunks):
        before.append(state)
        state = added[:, :, i] + (state if chunk_decay is None else state * chunk_decay[:, i])
    out = inside + queries_aged @ torch.stack(before, 2)
    return out.flatten(2, 3)[:, :, :length], state
