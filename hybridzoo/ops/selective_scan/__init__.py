"""`selective_scan`: the recurrence of Mamba (Gu & Dao 2023, https://arxiv.org/abs/2312.00752), and its single step.

Backends: `torch` (the definition), `triton` (ours), `mamba_ssm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Backend, Call, Example, Op, exporting, register_op, triton_backend
from hybridzoo.ops.selective_scan import mamba_ssm
from hybridzoo.ops.selective_scan.step import selective_scan_step

__all__ = ["selective_scan", "selective_scan_step"]


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = AUTO,
) -> Tensor | tuple[Tensor, Tensor]:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = (C_t . h_t + D u_t) silu(z_t).

    delta is dt + dt_bias, through softplus if asked for. Differentiable in every floating-point argument, and through
    the final state. States and sums are fp32 (fp64 for fp64 inputs); y has u's dtype.

    Args:
        u: (B, L, D) input.
        dt: (B, L, D) step sizes before bias and softplus.
        A: (D, N) real; negative for a decaying state.
        B: (B, L, N), or (B, L, G, N) for G groups of D / G channels each.
        C: like B.
        D: (D,) skip weight.
        z: (B, L, D) gate.
        dt_bias: (D,).
        dt_softplus: whether delta goes through softplus.
        initial_state: (B, D, N); with cu_seqlens (S, D, N), one per segment.
        return_final_state: also return the state after the last step, (B, D, N) or (S, D, N).
        seq_idx: (B, L) integers; the state is cleared wherever the number changes inside a row. The final state is
            the one of the row's last position.
        cu_seqlens: (S + 1,) integers from 0 to L for a batch of 1: segment s is positions cu[s] to cu[s + 1]; a
            segment of length zero passes its initial state through.
        backend: `"auto"`, `"torch"`, `"triton"` or `"mamba_ssm"`.

    Returns:
        y (B, L, D), or (y, final_state).

    Raises:
        InputError: shapes or dtypes that do not fit.
        BackendError: the backend asked for cannot run the call.
    """
    call = _normalise(
        {
            "u": u,
            "dt": dt,
            "A": A,
            "B": B,
            "C": C,
            "D": D,
            "z": z,
            "dt_bias": dt_bias,
            "dt_softplus": dt_softplus,
            "initial_state": initial_state,
            "return_final_state": return_final_state,
            "seq_idx": seq_idx,
            "cu_seqlens": cu_seqlens,
        }
    )
    y, final = OP(call, backend)
    return (y, final) if return_final_state else y


def _normalise(call: dict[str, Any]) -> dict[str, Any]:
    """Check shapes; B and C get their group dimension."""
    u, A = call["u"], call["A"]
    if u.dim() != 3 or 0 in u.shape:
        raise InputError(f"selective_scan: u must be (B, L, D) with no empty dimension, it is {tuple(u.shape)}")
    batch, length, channels = u.shape
    if A.dim() != 2 or A.shape[0] != channels or A.is_complex():
        raise InputError(f"selective_scan: A must be real ({channels}, N), it is {tuple(A.shape)} {A.dtype}")
    for name in ("B", "C"):
        x = call[name]
        call[name] = x = x.unsqueeze(2) if x.dim() == 3 else x
        if x.dim() != 4 or x.shape[:2] != (batch, length) or x.shape[3] != A.shape[1] or channels % x.shape[2]:
            raise InputError(
                f"selective_scan: {name} must be ({batch}, {length}, N) or ({batch}, {length}, G, N) with "
                f"N = {A.shape[1]} and G a divisor of {channels}, it is {tuple(x.shape)}"
            )
    if call["B"].shape != call["C"].shape:
        raise InputError(f"selective_scan: B {tuple(call['B'].shape)} and C {tuple(call['C'].shape)} differ in shape")
    cu = call["cu_seqlens"]
    if cu is not None:
        if batch != 1 or cu.dim() != 1 or cu.shape[0] < 2 or cu.is_floating_point():
            raise InputError(
                "selective_scan: cu_seqlens must be S + 1 integers, S >= 1, with a batch of 1; "
                f"it is {tuple(cu.shape)} {cu.dtype} with a batch of {batch}"
            )
        if call["seq_idx"] is not None:
            raise InputError("selective_scan: give seq_idx or cu_seqlens, not both")
    segments = batch if cu is None else cu.shape[0] - 1
    shapes = {
        "dt": (batch, length, channels),
        "z": (batch, length, channels),
        "D": (channels,),
        "dt_bias": (channels,),
        "initial_state": (segments, channels, A.shape[1]),
        "seq_idx": (batch, length),
    }
    for name, shape in shapes.items():
        x = call[name]
        if x is not None and tuple(x.shape) != shape:
            raise InputError(f"selective_scan: {name} must be {shape}, it is {tuple(x.shape)}")
        if x is not None and x.device != u.device:
            raise InputError(f"selective_scan: {name} is on {x.device}, u on {u.device}; move them to one device")
    return call


