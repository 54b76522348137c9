"""The definition of `hybrid_attention`: torch's scaled_dot_product_attention under the mask of a plan.

Long windowed rows are cut into blocks of one window each, which see two blocks and the prefix: the same numbers in
O(S window) work and memory instead of O(S^2).

Legend: B batch, H query heads, G key heads, T queries, S keys, K key width, V value width, n blocks, w window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.ops.hybrid_attention.plan import AttentionPlan, visible_pairs

_BLOCKS_FROM = 3  # rows of at least so many windows are cut into blocks


def attention_torch(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """(B, H, T, K), (B, G, S, K), (B, G, S, V) -> (B, H, T, V)"""
    heads, groups = q.shape[1], k.shape[1]
    if plan.q_length == 1:  # the query heads of one key head become its queries, and nothing is repeated
        folded = q.view(q.shape[0], groups, heads // groups, q.shape[3])
        mask = None if plan.everything else plan.mask()
        return F.scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=scale).reshape(
            q.shape[0], heads, 1, v.shape[3]
        )
    if heads != groups:
        k, v = (_repeat(x, heads // groups) for x in (k, v))
    if plan.causal:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    if _worth_blocks(plan):
        return _in_blocks(q, k, v, plan, scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=plan.mask(), scale=scale)


def _repeat(x: Tensor, times: int) -> Tensor:
    """(B, G, S, D) -> (B, G * times, S, D), each head `times` times in a row."""
    batch, groups, length, width = x.shape
    return x.unsqueeze(2).expand(batch, groups, times, length, width).reshape(batch, groups * times, length, width)


def _worth_blocks(plan: AttentionPlan) -> bool:
    window = plan.window or 0
    return plan.aligned and plan.limited and plan.q_segments is None and 16 <= window <= plan.q_length // _BLOCKS_FROM


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    batch, _, queries, _ = q.shape
    w, slots = plan.window or 1, k.shape[2]
    prefix = min(plan.prefix, slots)
    offset, pad = slots - queries, -queries % w  # query i is at position offset + i
    blocks = (queries + pad) // w

    def with_neighbour(x: Tensor) -> Tensor:  # (B, H, S, D) -> (B * n, H, prefix + 2 w, D)
        near = F.pad(x, (0, 0, max(w - offset, 0), pad))[:, :, max(offset - w, 0) :]
        near = near.unfold(2, 2 * w, w).permute(0, 2, 1, 4, 3)  # (B, n, H, 2 w, D)
        first = x[:, :, :prefix].unsqueeze(1).expand(-1, blocks, -1, -1, -1)
        return torch.cat([first, near], 3).flatten(0, 1)

    if "blocks" not in plan.cache:
        start = offset + torch.arange(blocks, device=plan.device).view(-1, 1) * w  # (n, 1)
        q_at = start + torch.arange(w, device=plan.device)
        near = start - w + torch.arange(2 * w, device=plan.device)
        near = near.masked_fill((near < 0) | (near >= slots), -1)
        first = torch.arange(prefix, device=plan.device).expand(blocks, -1)
        first = first.masked_fill(first >= start - w, -1)  # those are among the neighbours already
        k_at = torch.cat([first, near], 1)
        plan.cache["blocks"] = visible_pairs(q_at.unsqueeze(2), k_at.unsqueeze(1), plan.window, prefix)
    mask = plan.cache["blocks"].unsqueeze(1).repeat(batch, 1, 1, 1)  # (B * n, 1, w, prefix + 2 w)
    cut = F.pad(q, (0, 0, 0, pad)).unflatten(2, (blocks, w)).transpose(1, 2).flatten(0, 1)
    out = F.scaled_dot_product_attention(cut, with_neighbour(k), with_neighbour(v), attn_mask=mask, scale=scale)
    return out.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :queries]
