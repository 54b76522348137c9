"""MaskGIT's parallel decoding: how many tokens stay masked, which ones, and in what order.

Chang et al. 2022, https://arxiv.org/abs/2202.04200; google-research/maskgit `libml/mask_schedule.py` and
`libml/parallel_decode.py`. Halton order: Besnier et al. 2025 (valeoai/Halton-MaskGIT). Pure functions of tensors.

Legend: B batch, N tokens, T steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hybridzoo.errors import ConfigError, InputError, unknown

SCHEDULES = ("cosine", "uniform", "linear", "pow<exponent>", "log", "exp", "arccos")
GUIDANCE_SCHEDULES = ("constant", "linear", "power-cosine")
ORDERS = ("confidence", "halton", "random")
SMALLEST_RATIO = 1e-6
Draws = torch.Generator | Sequence[torch.Generator] | None  # one for all rows, or one for each
_POWER = re.compile(r"pow(\d+(\.\d+)?)")


def check_schedule(schedule: str) -> None:
    """Raise ConfigError for an unknown mask schedule."""
    if schedule not in SCHEDULES[:3] + SCHEDULES[4:] and not _POWER.fullmatch(schedule):
        raise ConfigError(unknown("mask schedule", schedule, SCHEDULES, "(pow2, pow2.5, … for a power)"))


def mask_ratio(ratio: Tensor | float, schedule: str = "cosine", total: int = 256) -> Tensor:
    """Share of tokens that are masked when the share `ratio` of the way is done, in fp32.

    Args:
        ratio: 0 to 1, any shape.
        schedule: "cosine" cos(pi r / 2), "uniform" (or "linear") 1 - r, "pow2.5" 1 - r ** 2.5 (any exponent), "log",
            "exp", "arccos" 2 arccos(r) / pi.
        total: number of tokens, which "log" and "exp" refer to.

    Returns:
        fp32, between 1e-6 and 1.

    Raises:
        ConfigError: an unknown schedule.
    """
    check_schedule(schedule)
    r = torch.as_tensor(ratio, dtype=torch.float32)
    if schedule in ("uniform", "linear"):
        share = 1 - r
    elif schedule == "cosine":
        share = torch.cos(r * (math.pi * 0.5))
    elif schedule == "arccos":
        share = torch.arccos(r) * (2 / math.pi)
    elif schedule == "log":
        share = -torch.log2(r.clamp_min(torch.finfo(r.dtype).tiny)) / math.log2(max(total, 2))
    elif schedule == "exp":
        share = 1 - torch.exp2(-math.log2(max(total, 2)) * (1 - r))
    else:
        share = 1 - r ** float(schedule.removeprefix("pow"))
    return share.clamp(SMALLEST_RATIO, 1.0)


def mask_length(step: int, steps: int, initial: Tensor, unknown_now: Tensor, schedule: str = "cosine") -> Tensor:
    """How many tokens are masked again after step `step` (from 0) of `steps`.

    Args:
        initial: (B,) unknown tokens before the first step.
        unknown_now: (B,) unknown tokens before this step.

    Returns:
        (B,) int64: floor(initial * mask_ratio), at most unknown_now - 1 and at least 1.
    """
    ratio = torch.tensor((step + 1) / steps, dtype=torch.float32)
    share: Tensor | float
    if schedule in ("log", "exp"):
        share = torch.stack([mask_ratio(ratio, schedule, n) for n in initial.tolist()]).to(initial.device)
    else:
        share = float(mask_ratio(ratio, schedule))  # a number travels with the kernel: no copy, no waiting
    wanted = torch.floor(initial.to(torch.float32) * share).to(torch.int64)
    return torch.minimum(unknown_now.to(torch.int64) - 1, wanted).clamp_min(1)


def mask_by_confidence(confidence: Tensor, length: Tensor) -> Tensor:
    """Which tokens are masked again: those strictly below the `length`-th smallest confidence (counted from 0).

    Args:
        confidence: (B, N); +inf for known tokens.
        length: (B,) or (B, 1) integers.

    Returns:
        (B, N) bool.
    """
    length = length.reshape(-1, 1).to(torch.int64).clamp_max(confidence.shape[1] - 1)
    return confidence < confidence.sort(dim=1).values.gather(1, length)


def mask_by_topk(probs: Tensor, length: Tensor, temperature: float = 0.0, generator: Draws = None) -> Tensor:
    """`mask_by_confidence` of log(probs) + temperature * Gumbel noise.

    Args:
        probs: (B, N) probability of each sampled token; +inf for known ones.
        length: (B,) or (B, 1).
        temperature: of the noise.
        generator: of the noise.
    """
    confidence = probs.log()
    if temperature:
        confidence = confidence + temperature * gumbel(confidence.shape, confidence.device, generator)
    return mask_by_confidence(confidence, length)


def gumbel(shape: Sequence[int], device: torch.device, generator: Draws) -> Tensor:
    """Standard Gumbel noise, fp32, drawn on the generator's device; with a generator per row, each row from its own."""
    return -exponential(shape, device, generator).clamp_min_(torch.finfo(torch.float32).tiny).log_()


