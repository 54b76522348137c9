"""Rows of a benchmark: every model under every setting, a failure as a row of its own, and what each row states."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from hybridzoo.bench.timing import Timing
from hybridzoo.errors import ConfigError


def measure_all(
    names: Iterable[str],
    settings: Sequence[Any],
    benchmark: Callable[[str, Any], dict[str, Any]],
    summary: Callable[[dict[str, Any]], str],
    log: Callable[[str], None],
    *,
    stated: Callable[[Any], dict[str, Any]] = asdict,
    left_out: Callable[[str, Any], bool] = lambda name, setting: False,
) -> list[dict[str, Any]]:
    """Rows of `benchmark(name, setting)`, by setting; each is logged as it comes.

    Args:
        names, settings: what to measure.
        benchmark: makes a row.
        summary: of a row, in one line.
        log: takes the line.
        stated: facts of a setting that the row of a failure holds, beside `model` and `error`.
        left_out: whether a model has no row under a setting.

    Raises:
        ConfigError: wrong settings are no failures of a model.
    """
    rows: list[dict[str, Any]] = []
    for setting in settings:
        for name in names:
            if left_out(name, setting):
                continue
            try:
                row = benchmark(name, setting)
            except ConfigError:
                raise
            except Exception as error:
                text = next((line for line in str(error).splitlines() if line.strip()), "")
                row = {"model": name, **stated(setting), "error": f"{type(error).__name__}: {text}"}
            rows.append(row)
            log(summary(row))
            torch._dynamo.reset()
            gc.collect()
            if setting.device.startswith("cuda"):
                torch.cuda.empty_cache()
    return rows


def start_memory(device: torch.device) -> None:
    """Count the peak of `peak_memory` from here on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float | None:
    """MiB that tensors took at most since `start_memory`; None on the CPU, which does not count them."""
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if device.type == "cuda" else None


def image_row(name: str, settings: Any, facts: dict[str, Any], timing: Timing) -> dict[str, Any]:
    """A row of a call on `settings.batch_size` images: settings, facts of the model, speed, spread, peak memory."""
    return {
        "model": name,
        **{key: value for key, value in asdict(settings).items() if key not in ("seconds", "device")},
        **facts,
        "images_per_sec": round(settings.batch_size / timing.median, 2),
        "step_time_ms": round(timing.median * 1e3, 3),
        "step_time_low_ms": round(timing.low * 1e3, 3),
        "step_time_high_ms": round(timing.high * 1e3, 3),
        "repeats": timing.repeats,
        "peak_memory_mb": peak_memory(torch.device(settings.device)),
    }


def millions(model: nn.Module) -> float:
    """Parameters, in 1e6."""
    return round(sum(p.numel() for p in model.parameters()) / 1e6, 2)


def train_step(
    model: nn.Module, loss_of: Callable[[], Tensor], *, clip_norm: float, capturable: bool = False
) -> Callable[[], Tensor]:
    """A call that takes one step: `loss_of()`, backward, clipping, AdamW on what is trained.

    Args:
        model: put into train mode.
        loss_of: one forward, under the precision that is measured.
        clip_norm: of the gradient.
        capturable: for a CUDA graph.
    """
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=trained[0].is_cuda, capturable=capturable)

    def step() -> Tensor:
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step
