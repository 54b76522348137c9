"""`selective_scan` by mamba-ssm's CUDA kernels, where they can do what the call asks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops.dispatch import Call

SYMBOL = "mamba_ssm.ops.selective_scan_interface:selective_scan_fn"


def supports(call: Call) -> str | None:
    """mamba-ssm has no initial state, no packing, no gradient through the final state, and wants one dtype."""
    u, A = call["u"], call["A"]
    if call["initial_state"] is not None:
        return "mamba-ssm takes no initial_state"
    if call["seq_idx"] is not None or call["cu_seqlens"] is not None:
        return "mamba-ssm takes no packed sequences"
    if u.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"mamba-ssm has no kernel for {u.dtype}"
    for name in ("dt", "B", "C", "z"):
        if call[name] is not None and call[name].dtype != u.dtype:
            return f"mamba-ssm wants {name} in u's dtype {u.dtype}, it is {call[name].dtype}"
    if A.shape[1] > 256:
        return f"mamba-ssm takes at most 256 states, A has {A.shape[1]}"
    if call["return_final_state"] and torch.is_grad_enabled():
        inputs = (call[k] for k in ("u", "dt", "A", "B", "C", "D", "z", "dt_bias"))
        if any(x is not None and x.requires_grad for x in inputs):
            return "mamba-ssm gives no gradient through the final state"
    return None


def run(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    return_final_state: bool,
    **_absent: Any,
) -> tuple[Tensor, Tensor | None]:
    """mamba-ssm is channel-first with dense time: every (B, L, D) tensor is transposed on the way in and out."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # pyright: ignore[reportMissingImports]

    def channel_first(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.movedim(1, -1).contiguous()

    result = selective_scan_fn(
        channel_first(u),
        channel_first(dt),
        A.float().contiguous(),
        channel_first(B),
        channel_first(C),
        None if D is None else D.float().contiguous(),
        channel_first(z),
        None if dt_bias is None else dt_bias.float().contiguous(),
        dt_softplus,
        return_last_state=return_final_state,
    )
    y, final = result if return_final_state else (result, None)
    return y.transpose(1, 2), final
