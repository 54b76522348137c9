"""Residual sum and LayerNorm in one pass: x + row_scale * scale * (y + y_bias), and its LayerNorm in the compute dtype.

Under autocast torch runs LayerNorm in fp32 and a cast follows: 14 bytes an element beside the sum's 10 for an fp32
residual stream. In one pass the two need 12 in all (read 4 + 2, write 4 + 2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.add_layer_norm.reference import add_layer_norm_reference
from hybridzoo.ops.dispatch import AUTO, Call, Example, register_kernel_op

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_CHANNELS = 4096  # a row has to fit into the registers of a program


def add_layer_norm(
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    y_bias: Tensor | None = None,
    scale: Tensor | None = None,
    row_scale: Tensor | None = None,
    eps: float = 1e-6,
    out_dtype: torch.dtype | None = None,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor]:
    """`total = x + row_scale * scale * (y + y_bias)` and `LayerNorm(total)` over the last axis; statistics in fp32.

    Args:
        x: (B, ..., C), the residual stream.
        y: (B, ..., C), the branch to add; None: `total` is x itself.
        weight: (C,), of the norm.
        bias: (C,), of the norm.
        y_bias: (C,), bias of the matrix product that made y, if it was left out there: its gradient is summed here.
        scale: (C,), layer scale of the branch.
        row_scale: (B,), factor of the branch per sample (stochastic depth); gets no gradient.
        eps: of the norm.
        out_dtype: of the normalised output; x's dtype if left out. Under autocast give its dtype: no cast follows.
        backend: "auto", or a name from `hybridzoo doctor`.

    Returns:
        `total` in the wider dtype of x and y, and the normalised map in `out_dtype`, both (B, ..., C).

    Raises:
        InputError: shapes do not fit.
    """
    channels = x.shape[-1]
    if y is not None and y.shape != x.shape:
        raise InputError(f"x and y need one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    for name, vector in (("weight", weight), ("bias", bias), ("y_bias", y_bias), ("scale", scale)):
        if vector is not None and tuple(vector.shape) != (channels,):
            raise InputError(f"{name} has shape {tuple(vector.shape)}; {channels} channels need ({channels},)")
    if row_scale is not None and tuple(row_scale.shape) != (x.shape[0],):
        raise InputError(f"row_scale has shape {tuple(row_scale.shape)}; a batch of {x.shape[0]} needs ({x.shape[0]},)")
    if y is None and not (y_bias is None and scale is None and row_scale is None):
        raise InputError("y_bias, scale and row_scale belong to y; y is None")
    return _OP(
        {
            "x": x,
            "y": y,
            "weight": weight,
            "bias": bias,
            "y_bias": y_bias,
            "scale": scale,
            "row_scale": row_scale,
            "eps": eps,
            "out_dtype": out_dtype,
        },
        backend,
    )


def _run_triton(x, y, weight, bias, y_bias, scale, row_scale, eps, out_dtype) -> tuple[Tensor, Tensor]:
    from hybridzoo.ops.add_layer_norm.custom_op import AddLayerNorm, add_layer_norm_op

    shape = x.shape
    run = add_layer_norm_op if torch.compiler.is_compiling() else AddLayerNorm.apply
    flat_y = None if y is None else y.reshape(-1, shape[-1])
    total, normed = run(
        x.reshape(-1, shape[-1]), flat_y, y_bias, scale, row_scale, weight, bias, eps, out_dtype or x.dtype
    )
    return x if y is None else total.view(shape), normed.view(shape)


def _supports_triton(call: Call) -> str | None:
    x, y = call["x"], call["y"]
    if any(t is not None and t.dtype not in KERNEL_DTYPES for t in (x, y)):
        return f"its dtypes are bfloat16, float16 and float32, not {x.dtype}"
    if x.shape[-1] > MAX_CHANNELS:
        return f"{x.shape[-1]} channels are more than {MAX_CHANNELS}"
    if x.stride(-1) != 1 or (y is not None and y.stride(-1) != 1):
        return "the channels must be contiguous"
    return "the input is empty" if x.numel() == 0 else None


def _examples(device: torch.device) -> list[Example]:
    def example(
        name: str, shape: tuple[int, ...], *, add: bool = True, scaled: bool = False, dtype: torch.dtype = torch.float32
    ) -> Example:
        def draw(*size: int, seed: int) -> Tensor:
            return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(device)

        channels = (shape[-1],)
        call: dict[str, Any] = {
            "x": draw(*shape, seed=0).to(dtype),
            "y": draw(*shape, seed=1).to(dtype) if add else None,
            "weight": 1 + 0.2 * draw(*channels, seed=2),
            "bias": 0.2 * draw(*channels, seed=3),
            "y_bias": draw(*channels, seed=6) if scaled else None,
            "scale": draw(*channels, seed=4) if scaled else None,
            "row_scale": draw(shape[0], seed=5).gt(0) * 1.25 if scaled else None,
            "eps": 1e-6,
            "out_dtype": None,
        }
        return Example(name, call, ("x", *("y",) * add, "weight", "bias", *("y_bias", "scale") * scaled))

    return [
        example("B2-N12-C33-fp32", (2, 12, 33)),
        example("B2-N12-C33-norm-only-fp32", (2, 12, 33), add=False),
        example("B3-5x4-C40-scaled-fp32", (3, 5, 4, 40), scaled=True),
        example("B2-N196-C96-bf16", (2, 196, 96), dtype=torch.bfloat16),
    ]


_OP = register_kernel_op(
    "add_layer_norm",
    triton=_run_triton,
    supports=_supports_triton,
    reference=add_layer_norm_reference,
    examples=_examples,
)
