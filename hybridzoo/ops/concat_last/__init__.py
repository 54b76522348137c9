"""Concatenation of few channels: rows of some ten numbers from several tensors, put side by side in one pass.

torch's concatenation along the last axis moves single numbers where a part's width is odd to its 16 bytes, as behind
`split` in the backward of a projection to step sizes, B and C: a third of the memory bandwidth (fp32, H200).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Call, Example, register_kernel_op

MAX_CHANNELS = 64  # of a part, for the kernel


def concat_last(first: Tensor, second: Tensor, third: Tensor, *, backend: str = AUTO) -> Tensor:
    """`cat((first, second, third), -1)`, without a graph.

    Args:
        first, second, third: (M, K, C_i) of one dtype.
        backend: "auto", or a name from `hybridzoo doctor`. The kernel has no gradients.

    Returns:
        (M, K, C_1 + C_2 + C_3), contiguous.

    Raises:
        InputError: shapes or dtypes do not fit.
    """
    parts = (first, second, third)
    if any(x.ndim != 3 or x.shape[:2] != first.shape[:2] or x.dtype != first.dtype for x in parts):
        given = [(tuple(x.shape), str(x.dtype)) for x in parts]
        raise InputError(f"three tensors (M, K, C_i) of one dtype are needed, got {given}")
    return _OP({"first": first, "second": second, "third": third}, backend)


def _run_torch(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    return torch.cat((first, second, third), dim=-1)


def _run_triton(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    from hybridzoo.ops.concat_last.triton import concat

    return concat(first, second, third)


def _supports_triton(call: Call) -> str | None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in call.values()):
        return "it has no gradients"
    if any(x.is_complex() or x.numel() == 0 for x in call.values()):
        return "a part is complex or empty"
    widest = max(x.shape[2] for x in call.values())
    return f"it takes at most {MAX_CHANNELS} channels a part, not {widest}" if widest > MAX_CHANNELS else None


def _examples(device: torch.device) -> list[Example]:
    def example(name: str, m: int, k: int, widths: tuple[int, int, int], dtype: torch.dtype) -> Example:
        g = torch.Generator().manual_seed(0)
        whole = torch.randn(m, k, 2 * sum(widths), generator=g).to(device, dtype)
        parts = whole.split([*widths, sum(widths)], dim=2)[:3]  # rows that lie apart
        return Example(name, dict(zip(("first", "second", "third"), parts, strict=True)), ())

    return [
        example("M70-K8-4-16-16-fp32", 70, 8, (4, 16, 16), torch.float32),
        example("M33-K1-20-5-1-fp32", 33, 1, (20, 5, 1), torch.float32),
        example("M16-K8-32-16-16-fp32", 16, 8, (32, 16, 16), torch.float32),
        example("M129-K3-8-16-16-bf16", 129, 3, (8, 16, 16), torch.bfloat16),
    ]


_OP = register_kernel_op(
    "concat_last",
    triton=_run_triton,
    supports=_supports_triton,
    reference=_run_torch,
    examples=_examples,
    traceable=False,
)
