"""The definition of `ms_deform_attn` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def msda_torch(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """(B, S, H, D), L pairs, (B, Q, H, L, P, 2), (B, Q, H, L, P) -> (B, Q, H * D).

    Map by map, so that the samples of one map at most are held. Queries lie last in the sampled tensor: with the few
    points last, as in the original code, torch's CPU kernels take 1.7 times as long.
    """
    wide = torch.promote_types(value.dtype, torch.float32)
    (batch, _, heads, channels), queries = value.shape, weights.shape[1]
    # x in [0, 1] -> [-1, 1]; (B, Q, H, L, P, 2) -> (L, B * H, P, Q, 2)
    grids = (2 * locations.to(wide) - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
    strengths = weights.to(wide).permute(3, 0, 2, 4, 1).flatten(1, 2)  # (L, B * H, P, Q)
    maps = value.to(wide).permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], dim=2)
    out = value.new_zeros(batch * heads, channels, queries, dtype=wide)
    for flat, (h, w), grid, strength in zip(maps, shapes, grids, strengths):
        sampled = F.grid_sample(
            flat.unflatten(2, (h, w)), grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        out = out + (sampled * strength.unsqueeze(1)).sum(2)
    return out.view(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)
