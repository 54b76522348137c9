"""The definition of `max_pool3x3` in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def max_pool3x3_reference(x: Tensor) -> Tensor:
    """See `max_pool3x3`."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), kernel_size=3, stride=1, padding=1).permute(0, 2, 3, 1)
