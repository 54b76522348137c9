"""3x3 max-pooling, stride 1, of channels-last maps.

torch's channels-last kernel writes an 8-byte index beside every 2-byte value and, asked to pool a slice of channels,
copies it first. Here a slice is read in place; the index is one byte, written only when a gradient will be asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Call, Example, register_kernel_op
from hybridzoo.ops.max_pool3x3.reference import max_pool3x3_reference

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def max_pool3x3(x: Tensor, *, backend: str = AUTO) -> Tensor:
    """Maximum over 3x3 windows, stride 1, padding 1 (not counted).

    Among equals the first in row-major order has the gradient.

    Args:
        x: (B, H, W, C); a slice of channels is read in place.
        backend: "auto", or a name from `hybridzoo doctor`.

    Returns:
        (B, H, W, C) in x's dtype.

    Raises:
        InputError: x is not a floating-point (B, H, W, C).
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"expected a floating-point map (B, H, W, C), got {tuple(x.shape)} of {x.dtype}")
    return _OP({"x": x}, backend)


def _run_triton(x: Tensor) -> Tensor:
    from hybridzoo.ops.max_pool3x3.custom_op import MaxPool3x3, max_pool3x3_op
    from hybridzoo.ops.max_pool3x3.triton import max_pool_forward

    grad = torch.is_grad_enabled() and x.requires_grad
    if torch.compiler.is_compiling():
        return max_pool3x3_op(x, grad)[0]
    return MaxPool3x3.apply(x) if grad else max_pool_forward(x, save_taps=False)[0]


def _supports_triton(call: Call) -> str | None:
    x = call["x"]
    if x.dtype not in KERNEL_DTYPES:
        return f"its dtypes are bfloat16, float16 and float32, not {x.dtype}"
    return "the channels must be contiguous" if x.stride(3) != 1 else None


def _examples(device: torch.device) -> list[Example]:
    def example(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Example:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # ties occur
        return Example(name, {"x": x.to(device, dtype)}, ("x",))

    return [
        example("B2-7x7-C33-fp32", 2, 7, 7, 33),
        example("B2-9x18-C8-fp32", 2, 9, 18, 8),
        example("B2-14x14-C48-bf16", 2, 14, 14, 48, dtype=torch.bfloat16),
    ]


_OP = register_kernel_op(
    "max_pool3x3", triton=_run_triton, supports=_supports_triton, reference=max_pool3x3_reference, examples=_examples
)
