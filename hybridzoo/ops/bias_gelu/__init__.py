"""GELU of a biased matrix product's output: gelu(x + bias).

Forward it moves as much as GELU alone. Backward it also sums the bias gradient, for which torch reads the
whole gradient once more, with a column reduction that reached a quarter of the memory bandwidth (bf16, H100).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.bias_gelu.reference import bias_gelu_reference
from hybridzoo.ops.dispatch import AUTO, Call, Example, register_kernel_op

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def bias_gelu(x: Tensor, bias: Tensor, *, backend: str = AUTO) -> Tensor:
    """Exact (erf) GELU of `x + bias`.

    Args:
        x: (..., C), floating point.
        bias: (C,), any floating dtype (the sum is fp32 at least).
        backend: "auto", or a name from `hybridzoo doctor`.

    Returns:
        (..., C) in x's dtype.

    Raises:
        InputError: shapes do not fit.
    """
    if x.ndim < 2 or tuple(bias.shape) != (x.shape[-1],):
        raise InputError(f"expected x (..., C) and bias (C,), got {tuple(x.shape)} and {tuple(bias.shape)}")
    return _OP({"x": x, "bias": bias}, backend)


def _run_triton(x: Tensor, bias: Tensor) -> Tensor:
    from hybridzoo.ops.bias_gelu.custom_op import BiasGelu, bias_gelu_op

    flat = x.reshape(-1, x.shape[-1])
    y = bias_gelu_op(flat, bias) if torch.compiler.is_compiling() else BiasGelu.apply(flat, bias)
    return y.view(x.shape)


def _supports_triton(call: Call) -> str | None:
    x = call["x"]
    if x.dtype not in KERNEL_DTYPES:
        return f"its dtypes are bfloat16, float16 and float32, not {x.dtype}"
    if x.stride(-1) != 1:
        return "the channels must be contiguous"
    return "the input is empty" if x.numel() == 0 else None


def _examples(device: torch.device) -> list[Example]:
    def example(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Example:
        x = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        bias = torch.randn(shape[-1:], generator=torch.Generator().manual_seed(1))
        return Example(name, {"x": x.to(device, dtype), "bias": bias.to(device)}, ("x", "bias"))

    return [
        example("N37-C33-fp32", 37, 33),
        example("B2-5x4-C160-fp32", 2, 5, 4, 160),
        example("N392-C128-bf16", 392, 128, dtype=torch.bfloat16),
    ]


_OP = register_kernel_op(
    "bias_gelu", triton=_run_triton, supports=_supports_triton, reference=bias_gelu_reference, examples=_examples
)
