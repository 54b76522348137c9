"""Timing: device events on CUDA, the wall clock elsewhere; the median of many calls, and their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float
    low: float  # 10th percentile
    high: float  # 90th percentile
    repeats: int


def synchronize(device: torch.device) -> None:
    """Wait for the device to finish; nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    call: Callable[[], Any],
    device: torch.device,
    *,
    warmup: int = 3,
    seconds: float = 1.0,
    max_repeats: int = 100,
    min_repeats: int = 3,
) -> Timing:
    """Time `call` on `device`.

    Args:
        call: the work; on CUDA it may return before the device is done.
        device: where it runs.
        warmup: calls before the first that counts (compilation, caches, autotuning).
        seconds: about how long to measure.
        max_repeats: calls at most.
        min_repeats: calls at least. With 1, a call that lasts longer than `seconds` is made once, by the wall clock.

    Returns:
        Median and spread over the timed calls.
    """
    for _ in range(warmup):
        call()
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    once = max(time.perf_counter() - start, 1e-6)
    if min_repeats == 1 and once > seconds:
        return Timing(once, once, once, 1)
    repeats = max(min_repeats, min(max_repeats, int(seconds / once)))
    if device.type == "cuda":
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for begin, end in events:
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize(device)
        times = [begin.elapsed_time(end) / 1e3 for begin, end in events]
    else:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    times.sort()
    return Timing(statistics.median(times), times[repeats // 10], times[repeats - 1 - repeats // 10], repeats)
