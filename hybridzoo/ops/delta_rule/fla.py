"""`delta_rule` by flash-linear-attention's kernels (https://github.com/fla-org/flash-linear-attention)."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.ops.dispatch import Call

SYMBOL = "fla.ops.delta_rule:chunk_delta_rule"


def supports(call: Call) -> str | None:
    """Sixteen-bit inputs of one dtype, at most 256 key channels."""
    dtypes = {call[name].dtype for name in ("q", "k", "v")}
    if len(dtypes) > 1 or dtypes & {torch.float32, torch.float64}:
        return f"fla wants q, k and v in one 16-bit dtype, they are {sorted(map(str, dtypes))}"
    if call["k"].shape[3] > 256:
        return f"fla takes at most 256 key channels, k has {call['k'].shape[3]}"
    if call["k"].shape[3] % 16 or call["v"].shape[3] % 16:
        return f"fla wants widths in multiples of 16, they are {call['k'].shape[3]} and {call['v'].shape[3]}"
    return None


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `chunk_delta_rule` there."""
    from fla.ops.delta_rule import chunk_delta_rule  # pyright: ignore[reportMissingImports]

    return chunk_delta_rule(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        beta.contiguous(),
        scale=scale,
        initial_state=initial_state,
        output_final_state=True,
        cu_seqlens=cu_seqlens,
    )
