"""`hybrid_attention`: causal attention with a sliding window and always-visible meta tokens, as Hymba's layers use it.

Backends: `torch` (the definition, on scaled_dot_product_attention), `sdpa` (its fused kernels on grouped heads, for
plain causal rows), `flex` (torch's FlexAttention, compiled, for whole rows), `triton` (ours, for one token a row and
for whole rows without gradients).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Backend, Example, Op, register_op, triton_backend
from hybridzoo.ops.hybrid_attention import flex, sdpa
from hybridzoo.ops.hybrid_attention.plan import AttentionPlan
from hybridzoo.ops.hybrid_attention.reference import attention_torch
from hybridzoo.ops.hybrid_attention.triton import supports as triton_supports

__all__ = ["AttentionPlan", "hybrid_attention"]


def hybrid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan | None = None,
    *,
    scale: float | None = None,
    backend: str = AUTO,
) -> Tensor:
    """softmax(q k^T scale) v over the keys that `plan` shows to each query.

    Key head g serves the query heads g * H / G to (g + 1) * H / G - 1. The value width may differ from the key width.

    Args:
        q: (B, H, T, K).
        k: (B, G, S, K), G a divisor of H.
        v: (B, G, S, V).
        plan: who sees whom; plain causal attention, aligned at the end, if left out.
        scale: K ** -0.5 if left out.
        backend: `"auto"`, `"torch"`, `"sdpa"`, `"flex"` or `"triton"`.

    Returns:
        (B, H, T, V) in q's dtype.

    Raises:
        InputError: shapes that do not fit.
        BackendError: the backend asked for cannot run the call.
    """
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise InputError(
            "hybrid_attention: q must be (B, H, T, K), k (B, G, S, K) and v (B, G, S, V); "
            f"they are {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if q.shape[0] != k.shape[0] or q.shape[1] % k.shape[1]:
        raise InputError(
            f"hybrid_attention: q {tuple(q.shape)} and k {tuple(k.shape)} must have the same batch, and q's heads must "
            "be a multiple of k's"
        )
    if plan is None:
        plan = AttentionPlan(q.shape[2], k.shape[2], q.device)
    if (plan.q_length, plan.k_length) != (q.shape[2], k.shape[2]):
        raise InputError(
            f"hybrid_attention: the plan is for {plan.q_length} queries and {plan.k_length} keys, there are "
            f"{q.shape[2]} and {k.shape[2]}"
        )
    call = {"q": q, "k": k, "v": v, "plan": plan, "scale": q.shape[3] ** -0.5 if scale is None else scale}
    return OP(call, backend)


def _examples(device: torch.device) -> list[Example]:
    def make(
        name: str, length: int, dtype: torch.dtype = torch.float32, *, grad: bool = True, **options: Any
    ) -> Example:
        g = torch.Generator().manual_seed(length)

        def rand(*shape: int) -> Tensor:  # backends without a backward ask whether gradients are wanted
            return torch.randn(*shape, generator=g).to(device, dtype).requires_grad_(grad)

        call: dict[str, Any] = {
            "q": rand(2, 4, length, 16),
            "k": rand(2, 2, length, 16),
            "v": rand(2, 2, length, 32),
            "plan": AttentionPlan(length, length, device, **options),
            "scale": 0.25,
        }
        return Example(name, call, ("q", "k", "v") if grad else ())

    def decode(name: str, slots: int, dtype: torch.dtype = torch.float32, **options: Any) -> Example:
        g = torch.Generator().manual_seed(slots)

        def rand(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g).to(device, dtype)

        if options:  # a turning ring: the newest position is not in the last slot
            k_at = (torch.arange(slots, device=device) + slots // 3).roll(slots // 3).unsqueeze(0).repeat(3, 1)
            k_at[1, : slots // 2] = -1
            options |= {"q_positions": k_at.amax(1, keepdim=True), "k_positions": k_at}
        call: dict[str, Any] = {
            "q": rand(3, 10, 1, 24),
            "k": rand(3, 2, slots, 24),
            "v": rand(3, 2, slots, 48),
            "plan": AttentionPlan(1, slots, device, **options),
            "scale": 0.2,
        }
        return Example(name, call, ())

    segments = (torch.arange(160, device=device) // 50).unsqueeze(0).expand(2, -1)
    return [
        make("causal", 150),
        make("causal, bf16", 256, torch.bfloat16),
        make("window and prefix", 200, window=20, prefix=5),
        make("packed", 160, window=40, q_segments=segments, k_segments=segments),
        make("bf16", 140, torch.bfloat16, window=33, prefix=3),
        make("rows without gradients", 300, torch.float16, grad=False, window=70, prefix=9),
        decode("decode", 300),
        decode("decode, ring", 333, window=150, prefix=120),
        decode("decode, fp16", 1100, torch.float16, window=900, prefix=400),
    ]


def _run_triton(**call: Any) -> Tensor:
    from hybridzoo.ops.hybrid_attention.triton import attention_triton

    return attention_triton(**call)


OP = register_op(
    Op(
        name="hybrid_attention",
        backends=(
            triton_backend(_run_triton, triton_supports, traceable=False),
            Backend(
                name="sdpa",
                priority=15,
                run=sdpa.attention_sdpa,
                supports=sdpa.supports,
                deterministic=False,
                devices=("cuda",),
                traceable=False,
                note="for plain causal rows with grouped heads, which the definition repeats",
            ),
            Backend(
                name="flex",
                priority=10,
                run=flex.attention_flex,
                supports=flex.supports,  # type: ignore[arg-type]
                devices=("cuda",),
                symbol=flex.SYMBOL,
                fix="torch >= 2.11 has it",
                auto_veto="its first call compiles for half a minute",
            ),
            Backend(name="torch", priority=0, run=attention_torch, exportable=True),
        ),
        examples=_examples,
    )
)
