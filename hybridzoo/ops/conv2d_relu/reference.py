"""The definition of `conv2d_relu` in plain torch."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor


def conv2d_relu_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    stride: int = 1,
    relu: bool = True,
    tf32: bool = False,
) -> Tensor:
    """See `conv2d_relu`."""
    with _cudnn(tf32) if x.is_cuda and not torch.compiler.is_compiling() else contextlib.nullcontext():
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride=stride, padding=weight.shape[3] // 2).permute(
            0, 2, 3, 1
        )
    if residual is not None:
        y = y + residual
    return torch.relu(y) if relu else y


def _cudnn(tf32: bool) -> contextlib.AbstractContextManager:
    here = torch.backends.cudnn
    if here.allow_tf32 == tf32:
        return contextlib.nullcontext()
    return here.flags(here.enabled, here.benchmark, here.benchmark_limit, here.deterministic, tf32)
