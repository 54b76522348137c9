"""`linear_attention`: o_t = sum over j <= t of (q_t . k_j) v_j, with decay and normaliser, in time linear in length.

Backends: `torch` (the definition, chunkwise), `triton` (ours).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Backend, Call, Example, Op, register_op, triton_backend
from hybridzoo.ops.linear_attention.reference import attention_torch

__all__ = ["linear_attention"]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    decay: Tensor | None = None,
    causal: bool = True,
    normalize: bool = False,
    scale: float = 1.0,
    eps: float = 1e-10,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    backend: str = AUTO,
) -> Tensor | tuple[Tensor, Tensor]:
    """o_t = scale * sum_j w(t - j) (q_t . k_j) v_j, over j <= t (causal) or all j.

    w(n) = exp(-decay n) per head, 1 without decay. Normalised, o_t is divided by the same sum with v = 1, plus eps.
    Sums are fp32 (fp64 for fp64 inputs). Differentiable in q, k, v, decay and the state, also through the final state.

    Args:
        q, k: (B, T, H, K), feature map already applied.
        v: (B, T, H, V).
        decay: (H,) at least 0; causal only.
        causal: whether a position sees later ones.
        normalize: divide by the sum of weights (q and k should then be positive).
        scale: factor of q.
        eps: added to the denominator.
        initial_state: (B, H, K, V), the sum of k v^T before the first position; normalised (B, H, K, V + 1), whose
            last column is the sum of k. Causal only.
        return_final_state: also return that state after the last position. Causal only.
        backend: `"auto"`, `"torch"` or `"triton"`.

    Returns:
        o (B, T, H, V) in v's dtype, or (o, final_state).

    Raises:
        InputError: shapes or options that do not fit.
    """
    batch, _, heads, keys = q.shape if q.dim() == 4 else (0, 0, 0, 0)
    if q.dim() != 4 or 0 in q.shape or k.shape != q.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise InputError(
            "linear_attention: q and k must be (B, T, H, K) and v (B, T, H, V), none empty; "
            f"they are {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if decay is not None and tuple(decay.shape) != (heads,):
        raise InputError(f"linear_attention: decay must be ({heads},), it is {tuple(decay.shape)}")
    if not causal and (decay is not None or initial_state is not None or return_final_state):
        raise InputError("linear_attention: decay and states exist for causal=True only")
    state = (batch, heads, keys, v.shape[3] + int(normalize))
    if initial_state is not None and tuple(initial_state.shape) != state:
        raise InputError(f"linear_attention: initial_state must be {state}, it is {tuple(initial_state.shape)}")
    call = {
        "q": q,
        "k": k,
        "v": v,
        "decay": decay,
        "causal": causal,
        "normalize": normalize,
        "scale": scale,
        "eps": eps,
        "initial_state": initial_state,
    }
    out, final = OP(call, backend)
    return (out, final) if return_final_state else out


def _run_triton(
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
    from hybridzoo.ops.linear_attention.custom_ops import linear_attention_triton

    return linear_attention_triton(q, k, v, decay, causal, normalize, scale, eps, initial_state)


def _triton_supports(call: Call) -> str | None:
    dtypes = {name: call[name].dtype for name in ("q", "k", "v")}
    if len(set(dtypes.values())) > 1:
        return f"the kernels want q, k and v in one dtype, they are {dtypes}"
    if call["v"].dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernels compute in fp32 at most, v is {call['v'].dtype}"
    most = 128 if call["v"].dtype == torch.float32 else 256
    if call["k"].shape[3] > most:
        return f"the kernels keep at most {most} key channels in {call['v'].dtype}, k has {call['k'].shape[3]}"
    if torch.version.hip is not None:
        return "the kernels have been checked on NVIDIA GPUs only"
    return None


def _examples(device: torch.device) -> list[Example]:
    def make(name: str, length: int, dtype: torch.dtype = torch.float32, **options: Any) -> Example:
        g = torch.Generator().manual_seed(length)

        def rand(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=g).to(device, dtype)

        call = {
            "q": rand(2, length, 3, 8),
            "k": rand(2, length, 3, 8),
            "v": rand(2, length, 3, 12),
            "decay": rand(3) if options.get("decay") else None,
            "causal": options.get("causal", True),
            "normalize": options.get("normalize", False),
            "scale": 0.5,
            "eps": 1e-10,
            "initial_state": rand(2, 3, 8, 13) if options.get("normalize") and options.get("causal", True) else None,
        }
        leaves = tuple(n for n, x in call.items() if isinstance(x, Tensor))
        return Example(name, call, leaves)

    return [
        make("plain", 130),
        make("decay", 65, decay=True),
        make("normalised, state", 70, normalize=True),
        make("non-causal", 40, causal=False),
        make("long, normalised, decay", 600, normalize=True, decay=True),
        make("non-causal, normalised", 300, causal=False, normalize=True),
        make("bf16", 130, torch.bfloat16),
        make("bf16, long, normalised", 600, torch.bfloat16, normalize=True),
    ]


OP = register_op(
    Op(
        name="linear_attention",
        backends=(
            triton_backend(_run_triton, _triton_supports),
            Backend(name="torch", priority=0, run=attention_torch, exportable=True),
        ),
        examples=_examples,
    )
)
