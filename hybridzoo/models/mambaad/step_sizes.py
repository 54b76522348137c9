"""Step sizes of every direction from their ranks: one product per direction, written in the order that the scans read.

For 8 directions the step sizes are the largest tensor of the network by far, and R / D of them, their ranks, make them
anew. `remade` lets autograd keep the ranks in their place: the original's decoder would keep 2 GB more at batch 16.

Legend: M = B L positions, K directions, R rank, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops.concat_last import concat_last
from hybridzoo.ops.rank_product import rank_product, rank_product_gradients


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rank: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rank, weight)
        return rank_product(rank, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return rank_product_gradients(grad, *ctx.saved_tensors)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, first: int, rest: int) -> tuple[Tensor, ...]:
        ctx.shape, ctx.widths = x.shape, (first, rest, rest)
        return x.split(ctx.widths, dim=-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        rows = (g.flatten(0, -3) for g in grads)
        return concat_last(*rows).view(ctx.shape), None, None


def split(x: Tensor, first: int, rest: int) -> tuple[Tensor, ...]:
    """(B, L, K, first + 2 rest) -> views of its last axis: ranks, B, C."""
    if torch.compiler.is_compiling() or x.is_meta:
        return x.split([first, rest, rest], dim=-1)
    return _Split.apply(x, first, rest)


def project(rank: Tensor, weight: Tensor) -> Tensor:
    """(M, K, R) and (K, D, R) -> (M, K, D), contiguous in eager mode."""
    if torch.compiler.is_compiling() or rank.is_meta:
        return torch.bmm(rank.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
    return _Project.apply(rank, weight)


@contextmanager
def remade(dt: Tensor, rank: Tensor, weight: Tensor) -> Iterator[None]:
    """Inside, autograd keeps the ranks where it would keep `dt` (M, K, D), the projection's result.

    Without effect under torch.compile, and where others decide what is kept (gradient checkpointing).
    """
    top = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)
    if torch.compiler.is_compiling() or dt.is_meta or top is None or top(True) is not None:
        yield
        return
    place, size = dt.data_ptr(), dt.numel()
    rank, weight = rank.detach(), weight.detach()

    def pack(x: Tensor) -> Any:
        own = x.numel() == size and x.dtype == rank.dtype and x.is_contiguous() and x.data_ptr() == place
        return x.shape if own else x

    def unpack(kept: Any) -> Tensor:
        return kept if isinstance(kept, Tensor) else rank_product(rank, weight).view(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
