"""Residual sum in one pass: x + row_scale * scale * (y + y_bias), rounded once to the dtype that the reader wants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Call, Example, register_kernel_op
from hybridzoo.ops.scaled_residual.reference import scaled_residual_reference

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def scaled_residual(
    x: Tensor,
    y: Tensor,
    *,
    y_bias: Tensor | None = None,
    scale: Tensor | None = None,
    row_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = AUTO,
) -> Tensor:
    """`x + row_scale * scale * (y + y_bias)`.

    Args:
        x: (B, ..., C).
        y: (B, ..., C), the branch; or (1, ..., C), added to every sample, without factors.
        y_bias: (C,), bias of the matrix product that made y, if it was left out there.
        scale: (C,), layer scale of the branch.
        row_scale: (B,), factor of the branch per sample (stochastic depth); gets no gradient.
        out_dtype: of the result; the wider of x's and y's if left out.
        backend: "auto", or a name from `hybridzoo doctor`.

    Returns:
        (B, ..., C).

    Raises:
        InputError: shapes do not fit.
    """
    channels, factors = x.shape[-1], (("y_bias", y_bias), ("scale", scale))
    if x.ndim < 2 or y.shape[1:] != x.shape[1:] or y.shape[0] not in (1, x.shape[0]):
        raise InputError(f"y {tuple(y.shape)} cannot be added to x {tuple(x.shape)}: give x's shape, or a batch of 1")
    for name, vector in factors:
        if vector is not None and tuple(vector.shape) != (channels,):
            raise InputError(f"{name} has shape {tuple(vector.shape)}; {channels} channels need ({channels},)")
    if row_scale is not None and tuple(row_scale.shape) != (x.shape[0],):
        raise InputError(f"row_scale has shape {tuple(row_scale.shape)}; a batch of {x.shape[0]} needs ({x.shape[0]},)")
    if y.shape[0] != x.shape[0] and any(f is not None for f in (y_bias, scale, row_scale)):
        raise InputError("y_bias, scale and row_scale need a y of x's batch size")
    call = {"x": x, "y": y, "y_bias": y_bias, "scale": scale, "row_scale": row_scale, "out_dtype": out_dtype}
    return _OP(call, backend)


def _run_triton(x, y, y_bias, scale, row_scale, out_dtype) -> Tensor:
    from hybridzoo.ops.scaled_residual.custom_op import ScaledResidual, scaled_residual_op

    run = scaled_residual_op if torch.compiler.is_compiling() else ScaledResidual.apply
    channels, dtype = x.shape[-1], out_dtype or torch.promote_types(x.dtype, y.dtype)
    y = y if y.stride(-1) == 1 else y.contiguous()  # a table that `.to(memory_format=channels_last)` has turned
    return run(x.reshape(-1, channels), y.reshape(-1, channels), y_bias, scale, row_scale, dtype).view(x.shape)


def _supports_triton(call: Call) -> str | None:
    x, y = call["x"], call["y"]
    if x.dtype not in KERNEL_DTYPES or y.dtype not in KERNEL_DTYPES:
        return f"its dtypes are bfloat16, float16 and float32, not {x.dtype} and {y.dtype}"
    if x.stride(-1) != 1 or (y.stride(-1) != 1 and y.shape == x.shape):
        return "the channels must be contiguous"
    return "the input is empty" if x.numel() == 0 else None


def _examples(device: torch.device) -> list[Example]:
    def draw(*size: int, seed: int) -> Tensor:
        return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(device)

    def example(name: str, x: Tensor, y: Tensor, **factors: Tensor) -> Example:
        call: dict[str, Any] = {"x": x, "y": y, "y_bias": None, "scale": None, "row_scale": None, "out_dtype": None}
        return Example(name, call | factors, ("x", "y", *[name for name in factors if name != "row_scale"]))

    x, y = draw(3, 5, 4, 40, seed=0), draw(3, 5, 4, 40, seed=1)
    vectors = {"y_bias": draw(40, seed=2), "scale": draw(40, seed=3), "row_scale": draw(3, seed=4).gt(0) * 1.25}
    return [
        example("B3-5x4-C40-fp32", x, y),
        example("B3-5x4-C40-scaled-fp32", x, y, **vectors),
        example("B3-5x4-C40-bias-fp32", x, y, y_bias=vectors["y_bias"]),
        example("B3-5x4-C40-table-fp32", x, y[:1].clone()),
        example("B3-5x4-C40-bf16", x.bfloat16(), y.bfloat16(), y_bias=vectors["y_bias"]),
    ]


_OP = register_kernel_op(
    "scaled_residual",
    triton=_run_triton,
    supports=_supports_triton,
    reference=scaled_residual_reference,
    examples=_examples,
)
