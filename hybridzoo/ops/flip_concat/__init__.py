"""Concatenation of two directions of a scan: the second, which ran from the end, is flipped in time on the way.

A flip and a concatenation in torch move each element twice, and torch's flip reaches a third of the memory bandwidth
(bf16, H200); here both are one copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Call, Example, register_kernel_op


def flip_concat(first: Tensor | None, second: Tensor, *, backend: str = AUTO) -> Tensor:
    """`cat((first, second.flip(1)), -1)`; without `first`, `second.flip(1)`.

    Args:
        first: (B, L, C), or None.
        second: (B, L, E) of first's dtype.
        backend: "auto", or a name from `hybridzoo doctor`.

    Returns:
        (B, L, C + E), contiguous.

    Raises:
        InputError: shapes or dtypes do not fit.
    """
    if second.ndim != 3 or (first is not None and (first.ndim != 3 or first.shape[:2] != second.shape[:2])):
        given = None if first is None else tuple(first.shape)
        raise InputError(f"first (B, L, C) and second (B, L, E) do not fit: {given} and {tuple(second.shape)}")
    if first is not None and first.dtype != second.dtype:
        raise InputError(f"first and second need one dtype, they are {first.dtype} and {second.dtype}")
    return _OP({"first": first, "second": second}, backend)


def _run_torch(first: Tensor | None, second: Tensor) -> Tensor:
    turned = second.flip(1)
    return turned if first is None else torch.cat((first, turned), dim=-1)


def _run_triton(first: Tensor | None, second: Tensor) -> Tensor:
    from hybridzoo.ops.flip_concat.custom_op import eager, flip_concat_op

    return (flip_concat_op if torch.compiler.is_compiling() else eager)(first, second)


def _supports_triton(call: Call) -> str | None:
    for name, x in call.items():
        if x is not None and x.stride(-1) != 1:
            return f"the channels of {name} must be contiguous"
        if x is not None and (x.is_complex() or x.numel() == 0):
            return f"{name} is complex or empty"
    return None


def _examples(device: torch.device) -> list[Example]:
    def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)

    wide = draw(2, 70, 150, seed=2, dtype=torch.bfloat16)
    return [
        Example(
            "B2-L37-C33-E40", {"first": draw(2, 37, 33, seed=0), "second": draw(2, 37, 40, seed=1)}, ("first", "second")
        ),
        Example("B3-L5-E12-alone", {"first": None, "second": draw(3, 5, 12, seed=0)}, ("second",)),
        Example("B2-L70-slices-bf16", {"first": wide[..., :70], "second": wide[..., 70:]}, ()),
    ]


_OP = register_kernel_op(
    "flip_concat", triton=_run_triton, supports=_supports_triton, reference=_run_torch, examples=_examples
)
