"""`delta_rule`: linear attention that corrects what its state already says (DeltaNet), and its single step.

Backends: `torch` (the definition, chunkwise), `triton` (ours), `fla` (flash-linear-attention's kernels).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.delta_rule import fla
from hybridzoo.ops.delta_rule.reference import delta_rule_torch
from hybridzoo.ops.dispatch import AUTO, Backend, Call, Example, Op, register_op, triton_backend

__all__ = ["delta_rule", "delta_rule_step"]


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    backend: str = AUTO,
) -> Tensor | tuple[Tensor, Tensor]:
    """S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T;  o_t = scale S_t^T q_t.

    States and sums are fp32 (fp64 for fp64 inputs). Differentiable in every floating-point argument and through the
    final state. Keys are used as given: DeltaNet normalises them to length 1, which keeps the state bounded.

    Args:
        q, k: (B, T, H, K).
        v: (B, T, H, V).
        beta: (B, T, H), in [0, 1] or, for negative eigenvalues, [0, 2].
        scale: of the output; K ** -0.5 if left out.
        initial_state: (B, H, K, V); with cu_seqlens (S, H, K, V).
        return_final_state: also return the state after the last position.
        cu_seqlens: (S + 1,) integers from 0 to T for a batch of 1; segments may be empty.
        backend: `"auto"`, `"torch"`, `"triton"` or `"fla"`.

    Returns:
        o (B, T, H, V) in v's dtype, or (o, final_state).

    Raises:
        InputError: shapes that do not fit.
    """
    if q.dim() != 4 or 0 in q.shape or k.shape != q.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise InputError(
            "delta_rule: q and k must be (B, T, H, K) and v (B, T, H, V), none empty; "
            f"they are {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if beta.shape != q.shape[:3]:
        raise InputError(f"delta_rule: beta must be {tuple(q.shape[:3])}, it is {tuple(beta.shape)}")
    batch, _, heads, keys = q.shape
    if cu_seqlens is not None and (batch != 1 or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2):
        raise InputError(
            "delta_rule: cu_seqlens must be S + 1 integers, S >= 1, with a batch of 1; "
            f"it is {tuple(cu_seqlens.shape)} with a batch of {batch}"
        )
    state = (batch if cu_seqlens is None else cu_seqlens.shape[0] - 1, heads, keys, v.shape[3])
    if initial_state is not None and tuple(initial_state.shape) != state:
        raise InputError(f"delta_rule: initial_state must be {state}, it is {tuple(initial_state.shape)}")
    call = {
        "q": q,
        "k": k,
        "v": v,
        "beta": beta,
        "scale": keys**-0.5 if scale is None else scale,
        "initial_state": initial_state,
        "cu_seqlens": cu_seqlens,
    }
    out, final = OP(call, backend)
    return (out, final) if return_final_state else out


def delta_rule_step(
    state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """One more position.

    Args:
        state: (B, H, K, V) fp32 (fp64 for fp64 inputs).
        q, k: (B, H, K).
        v: (B, H, V).
        beta: (B, H).
        scale: of the output; K ** -0.5 if left out.
        inplace: write the new state over `state` (keeps its address for CUDA graphs).

    Returns:
        o (B, H, V) in v's dtype and the new state.

    Raises:
        InputError: shapes that do not fit.
    """
    if state.shape != (*k.shape, v.shape[-1]) or q.shape != k.shape or beta.shape != k.shape[:2]:
        raise InputError(
            "delta_rule_step: state (B, H, K, V), q and k (B, H, K), v (B, H, V), beta (B, H) do not fit; they are "
            f"{tuple(state.shape)}, {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}, {tuple(beta.shape)}"
        )
    wide = torch.promote_types(v.dtype, torch.float32)
    factor = k.shape[-1] ** -0.5 if scale is None else scale
    query, key, value, rate = (x.to(wide) for x in (q, k, v, beta))
    said = (state * key.unsqueeze(3)).sum(2)  # (B, H, V)
    change = key.unsqueeze(3) * ((value - said) * rate.unsqueeze(2)).unsqueeze(2)
    new = state.add_(change) if inplace else state + change
    return ((new * query.unsqueeze(3)).sum(2) * factor).to(v.dtype), new


def _examples(device: torch.device) -> list[Example]:
    def make(name: str, length: int, dtype: torch.dtype = torch.float32, **options: Any) -> Example:
        g = torch.Generator().manual_seed(length)

        def rand(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g)

        cu = options.get("cu")
        batch = 1 if cu else 2
        call = {
            "q": rand(batch, length, 3, 16).to(dtype),
            "k": torch.nn.functional.normalize(rand(batch, length, 3, 16), dim=-1).to(dtype),
            "v": rand(batch, length, 3, 8).to(dtype),
            "beta": rand(batch, length, 3).sigmoid().to(dtype),
            "scale": 0.25,
            "initial_state": rand(len(cu) - 1 if cu else batch, 3, 16, 8),
            "cu_seqlens": torch.tensor(cu) if cu else None,
        }
        moved = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in call.items()}
        return Example(name, moved, ("q", "k", "v", "beta", "initial_state"))

    return [make("plain", 130), make("packed", 100, cu=[0, 3, 3, 70, 100]), make("bf16", 130, torch.bfloat16)]


def _run_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    from hybridzoo.ops.delta_rule.custom_ops import delta_rule_triton

    floats = (q, k, v, beta, initial_state)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in floats)
    out, final, *_ = delta_rule_triton(q, k, v, beta, scale, initial_state, cu_seqlens, keep)
    return out, final


def _triton_supports(call: Call) -> str | None:
    dtypes = {name: call[name].dtype for name in ("q", "k", "v")}
    if len(set(dtypes.values())) > 1:
        return f"the kernels want q, k and v in one dtype, they are {dtypes}"
    if call["v"].dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernels compute in fp32 at most, v is {call['v'].dtype}"
    if call["k"].shape[3] > 256:
        return f"the kernels keep at most 256 key channels in registers, k has {call['k'].shape[3]}"
    if torch.version.hip is not None:
        return "the kernels have been checked on NVIDIA GPUs only"
    return None


OP = register_op(
    Op(
        name="delta_rule",
        backends=(
            triton_backend(_run_triton, _triton_supports),
            Backend(
                name="fla",
                priority=10,
                run=fla.run,
                supports=fla.supports,
                deterministic=False,
                devices=("cuda",),
                symbol=fla.SYMBOL,
                fix="pip install 'hybridzoo[fla]'",
                traceable=False,
            ),
            Backend(name="torch", priority=0, run=delta_rule_torch, exportable=True),
        ),
        examples=_examples,
    )
)
