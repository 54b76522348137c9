"""The definition of `rank_product` in plain torch, and its gradients as few reads of the large tensor as torch can.

Legend: M rows, K groups, R rank, D channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PARTS = 16  # of the rows


def rank_product_reference(rank: Tensor, weight: Tensor) -> Tensor:
    """See `rank_product`."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or rank.is_meta:
        return torch.bmm(rank.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1).contiguous()
    out = rank.new_empty(rank.shape[0], *weight.shape[:2])
    torch.bmm(rank.transpose(0, 1), weight.transpose(1, 2), out=out.transpose(0, 1))
    return out


def gradients_reference(grad: Tensor, rank: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """See `rank_product_gradients`."""
    d_rank = rank.new_empty(rank.shape)
    torch.bmm(grad.transpose(0, 1), weight, out=d_rank.transpose(0, 1))
    return d_rank, weight_gradient(grad, rank)


def by_pairs(grad: Tensor, rank: Tensor, parts: int) -> Tensor:
    """`weight_gradient`, the rows in parts, each group multiplied with each."""
    rows, groups, width = grad.shape
    left = grad.reshape(parts, -1, groups * width).transpose(1, 2)
    pairs = torch.bmm(left, rank.reshape(parts, rows // parts, -1)).sum(0)  # (K D, K R)
    return pairs.view(groups, width, groups, -1).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def weight_gradient(grad: Tensor, rank: Tensor) -> Tensor:
    """(M, K, D) and (M, K, R) -> (K, D, R).

    A product per group sums over M rows for a few thousand numbers: 8 blocks for a GPU that runs over a hundred. Parts
    of the rows give it enough; one stride then reaches all of them only with the groups side by side, and the products
    between two groups, which nobody needs, cost little beside reading `grad`.
    """
    parts = math.gcd(grad.shape[0], PARTS)
    if grad.is_cuda and parts > 1:
        return by_pairs(grad, rank, parts)
    return torch.bmm(grad.permute(1, 2, 0), rank.transpose(0, 1))
