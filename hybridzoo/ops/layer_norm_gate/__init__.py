"""LayerNorm times a gate: `LayerNorm(x) * silu(gate)`, the end of a Mamba layer without its projection.

Floor: forward 12 bytes an element in fp32 (read x and the gate, write), backward 20. As three operations of torch: 28
and 60.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Call, Example, register_kernel_op
from hybridzoo.ops.layer_norm_gate.reference import layer_norm_gate_reference

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_CHANNELS = 4096  # a row has to fit into the registers of a program


def layer_norm_gate(
    x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, backend: str = AUTO
) -> Tensor:
    """`(LayerNorm(x) * weight + bias) * silu(gate)` over the last axis; fp32 inside at least.

    Args:
        x: (..., C), floating point.
        gate: (..., C), of x's dtype; its rows may lie apart, as a half of a projection's output does.
        weight, bias: (C,), of the norm.
        eps: of the norm.
        backend: "auto", or a name from `hybridzoo doctor`.

    Returns:
        (..., C) in x's dtype.

    Raises:
        InputError: shapes or dtypes do not fit.
    """
    if x.ndim < 2 or gate.shape != x.shape or gate.dtype != x.dtype or not x.is_floating_point():
        given = [(tuple(t.shape), str(t.dtype)) for t in (x, gate)]
        raise InputError(f"x and gate need one shape (..., C) and one floating dtype, got {given}")
    for name, vector in (("weight", weight), ("bias", bias)):
        if tuple(vector.shape) != (x.shape[-1],):
            raise InputError(f"{name} has shape {tuple(vector.shape)}; {x.shape[-1]} channels need ({x.shape[-1]},)")
    return _OP({"x": x, "gate": gate, "weight": weight, "bias": bias, "eps": eps}, backend)


def _run_triton(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    from hybridzoo.ops.layer_norm_gate.custom_op import eager, layer_norm_gate_op

    run = layer_norm_gate_op if torch.compiler.is_compiling() else eager
    return run(x.flatten(0, -2), gate.flatten(0, -2), weight, bias, eps).view(x.shape)


def _supports_triton(call: Call) -> str | None:
    x = call["x"]
    if x.dtype not in KERNEL_DTYPES:
        return f"its dtypes are bfloat16, float16 and float32, not {x.dtype}"
    if x.shape[-1] > MAX_CHANNELS:
        return f"it takes at most {MAX_CHANNELS} channels, not {x.shape[-1]}"
    return "the input is empty" if x.numel() == 0 else None


def _examples(device: torch.device) -> list[Example]:
    def example(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Example:
        g = torch.Generator().manual_seed(0)
        x, both = 1 + torch.randn(shape, generator=g), torch.randn(*shape[:-1], 2 * shape[-1], generator=g)
        call = {
            "x": x.to(device, dtype),
            "gate": both.to(device, dtype)[..., shape[-1] :],
            "weight": torch.randn(shape[-1:], generator=g).to(device),
            "bias": torch.randn(shape[-1:], generator=g).to(device),
            "eps": 1e-5,
        }
        return Example(name, call, ("x", "gate", "weight", "bias"))

    return [
        example("N37-C33-fp32", 37, 33),
        example("B2-5x4-C160-fp32", 2, 5, 4, 160),
        example("N3-C1024-fp32", 3, 1024),
        example("N392-C128-bf16", 392, 128, dtype=torch.bfloat16),
    ]


_OP = register_kernel_op(
    "layer_norm_gate",
    triton=_run_triton,
    supports=_supports_triton,
    reference=layer_norm_gate_reference,
    examples=_examples,
)
