"""The definition of `layer_norm_gate` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm_gate_reference(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See `layer_norm_gate`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    normed = F.layer_norm(x.to(wide), x.shape[-1:], weight.to(wide), bias.to(wide), eps)
    return (normed * F.silu(gate.to(wide))).to(x.dtype)
