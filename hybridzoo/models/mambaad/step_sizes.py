"""Step sizes of every direction from their ranks: one product per direction, written in the order that the scans read.

For 8 directions the step sizes are the largest tensor of the network by far, and R / D of them, their ranks, make them
anew. `remade` lets autograd keep the ranks in their place: the original's decoder would keep 2 GB more at batch 16.

Legend: M = B L positions, K directions, R rank, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

PARTS = 16  # of the positions


def _product(rank: Tensor, weight: Tensor) -> Tensor:
    out = rank.new_empty(rank.shape[0], *weight.shape[:2])
    torch.bmm(rank.transpose(0, 1), weight.transpose(1, 2), out=out.transpose(0, 1))
    return out


def _by_pairs(grad: Tensor, rank: Tensor, parts: int) -> Tensor:
    """`_weight_gradient`, the positions in parts, each direction multiplied with each."""
    positions, directions, width = grad.shape
    left = grad.reshape(parts, -1, directions * width).transpose(1, 2)
    pairs = torch.bmm(left, rank.reshape(parts, positions // parts, -1)).sum(0)  # (K D, K R)
    return pairs.view(directions, width, directions, -1).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _weight_gradient(grad: Tensor, rank: Tensor) -> Tensor:
    """(M, K, D) and (M, K, R) -> (K, D, R).

    A product per direction sums over M positions for a few thousand numbers: 8 blocks for a GPU that runs over a
    hundred. Parts of the positions give it enough; one stride then reaches all of them only with the directions side
    by side, and the products between two directions, which nobody needs, cost little beside reading `grad`.
    """
    parts = math.gcd(grad.shape[0], PARTS)
    if grad.is_cuda and parts > 1:
        return _by_pairs(grad, rank, parts)
    return torch.bmm(grad.permute(1, 2, 0), rank.transpose(0, 1))


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rank: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rank, weight)
        return _product(rank, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        rank, weight = ctx.saved_tensors
        per_direction = grad.transpose(0, 1)  # (K, M, D)
        d_rank = rank.new_empty(rank.shape)
        torch.bmm(per_direction, weight, out=d_rank.transpose(0, 1))
        return d_rank, _weight_gradient(grad, rank)


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
        return kept if isinstance(kept, Tensor) else _product(rank, weight).view(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
