"""The definition of `avg_pool2x2` in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def avg_pool2x2_reference(x: Tensor) -> Tensor:
    """See `avg_pool2x2`."""
    # An odd last row or column is cut off here: torch 2.11 would fix its absence into an exported program.
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return F.avg_pool2d(x[:, :height, :width].permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
