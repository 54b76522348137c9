"""The definition of `depthwise_conv2d` in plain torch: any device, any dtype, differentiable, exportable."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_conv2d_reference(
    parts: Sequence[Tensor], weight: Tensor, epilogue: str = "none", bias: Tensor | None = None
) -> Tensor:
    """See `depthwise_conv2d`; computes in at least fp32 and rounds once, at the end."""
    height, width = parts[0].shape[1:3]
    dtype = parts[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    images = [part.to(wide).permute(0, 3, 1, 2) for part in parts]  # (B, C_i, h, w)
    images = [
        image if image.shape[2:] == (height, width) else F.interpolate(image, size=(height, width), mode="nearest")
        for image in images
    ]
    x = torch.cat(images, dim=1)  # (B, C, H, W)
    with _no_autocast(x.device.type):
        added = None if bias is None else bias.to(wide)
        y = F.conv2d(x, weight.to(wide), added, padding=weight.shape[3] // 2, groups=x.shape[1])
    if epilogue == "gelu":
        y = F.gelu(y)
    elif epilogue == "silu":
        y = F.silu(y)
    elif epilogue == "residual":
        y = x + y
    return y.permute(0, 2, 3, 1).to(dtype)


def _no_autocast(device: str) -> contextlib.AbstractContextManager:
    """Autocast would round the fp32 inputs of the convolution; exported graphs need no trace of this."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