def _run_torch(return_final_state: bool, dt_softplus: bool, **call: Any) -> tuple[Tensor, Tensor | None]:
    tensors = [call[k] for k in ("u", "dt", "A", "B", "C", "D", "z", "dt_bias")]
    if exporting() and call["cu_seqlens"] is None:
        from hybridzoo.ops.selective_scan.reference import scan_traceable

        rest: list[Any] = [dt_softplus, call["initial_state"], call["seq_idx"]]
        return scan_traceable(*tensors, *rest)
    from hybridzoo.ops.selective_scan.custom_ops import scan_torch

    return scan_torch(*tensors, dt_softplus, call["initial_state"], call["seq_idx"], call["cu_seqlens"])


def _run_triton(return_final_state: bool, dt_softplus: bool, **call: Any) -> tuple[Tensor, Tensor | None]:
    from hybridzoo.ops.selective_scan.custom_ops import scan_triton

    tensors = [call[k] for k in ("u", "dt", "A", "B", "C", "D", "z", "dt_bias")]
    return scan_triton(*tensors, dt_softplus, call["initial_state"], call["seq_idx"], call["cu_seqlens"])


def _triton_supports(call: Call) -> str | None:
    for name, x in call.items():
        if isinstance(x, Tensor) and x.is_floating_point() and x.dtype == torch.float64:
            return f"the kernels compute in fp32, {name} is float64"
    if call["A"].shape[1] > 128:
        return f"the kernels keep at most 128 states in registers, A has {call['A'].shape[1]}"
    if torch.version.hip is not None:
        return "the kernels have been checked on NVIDIA GPUs only"
    return None


def _examples(device: torch.device) -> list[Example]:
    """Small calls for the self-test: plain, everything at once with groups, packed with an empty segment, bf16."""

    def make(name: str, batch: int, length: int, channels: int, n: int, groups: int, dtype=torch.float32, **flags: Any):
        g = torch.Generator().manual_seed(length)

        def rand(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g)

        full = flags.get("full", False)
        cu = flags.get("cu")
        call: dict[str, Any] = {
            "u": rand(batch, length, channels).to(dtype),
            "dt": (rand(batch, length, channels) - 1).to(dtype),
            "A": -rand(channels, n).exp(),
            "B": rand(batch, length, groups, n).to(dtype),
            "C": rand(batch, length, groups, n).to(dtype),
            "D": rand(channels) if full else None,
            "z": rand(batch, length, channels).to(dtype) if full else None,
            "dt_bias": rand(channels) if full else None,
            "dt_softplus": True,
            "initial_state": rand(len(cu) - 1 if cu else batch, channels, n) if full else None,
            "return_final_state": full,
            "seq_idx": None,
            "cu_seqlens": torch.tensor(cu) if cu else None,
        }
        moved: Mapping[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in call.items()}
        grads = tuple(k for k, v in call.items() if isinstance(v, Tensor) and v.is_floating_point())
        return Example(name, moved, grads)

    long = 300 if device.type == "cuda" else 70
    return [
        make("plain", 2, 37, 24, 16, 1),
        make("full, groups", 2, long, 48, 8, 2, full=True),
        make("packed", 1, long, 32, 4, 1, full=True, cu=[0, 5, 5, long - 1, long]),
        make("bf16", 2, long, 40, 16, 1, torch.bfloat16, full=True),
    ]


OP = register_op(
    Op(
        name="selective_scan",
        backends=(
            triton_backend(_run_triton, _triton_supports),
            Backend(
                name="mamba_ssm",
                priority=10,
                run=mamba_ssm.run,
                supports=mamba_ssm.supports,
                deterministic=False,
                devices=("cuda",),
                symbol=mamba_ssm.SYMBOL,
                fix="pip install 'hybridzoo[cuda]'",
                traceable=False,
            ),
            Backend(name="torch", priority=0, run=_run_torch, exportable=True),
        ),
        examples=_examples,
    )
)
