"""The definition of `bias_gelu` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bias_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    """See `bias_gelu`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.gelu(x.to(wide) + bias.to(wide)).to(x.dtype)
