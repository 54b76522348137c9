"""RMSNorm in the two roundings that published models use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridzoo.layers.fused import fused, normalised


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, with statistics in fp32.

    Args:
        width: of the last dimension.
        eps: added to the mean square.
        round_first: round x / rms to x's dtype and then multiply by the weight (Llama, Hymba) instead of multiplying in
            fp32 (fla's DeltaNet). The two differ below fp32 only.
    """

    def __init__(self, width: int, eps: float = 1e-6, *, round_first: bool = False) -> None:
        super().__init__()
        self.eps, self.round_first = eps, round_first
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width), x's dtype."""
        shape = (x.shape[-1],)
        if self.weight.dtype == x.dtype and not (self.round_first and x.dtype != torch.float32):
            return F.rms_norm(x, shape, self.weight, self.eps)
        if self.round_first:
            return fused(normalised, x, self.weight, self.eps)
        return (F.rms_norm(x.float(), shape, None, self.eps) * self.weight).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


class HeadRMSNorm(nn.Module):
    """RMSNorm over each head's width: one weight for all heads, or one per head.

    Args:
        width: of a head.
        heads: a weight for each of so many heads, (1, heads, 1, width); None for one weight (width,) for all.
        eps: added to the mean square.
    """

    def __init__(self, width: int, heads: int | None = None, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width) if heads is None else torch.ones(1, heads, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, T, width) -> (B, H, T, width)"""
        return (F.rms_norm(x, (x.shape[-1],), None, self.eps) * self.weight).to(x.dtype)
