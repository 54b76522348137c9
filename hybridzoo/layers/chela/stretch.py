"""Short kernels interpolated to growing lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hybridzoo.layers import fused
from hybridzoo.ops._autograd import eager_form
from hybridzoo.ops._launch import cdiv, launch
from hybridzoo.ops.dispatch import machine_obstacle


def laid_out(kernels: Tensor, doublings: int, taps: int) -> Tensor:
    """Kernels stretched linearly, one behind the other, the first `taps` of the whole: (rows, D, <= taps).

    Kernel i > 0 becomes 2^(i - 1 + doublings) times as long, the first one as long as the second. On a GPU one kernel
    writes the result and one reads its gradient, where torch's operations pass over them many times.

    Args:
        kernels: (S, rows, D, k).
        doublings: see above.
        taps: how many to keep.
    """
    count, width = kernels.shape[0], kernels.shape[3]
    taps = min(taps, width * 2 ** (doublings + max(0, count - 1)))
    if torch.compiler.is_compiling() or not (fused.ENABLED and kernels.is_cuda) or machine_obstacle("triton:jit"):
        known = False
    else:
        known = kernels.dtype == torch.float32 and width > 1 and taps < 2**23  # whole numbers that fp32 holds
    if known:
        return launched(kernels, doublings, taps)
    whole = torch.cat(stretched(kernels, [max(0, i - 1) + doublings for i in range(count)], True), 2)
    return whole if whole.shape[2] == taps else whole[:, :, :taps]


def _forward(kernels: Tensor, doublings: int, taps: int) -> Tensor:
    from hybridzoo.layers.chela import _kernels

    count, rows, channels, width = kernels.shape
    out = torch.empty(rows, channels, taps, dtype=torch.float32, device=kernels.device)
    block = 1024
    launch(_kernels.stretch_kernel, (cdiv(taps, block), rows * channels),
        kernels.contiguous(), out, rows * channels, count, width, width << doublings, doublings, taps, BLOCK=block,
    )  # fmt: skip
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    kernels, ctx.doublings, _ = inputs
    ctx.shape = kernels.shape


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    from hybridzoo.layers.chela import _kernels

    count, rows, channels, width = ctx.shape
    out = torch.empty(ctx.shape, dtype=torch.float32, device=grad.device)
    parts, block = 16, 128
    launch(_kernels.stretch_backward_kernel, (cdiv(width, parts), rows * channels, count),
        grad.contiguous(), out, rows * channels, width, width << ctx.doublings, ctx.doublings, grad.shape[2],
        PARTS=parts, BLOCK=block,
    )  # fmt: skip
    return out, None, None


launched = eager_form(_forward, _setup, _backward)


def stretched(kernels: Tensor, exponents: Sequence[int], linear: bool) -> list[Tensor]:
    """Kernel i (rows, D, k) interpolated to 2^exponents[i] times its length, as torch's `interpolate` does.

    That function works through the channels one by one on a GPU. Here tap t of a stretched kernel is a weighted sum of
    the three taps around it, with weights that depend on t modulo the factor only.

    Args:
        kernels: (S, rows, D, k).
        exponents: S of them.
        linear: False takes the nearest tap.
    """
    if not linear or kernels.shape[-1] == 1:  # a single tap has no neighbours
        return [k.unsqueeze(3).expand(-1, -1, -1, 2**e).flatten(2) for k, e in zip(kernels, exponents)]
    before = torch.cat([kernels[..., :1], kernels[..., :-1]], -1).unsqueeze(4)
    after = torch.cat([kernels[..., 1:], kernels[..., -1:]], -1).unsqueeze(4)
    here = kernels.unsqueeze(4)  # (S, rows, D, k, 1)
    # where the new taps lie between the middle of the old tap before (-1) and of the one after (1)
    factors = [2**e for e in exponents]
    kind = {"device": kernels.device, "dtype": kernels.dtype}
    at = torch.cat([torch.linspace(0.5 / f - 0.5, 0.5 - 0.5 / f, f, **kind) for f in factors])
    parts = zip(*(weight.split(factors) for weight in (1 - at.abs(), (-at).clamp_min(0), at.clamp_min(0))))
    return [
        torch.addcmul(torch.addcmul(here[i] * middle, before[i], left), after[i], right).flatten(2)
        for i, (middle, left, right) in enumerate(parts)
    ]
