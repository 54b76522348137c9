"""Chains of small operations as single kernels.

A decoded token costs few flops and many kernel launches, and a long row moves more bytes through elementwise operations
than through products. On a GPU these chains run as Triton kernels (`decode_kernels.py`), those without a backward where
no gradients are kept; elsewhere they run as they are written (also with HYBRIDZOO_FUSED=0 and in torch.compile, which
fuses them itself).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.layers.rotary import rotate
from hybridzoo.ops.dispatch import machine_obstacle

ENABLED = os.environ.get("HYBRIDZOO_FUSED", "1") != "0"
_kernels: dict[Callable[..., Any], tuple[str, bool]] = {}


def stands_for(kernel: str, fn: Callable[..., Any], *, gradient: bool = False) -> None:
    """Name the launch in `decode_kernels` that computes what `fn` computes, and whether it has a gradient."""
    _kernels[fn] = kernel, gradient


def fused(fn: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """`fn(x, *args, **kwargs)`, as one kernel where there is one for the call.

    Args:
        fn: a function of tensors, known to `stands_for`.
        x: its first argument.
    """
    if torch.compiler.is_compiling() or not (ENABLED and x.is_cuda) or machine_obstacle("triton:jit"):
        return fn(x, *args, **kwargs)
    kernel, gradient = _kernels[fn]
    if torch.is_grad_enabled() and not gradient:
        return fn(x, *args, **kwargs)
    from hybridzoo.layers import decode_kernels

    out = getattr(decode_kernels, kernel)(x, *args, **kwargs)
    return fn(x, *args, **kwargs) if out is None else out


def mean_of_norms(a: Tensor, weight_a: Tensor, b: Tensor, weight_b: Tensor, eps: float) -> Tensor:
    """(norm(a) + norm(b)) / 2, rounded as `RMSNorm(round_first=True)` does."""
    shape = (a.shape[-1],)
    return ((F.rms_norm(a, shape, None, eps) * weight_a) + (F.rms_norm(b, shape, None, eps) * weight_b)) / 2


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up"""
    return F.silu(gate) * up


def normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) rounded, times the weight."""
    return (F.rms_norm(x, (x.shape[-1],), None, eps) * weight).to(x.dtype)


def three_normalised(
    a: Tensor, b: Tensor, c: Tensor, weights: tuple[Tensor, Tensor, Tensor], eps: float, room: int = 0
) -> Any:
    """`normalised` of three tensors; the first gets `room` further columns of zeros."""
    first = normalised(a, weights[0], eps)
    return F.pad(first, (0, room)) if room else first, normalised(b, weights[1], eps), normalised(c, weights[2], eps)


def added_and_normalised(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + y, and that `normalised`."""
    total = x + y
    return total, normalised(total, weight, eps)


def rotated_pair(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q and k turned by the same tables (see `rotary.rotate`)."""
    return rotate(q, cos, sin), rotate(k, cos, sin)


for _fn in (mean_of_norms, normalised, three_normalised, added_and_normalised, rotated_pair, rotate):
    stands_for(_fn.__name__, _fn)
stands_for("gated", gated, gradient=True)
