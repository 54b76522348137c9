"""The definition of `scaled_residual` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_residual_reference(
    x: Tensor,
    y: Tensor,
    *,
    y_bias: Tensor | None = None,
    scale: Tensor | None = None,
    row_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """See `scaled_residual`."""
    branch = y if y_bias is None else y + y_bias
    branch = branch if scale is None else branch * scale
    if row_scale is not None:
        branch = branch * row_scale.view(-1, *[1] * (y.ndim - 1))
    return (x + branch).to(out_dtype or torch.promote_types(x.dtype, y.dtype))
