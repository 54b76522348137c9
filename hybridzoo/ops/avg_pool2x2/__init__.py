"""2x2 average pooling, stride 2, of channels-last maps; a slice of channels is read in place, where torch copies it."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.avg_pool2x2.reference import avg_pool2x2_reference
from hybridzoo.ops.dispatch import AUTO, Call, Example, register_kernel_op

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def avg_pool2x2(x: Tensor, *, backend: str = AUTO) -> Tensor:
    """Mean over 2x2 windows, stride 2; an odd last row or column is left out.

    Args:
        x: (B, H, W, C) with H and W at least 2.
        backend: "auto", or a name from `hybridzoo doctor`.

    Returns:
        (B, H // 2, W // 2, C) in x's dtype.

    Raises:
        InputError: x is not a floating-point map of at least 2x2.
    """
    if x.ndim != 4 or not x.is_floating_point() or x.shape[1] < 2 or x.shape[2] < 2:
        raise InputError(f"expected a floating-point map (B, H >= 2, W >= 2, C), got {tuple(x.shape)} of {x.dtype}")
    return _OP({"x": x}, backend)


def _run_triton(x: Tensor) -> Tensor:
    from hybridzoo.ops.avg_pool2x2.custom_op import AvgPool2x2, avg_pool2x2_op

    return avg_pool2x2_op(x) if torch.compiler.is_compiling() else AvgPool2x2.apply(x)


def _supports_triton(call: Call) -> str | None:
    x = call["x"]
    if x.dtype not in KERNEL_DTYPES:
        return f"its dtypes are bfloat16, float16 and float32, not {x.dtype}"
    return "the channels must be contiguous" if x.stride(3) != 1 else None


def _examples(device: torch.device) -> list[Example]:
    def example(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Example:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return Example(name, {"x": x.to(device, dtype)}, ("x",))

    return [
        example("B2-8x6-C33-fp32", 2, 8, 6, 33),
        example("B2-7x9-C8-fp32", 2, 7, 9, 8),
        example("B2-14x14-C96-bf16", 2, 14, 14, 96, dtype=torch.bfloat16),
    ]


_OP = register_kernel_op(
    "avg_pool2x2", triton=_run_triton, supports=_supports_triton, reference=avg_pool2x2_reference, examples=_examples
)
