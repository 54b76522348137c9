"""The definition of `add_layer_norm` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def add_layer_norm_reference(
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    y_bias: Tensor | None = None,
    scale: Tensor | None = None,
    row_scale: Tensor | None = None,
    eps: float = 1e-6,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """See `add_layer_norm`."""
    if y is not None:
        branch = y if y_bias is None else y + y_bias
        branch = branch if scale is None else branch * scale
        if row_scale is not None:
            branch = branch * row_scale.view(-1, *[1] * (y.ndim - 1))
        x = (x + branch).to(torch.promote_types(x.dtype, y.dtype))
    wide = torch.promote_types(x.dtype, torch.float32)
    normed = F.layer_norm(x.to(wide), (x.shape[-1],), weight.to(wide), bias.to(wide), eps)
    return x, normed.to(out_dtype or x.dtype)
