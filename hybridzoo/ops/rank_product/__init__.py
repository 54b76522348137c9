"""One small matrix product per group: step sizes of every scan direction from their ranks, written side by side.

Floor: one write of the result, a few numbers of input for each of its rows; backward one read of its gradient, from
which both gradients come. cuBLAS writes it at 40 % of the memory's speed (H200, rank 4) and reads the gradient twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Call, Example, register_kernel_op
from hybridzoo.ops.rank_product.reference import gradients_reference, rank_product_reference

MAX_RANK = 64


def rank_product(rank: Tensor, weight: Tensor, *, backend: str = AUTO) -> Tensor:
    """`out[m, k] = weight[k] @ rank[m, k]`.

    Args:
        rank: (M, K, R); its rows may lie apart.
        weight: (K, D, R), of its dtype.
        backend: "auto", or a name from `hybridzoo doctor`.

    Returns:
        (M, K, D), contiguous.

    Raises:
        InputError: shapes or dtypes do not fit.
    """
    return _OP(_checked(rank, weight), backend)


def rank_product_gradients(grad: Tensor, rank: Tensor, weight: Tensor, *, backend: str = AUTO) -> tuple[Tensor, Tensor]:
    """Gradients (M, K, R) and (K, D, R) of `rank_product` from that of its result, without a graph."""
    if _OP.select(_checked(rank, weight), backend).name == "torch":
        return gradients_reference(grad, rank, weight)
    from hybridzoo.ops.rank_product.triton import gradients

    return gradients(grad, rank, weight)


def _checked(rank: Tensor, weight: Tensor) -> dict[str, Tensor]:
    fits = rank.ndim == 3 and weight.ndim == 3 and rank.shape[1:] == (weight.shape[0], weight.shape[2])
    if not fits or rank.dtype != weight.dtype:
        raise InputError(
            f"rank (M, K, R) and weight (K, D, R) of one dtype do not fit: {rank.dtype} {tuple(rank.shape)}, "
            f"{weight.dtype} {tuple(weight.shape)}"
        )
    return {"rank": rank, "weight": weight}


def _run_triton(rank: Tensor, weight: Tensor) -> Tensor:
    from hybridzoo.ops.rank_product.custom_op import eager, rank_product_op

    return rank_product_op(rank, weight) if torch.compiler.is_compiling() else eager(rank, weight)


def _supports_triton(call: Call) -> str | None:
    rank = call["rank"]
    if rank.dtype != torch.float32:
        return f"its dtype is float32, not {rank.dtype}"
    if rank.is_cuda and torch.backends.cuda.matmul.allow_tf32:
        return "TF32 is allowed, where one product on the tensor cores does"
    if rank.shape[2] > MAX_RANK:
        return f"it takes ranks up to {MAX_RANK}, not {rank.shape[2]}"
    return "the input is empty" if 0 in (rank.numel(), call["weight"].numel()) else None


def _examples(device: torch.device) -> list[Example]:
    def example(name: str, rows: int, groups: int, rank: int, channels: int) -> Example:
        g = torch.Generator().manual_seed(0)
        whole = torch.randn(rows, groups, rank + 3, generator=g).to(device)
        weight = torch.randn(groups, channels, rank, generator=g).to(device)
        return Example(name, {"rank": whole[..., :rank], "weight": weight}, ("rank", "weight"))

    return [
        example("M70-K2-R4-D40-fp32", 70, 2, 4, 40),
        example("M130-K3-R20-D150-fp32", 130, 3, 20, 150),
        example("M5-K1-R1-D3-fp32", 5, 1, 1, 3),
        example("M256-K8-R8-D128-fp32", 256, 8, 8, 128),
    ]


_OP = register_kernel_op(
    "rank_product", triton=_run_triton, supports=_supports_triton, reference=rank_product_reference, examples=_examples
)