def exponential(shape: Sequence[int], device: torch.device, generator: Draws) -> Tensor:
    """Standard exponential variables, of which minus the logarithm is Gumbel noise; drawn as `gumbel` says."""
    if isinstance(generator, Sequence):
        return torch.stack([exponential(shape[1:], device, g) for g in generator])
    source = generator.device if generator is not None else device
    return torch.empty(shape, device=source).exponential_(generator=generator).to(device)


def guidance(step: int, steps: int, scale: float, schedule: str = "linear", power: float = 1.0) -> float:
    """Guidance scale s of one step, in u + s (c - u).

    Args:
        scale: s at the end ("linear", "power-cosine") or everywhere ("constant"). In the convention
            (1 + w) c - w u it is s = 1 + w.
        schedule: "constant"; "linear": from 1 to `scale` (w from 0); "power-cosine":
            1 + (scale - 1) (1 - cos(pi p)) / 2 with p = progress ** power.

    Raises:
        ConfigError: an unknown schedule.
    """
    if schedule not in GUIDANCE_SCHEDULES:
        raise ConfigError(unknown("guidance schedule", schedule, GUIDANCE_SCHEDULES))
    if schedule == "constant":
        return scale
    progress = step / (steps - 1) if steps > 1 else 1.0
    if schedule == "power-cosine":
        progress = (1 - math.cos(math.pi * progress**power)) / 2
    return 1 + (scale - 1) * progress


def halton_order(height: int, width: int) -> Tensor:
    """Positions of a grid in the order in which the 2-D Halton sequence (bases 2 and 3) first meets them.

    Returns:
        (height * width,) int64 row-major positions.
    """
    cells, count = height * width, 4 * height * width + 64
    while True:
        at = np.arange(1, count + 1)
        rows = np.floor(_radical_inverse(at, 2) * height).astype(np.int64)
        columns = np.floor(_radical_inverse(at, 3) * width).astype(np.int64)
        _, first = np.unique(rows * width + columns, return_index=True)
        if len(first) == cells:
            return torch.from_numpy((rows * width + columns)[np.sort(first)])
        count *= 2


def _radical_inverse(n: np.ndarray, base: int) -> np.ndarray:
    """Digits of n in `base`, mirrored at the point: one exact division per number."""
    mirrored, power, rest = np.zeros_like(n), 1, n.copy()
    while rest.any():
        mirrored = mirrored * base + rest % base
        power, rest = power * base, rest // base
    return mirrored / power


def revealed(step: int, steps: int, total: int, schedule: str = "arccos") -> int:
    """Tokens of a fixed order that are known after step `step` (from 0): one more a step at least, all at the end."""
    if step + 1 >= steps:
        return total
    share = 1 - float(mask_ratio((step + 1) / steps, schedule, total))
    return min(total, max(step + 1, int(share * total)))


def check_steps(steps: int, scale: float, temperature: float, order: str) -> None:
    """Raise for sampling options that make no sense."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps={steps!r}: give a whole number of decoding steps, 1 or more (20 is usual)")
    if not math.isfinite(scale) or scale < 0:
        raise InputError(f"cfg_scale={scale}: give a number of 0 or more; 1 is no guidance")
    if temperature < 0:
        raise InputError(f"temperature={temperature} must not be negative")
    if order not in ORDERS:
        raise InputError(unknown("decoding order", order, ORDERS))
