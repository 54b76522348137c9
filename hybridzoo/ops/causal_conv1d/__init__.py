"""`causal_conv1d`: depthwise convolution over time, causal or same-padded, with SiLU, and its single step.

Backends: `torch` (the definition), `triton` (ours), `causal_conv1d` (Dao-AILab's CUDA kernels).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.causal_conv1d.reference import conv_torch, final_state
from hybridzoo.ops.dispatch import AUTO, Backend, Call, Example, Op, register_op, triton_backend

__all__ = ["causal_conv1d", "causal_conv1d_step"]


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    padding: Literal["causal", "same"] = "causal",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = AUTO,
) -> Tensor | tuple[Tensor, Tensor]:
    """y_t = act(bias + sum_k weight[:, k] x_{t - left + k}), zero outside the sequence.

    left is W - 1 (causal) or (W - 1) // 2 (same, as torch's `padding="same"`). Differentiable in every floating-point
    argument and through the final state; sums are fp32 (fp64 for fp64 inputs).

    Args:
        x: (B, L, D).
        weight: (D, W), any W >= 1.
        bias: (D,).
        activation: `"silu"` or None.
        padding: `"causal"` or `"same"`.
        initial_state: (B, W - 1, D) inputs before the first position, oldest first; with cu_seqlens (S, W - 1, D).
            With seq_idx it precedes each row's first sequence. Causal only.
        return_final_state: also return the last W - 1 inputs, (B, W - 1, D) or (S, W - 1, D). Causal only.
        seq_idx: (B, L) integers; nothing is read across a change of the number inside a row.
        cu_seqlens: (S + 1,) integers from 0 to L for a batch of 1; segments may be empty.
        backend: `"auto"`, `"torch"`, `"triton"` or `"causal_conv1d"`.

    Returns:
        y (B, L, D) in x's dtype, or (y, final_state).

    Raises:
        InputError: shapes or options that do not fit.
        BackendError: the backend asked for cannot run the call.
    """
    call = {
        "x": x,
        "weight": weight,
        "bias": bias,
        "activation": activation,
        "padding": padding,
        "initial_state": initial_state,
        "return_final_state": return_final_state,
        "seq_idx": seq_idx,
        "cu_seqlens": cu_seqlens,
    }
    _check(call)
    y, final = OP(call, backend)
    return (y, final) if return_final_state else y


def causal_conv1d_step(
    state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """One more position of a causal convolution.

    Args:
        state: (B, W - 1, D) the last inputs, oldest first.
        x: (B, D) the new input.
        weight, bias, activation: as in `causal_conv1d`.
        inplace: write the new state over `state` (keeps its address for CUDA graphs).

    Returns:
        y (B, D) in x's dtype and the new state (B, W - 1, D).

    Raises:
        InputError: shapes that do not fit.
    """
    want = (x.shape[0], weight.shape[1] - 1, x.shape[1])
    if tuple(state.shape) != want or weight.shape[0] != x.shape[1]:
        raise InputError(
            f"causal_conv1d_step: state must be {want} and weight ({x.shape[1]}, W) for x of shape {tuple(x.shape)}; "
            f"they are {tuple(state.shape)} and {tuple(weight.shape)}"
        )
    wide = torch.promote_types(x.dtype, torch.float32)
    window = torch.cat([state.to(x.dtype), x.unsqueeze(1)], 1)  # (B, W, D)
    y = (window.to(wide) * weight.to(wide).t()).sum(1)
    if bias is not None:
        y = y + bias.to(wide)
    new = window[:, 1:]
    if inplace:
        new = state.copy_(new)
    return (F.silu(y) if activation == "silu" else y).to(x.dtype), new


def _check(call: dict[str, Any]) -> None:
    x, weight = call["x"], call["weight"]
    if x.dim() != 3 or 0 in x.shape:
        raise InputError(f"causal_conv1d: x must be (B, L, D) with no empty dimension, it is {tuple(x.shape)}")
    batch, length, channels = x.shape
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] < 1:
        raise InputError(f"causal_conv1d: weight must be ({channels}, W), it is {tuple(weight.shape)}")
    if call["activation"] not in (None, "silu"):
        raise InputError(f"causal_conv1d: activation must be None or 'silu', it is {call['activation']!r}")
    if call["padding"] not in ("causal", "same"):
        raise InputError(f"causal_conv1d: padding must be 'causal' or 'same', it is {call['padding']!r}")
    if call["padding"] == "same" and (call["initial_state"] is not None or call["return_final_state"]):
        raise InputError("causal_conv1d: states exist for padding='causal' only")
    cu = call["cu_seqlens"]
    if cu is not None:
        if batch != 1 or cu.dim() != 1 or cu.shape[0] < 2 or cu.is_floating_point():
            raise InputError(
                "causal_conv1d: cu_seqlens must be S + 1 integers, S >= 1, with a batch of 1; "
                f"it is {tuple(cu.shape)} {cu.dtype} with a batch of {batch}"
            )
        if call["seq_idx"] is not None:
            raise InputError("causal_conv1d: give seq_idx or cu_seqlens, not both")
    segments = batch if cu is None else cu.shape[0] - 1
    shapes = {
        "bias": (channels,),
        "seq_idx": (batch, length),
        "initial_state": (segments, weight.shape[1] - 1, channels),
    }
    for name, shape in shapes.items():
        if call[name] is not None and tuple(call[name].shape) != shape:
            raise InputError(f"causal_conv1d: {name} must be {shape}, it is {tuple(call[name].shape)}")


def _left(weight: Tensor, padding: str) -> int:
    return weight.shape[1] - 1 if padding == "causal" else (weight.shape[1] - 1) // 2


def _final(x: Tensor, weight: Tensor, **call: Any) -> Tensor | None:
    if not call["return_final_state"]:
        return None
    return final_state(x, weight.shape[1], call["initial_state"], call["seq_idx"], call["cu_seqlens"])


def _run_torch(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, padding: str, **call: Any):
    state, seq_idx, cu = call["initial_state"], call["seq_idx"], call["cu_seqlens"]
    y = conv_torch(x, weight, bias, activation == "silu", _left(weight, padding), state, seq_idx, cu)
    return y, _final(x, weight, **call)


def _run_triton(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, padding: str, **call: Any):
    from hybridzoo.ops.causal_conv1d.custom_ops import conv_triton

    state, seq_idx, cu = call["initial_state"], call["seq_idx"], call["cu_seqlens"]
    y = conv_triton(x, weight, bias, activation == "silu", _left(weight, padding), state, seq_idx, cu)
    return y, _final(x, weight, **call)


def _triton_supports(call: Call) -> str | None:
    for name, x in call.items():
        if isinstance(x, Tensor) and x.dtype == torch.float64:
            return f"the kernels compute in fp32, {name} is float64"
    if torch.version.hip is not None:
        return "the kernels have been checked on NVIDIA GPUs only"
    return None


def _run_dao(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, padding: str, **call: Any):
    from causal_conv1d import causal_conv1d_fn  # pyright: ignore[reportAttributeAccessIssue]

    seq_idx = call["seq_idx"]
    # fp32 weights of 16-bit inputs stay as they are; it wants weight and bias in one type
    own = torch.float32 if torch.float32 in (weight.dtype, None if bias is None else bias.dtype) else x.dtype
    y = causal_conv1d_fn(
        x.contiguous().transpose(1, 2),  # its channel-last path: no copy
        weight.to(own).contiguous(),
        None if bias is None else bias.to(own).contiguous(),
        seq_idx=None if seq_idx is None else seq_idx.to(torch.int32).contiguous(),
        activation=activation,
    ).transpose(1, 2)
    return y, _final(x, weight, **call)


def _dao_supports(call: Call) -> str | None:
    x, weight = call["x"], call["weight"]
    if call["padding"] != "causal":
        return "causal-conv1d is causal only"
    if not 2 <= weight.shape[1] <= 4:
        return f"causal-conv1d takes 2 to 4 taps, weight has {weight.shape[1]}"
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"causal-conv1d has no kernel for {x.dtype}"
    if x.shape[2] % 8:
        return f"causal-conv1d's channel-last kernels want a multiple of 8 channels, x has {x.shape[2]}"
    if call["initial_state"] is not None or call["cu_seqlens"] is not None:
        return "this adapter passes neither initial_state nor cu_seqlens"
    return None


def _examples(device: torch.device) -> list[Example]:
    def make(name: str, batch: int, length: int, channels: int, taps: int, dtype=torch.float32, **options: Any):
        g = torch.Generator().manual_seed(length)

        def rand(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g)

        cu = options.get("cu")
        state = options.get("state", False)
        call: dict[str, Any] = {
            "x": rand(batch, length, channels).to(dtype),
            "weight": rand(channels, taps).to(dtype),
            "bias": None if options.get("plain") else rand(channels).to(dtype),
            "activation": None if options.get("plain") else "silu",
            "padding": options.get("padding", "causal"),
            "initial_state": rand(len(cu) - 1 if cu else batch, taps - 1, channels).to(dtype) if state else None,
            "return_final_state": state,
            "seq_idx": None,
            "cu_seqlens": torch.tensor(cu) if cu else None,
        }
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in call.items()}
        return Example(
            name, moved, tuple(k for k, v in call.items() if isinstance(v, Tensor) and v.dtype.is_floating_point)
        )

    return [
        make("causal", 2, 77, 48, 4),
        make("state", 2, 65, 40, 3, state=True),
        make("packed", 1, 70, 72, 4, state=True, cu=[0, 2, 2, 69, 70]),
        make("same, 7 taps", 2, 33, 24, 7, padding="same"),
        make("bf16", 2, 100, 64, 4, torch.bfloat16),
        make("no bias, no activation", 2, 130, 40, 3, plain=True),
    ]


OP = register_op(
    Op(
        name="causal_conv1d",
        backends=(
            triton_backend(_run_triton, _triton_supports),
            Backend(
                name="causal_conv1d",
                priority=10,
                run=_run_dao,
                supports=_dao_supports,
                deterministic=False,
                devices=("cuda",),
                symbol="causal_conv1d:causal_conv1d_fn",
                fix="pip install 'hybridzoo[cuda]'",
                traceable=False,
            ),
            Backend(name="torch", priority=0, run=_run_torch, exportable=True),
        ),
        examples=_examples,
    )
)
