"""Instance normalisation and SiLU of channels-last maps: every channel of every sample by its own mean and deviation.

Floor (forward): two reads and one write of the map. torch's instance norm first copies a channels-last map to NCHW, and
SiLU reads and writes it once more; the backward needs 4 reads and a write in place of 9 and 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Call, Example, register_kernel_op
from hybridzoo.ops.instance_norm_silu.reference import instance_norm_silu_reference

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def instance_norm_silu(x: Tensor, *, eps: float = 1e-5, backend: str = AUTO) -> Tensor:
    """`silu((x - mean) / sqrt(variance + eps))`, both over the positions of a sample; no weights.

    Args:
        x: (B, ..., C) with at least two positions, floating point; statistics are fp32 at least.
        eps: added to the variance, which is the biased one.
        backend: "auto", or a name from `hybridzoo doctor`.

    Returns:
        (B, ..., C) in x's dtype.

    Raises:
        InputError: no map, or a single position.
    """
    if x.ndim < 3 or not x.is_floating_point() or x.shape[1:-1].numel() < 2:
        raise InputError(
            f"expected floating-point maps (B, ..., C) of two positions or more, got {x.dtype} {tuple(x.shape)}"
        )
    return _OP({"x": x, "eps": eps}, backend)


def _run_triton(x: Tensor, eps: float) -> Tensor:
    from hybridzoo.ops.instance_norm_silu.custom_op import eager, instance_norm_silu_op

    flat = x.flatten(1, -2).contiguous()
    y = instance_norm_silu_op(flat, eps)[0] if torch.compiler.is_compiling() else eager(flat, eps)[0]
    return y.view(x.shape)


def _supports_triton(call: Call) -> str | None:
    x = call["x"]
    if x.dtype not in KERNEL_DTYPES:
        return f"its dtypes are bfloat16, float16 and float32, not {x.dtype}"
    return "the input is empty" if x.numel() == 0 else None


def _examples(device: torch.device) -> list[Example]:
    def example(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Example:
        x = 3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return Example(name, {"x": x.to(device, dtype), "eps": 1e-5}, ("x",))

    return [
        example("B2-3x2-C5-fp32", 2, 3, 2, 5),
        example("B2-9x7-C40-fp32", 2, 9, 7, 40),
        example("B1-40x35-C33-fp32", 1, 40, 35, 33),
        example("B2-12x12-C64-bf16", 2, 12, 12, 64, dtype=torch.bfloat16),
    ]


_OP = register_kernel_op(
    "instance_norm_silu",
    triton=_run_triton,
    supports=_supports_triton,
    reference=instance_norm_silu_reference,
    examples=_examples,
)
