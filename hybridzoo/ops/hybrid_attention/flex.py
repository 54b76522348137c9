"""`hybrid_attention` by torch's FlexAttention: one compiled kernel that skips the blocks nobody sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops.hybrid_attention.plan import AttentionPlan, visible_pairs

SYMBOL = "torch.nn.attention.flex_attention:flex_attention"
MIN_LENGTH = 128  # shorter rows do not fill one block
_compiled: dict[str, Any] = {}


def supports(call: dict[str, Any]) -> str | None:
    """Whole rows of 16-bit or 32-bit floats; decoding and short chunks stay with the definition."""
    q, plan = call["q"], call["plan"]
    if plan.q_length < MIN_LENGTH:
        return f"fewer than {MIN_LENGTH} queries"
    if plan.q_positions is not None and plan.q_segments is None:
        return "explicit positions change with every call, and so would the compiled mask"
    if q.dtype == torch.float64:
        return "no kernel for float64"
    if q.shape[3] & (q.shape[3] - 1) or call["v"].shape[3] & (call["v"].shape[3] - 1) or q.shape[3] < 16:
        return "head widths that are no powers of two from 16"
    return None


def attention_flex(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """As `attention_torch`."""
    from torch.nn.attention.flex_attention import flex_attention

    if "flex" not in _compiled:
        _compiled["flex"] = torch.compile(flex_attention, dynamic=False)
    run = flex_attention if torch.compiler.is_compiling() else _compiled["flex"]
    return run(q, k, v, block_mask=_block_mask(plan, q.shape[0]), scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def _block_mask(plan: AttentionPlan, batch: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    if "flex" in plan.cache:
        return plan.cache["flex"]
    window, prefix, offset = plan.window, plan.prefix, plan.k_length - plan.q_length
    q_segments, k_segments = plan.q_segments, plan.k_segments
    q_positions, k_positions = plan.q_positions, plan.k_positions

    def visible(b: Any, h: Any, i: Any, j: Any) -> Any:
        if q_positions is None or k_positions is None:
            seen = visible_pairs(i + offset, j, window, prefix)
        else:
            q_row, k_row = b % q_positions.shape[0], b % k_positions.shape[0]
            seen = visible_pairs(q_positions[q_row, i], k_positions[k_row, j], window, prefix)
        if q_segments is None or k_segments is None:
            return seen
        other = k_segments[b % k_segments.shape[0], j]
        return seen & ((q_segments[b % q_segments.shape[0], i] == other) | (other == -1))

    rows = None if plan.q_segments is None else batch
    plan.cache["flex"] = create_block_mask(visible, rows, None, plan.q_length, plan.k_length, device=str(plan.device))
    return plan.cache["flex"]
