"""Speed of MambaAD: inference to the smoothed anomaly map, and whole training steps, beside another implementation.

A rival is a module that takes images (B, 3, H, W) and returns the teacher's and the student's maps, as the original's
`MAMBAAD` does; loss and map are computed from them as for ours (on the device: the original smooths with scipy on the
host, which is left out to its favour). Weights and images are random. A training step is forward, loss, backward,
clipping and an AdamW update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridzoo.bench.precision import WEIGHTS, autocast, tf32_of
from hybridzoo.bench.rows import image_row, measure_all, millions, start_memory, train_step
from hybridzoo.bench.timing import measure
from hybridzoo.errors import ConfigError, unknown

MODES = ("infer", "train")
DTYPES = tuple(name for name in WEIGHTS if name != "bf16")
LOSS_WEIGHT, SIGMA, CLIP_NORM = 5.0, 4.0, 5.0


@dataclass(frozen=True, kw_only=True)
class MambaADSettings:
    """How to measure.

    Args:
        mode: "infer" or "train".
        dtype: a name of `bench.precision` with fp32 weights.
        batch_size: images a call.
        side: of the images.
        backend: of the zoo's ops: "auto", "torch" (the definition), or another registered one.
        compile: through `torch.compile` with this mode; "graph" replays a CUDA graph of the call; None is eager.
        seconds: about how long each measurement lasts.
        device: where.
    """

    mode: str = "infer"
    dtype: str = "fp32"
    batch_size: int = 16
    side: int = 256
    backend: str = "auto"
    compile: str | None = None
    seconds: float = 2.0
    device: str = "cuda"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(unknown("mode", self.mode, MODES))
        if self.dtype not in DTYPES:
            raise ConfigError(unknown("dtype", self.dtype, DTYPES))
        if self.graph and not self.device.startswith("cuda"):
            raise ConfigError(f"compile=graph replays a CUDA graph; device={self.device} has none")
        for name in ("batch_size", "side"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: give at least 1")

    @property
    def graph(self) -> bool:
        """Whether a CUDA graph is replayed."""
        return self.compile == "graph"


def scan_flops(config: Any, side: int) -> int:
    """Operations of the scans of one image, which no counter sees: 9 per step, channel and state, in each direction."""
    if config.mixer != "scan":
        return 0
    total = 0
    for s, (dim, depth) in enumerate(zip(config.dims, config.depths)):
        length = (-(-side // 32) << s) ** 2
        total += 9 * length * depth * config.num_directions * config.expand * dim * config.d_state
    return total


class _Features(torch.nn.Module):
    """A rival, returning loss and map as ours does."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        from hybridzoo.models.mambaad.maps import anomaly_map, feature_loss, smooth

        teacher, student = self.inner(pixel_values)[:2]
        loss = feature_loss(teacher, student, LOSS_WEIGHT)
        with torch.no_grad():
            maps = smooth(anomaly_map(teacher, student, tuple(pixel_values.shape[2:])), SIGMA)  # type: ignore[arg-type]
        return {"loss": loss, "anomaly_map": maps}


def build(name: str) -> Any:
    """A zoo model of the task anomaly-detection, or a rival `python:PATH.py:FUNCTION`, with random weights."""
    from hybridzoo.bench.models import build as build_any

    model: Any = build_any(name)
    if name.startswith("python:"):
        return _Features(model)
    if getattr(model, "task", None) != "anomaly-detection":
        raise ConfigError(f"{name} is no anomaly detector; give e.g. mambaad_resnet34, or python:PATH.py:FUNCTION")
    return model


def benchmark(name: str, settings: MambaADSettings) -> dict[str, Any]:
    """Measure one model: images per second, milliseconds of a call and their spread, peak memory, operations."""
    from hybridzoo.bench.models import captured
    from hybridzoo.ops.dispatch import use_backend

    device = torch.device(settings.device)
    torch.manual_seed(0)
    model = build(name).to(device)
    shape = (settings.batch_size, 3, settings.side, settings.side)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    compiled = settings.compile is not None and not settings.graph
    run = torch.compile(model, mode=settings.compile, dynamic=False) if compiled else model
    start_memory(device)
    mixed = autocast(settings.dtype, device)
    with tf32_of(settings.dtype), use_backend(settings.backend if settings.backend != "auto" else None):
        if settings.mode == "infer":
            model.eval()

            def forward() -> Tensor:
                with mixed:
                    return run(pixels)["anomaly_map"]

            with torch.inference_mode():
                timing = measure(captured(forward, settings), device, seconds=settings.seconds)
        else:
            step = _train_step(model, run, pixels, mixed, settings.graph)
            timing = measure(captured(step, settings), device, seconds=settings.seconds)
    facts = {"param_count": millions(model), **_operations(name, model, settings.side)}
    return image_row(name, settings, facts, timing)


@functools.cache  # counting takes seconds, and every row asks
def _flops(name: str) -> int:
    from hybridzoo.info import model_info
    from hybridzoo.ops.dispatch import use_backend

    with use_backend("torch"):  # counted without a device, where no kernel runs that was asked for
        return model_info(name).flops


def _operations(name: str, model: Any, side: int) -> dict[str, Any]:
    """GFLOPs of one image of a zoo model (two a multiply-add), and those of its scans."""
    if name.startswith("python:") or side != model.config.image_size:
        return {}
    return {
        "gflops": round(_flops(name) / 1e9, 3),
        "scan_gflops": round(scan_flops(model.config, side) / 1e9, 3),
    }


def _train_step(model: Any, run: Any, pixels: Tensor, mixed: Any, graph: bool) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        with mixed:
            return run(pixels)["loss"]

    return train_step(model, loss, clip_norm=CLIP_NORM, capturable=graph)


def benchmark_all(
    names: Sequence[str], settings: Sequence[MambaADSettings], log: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Every model under every setting; a failure becomes a row with `error`, not the end."""

    def left_out(name: str, setting: MambaADSettings) -> bool:  # the backend is one of the zoo's ops
        return name.startswith("python:") and setting.backend not in ("auto", "torch")

    return measure_all(names, settings, benchmark, summary, log, left_out=left_out)


def summary(row: dict[str, Any]) -> str:
    """One line for the terminal."""
    how = f"{row['mode']} {row['dtype']} {row['backend']} {row['compile'] or 'eager'} B{row['batch_size']}"
    if "error" in row:
        return f"{row['model']:40s} {how:34s} {row['error']}"
    memory = "" if row["peak_memory_mb"] is None else f"  {row['peak_memory_mb']:8.0f} MB"
    return f"{row['model']:40s} {how:34s} {row['images_per_sec']:9.2f} img/s {row['step_time_ms']:9.2f} ms{memory}"


def render(document: dict[str, Any]) -> list[str]:
    """Lines of the performance page: one table per mode, precision, size and batch; ratios are to the first row."""
    from hybridzoo.bench.report import table

    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in document["rows"]:
        if "error" not in row:
            groups.setdefault((row["mode"], row["dtype"], row["batch_size"], row["side"]), []).append(row)
    lines: list[str] = []
    for (mode, dtype, batch, side), rows in groups.items():
        what, ours = "Inference" if mode == "infer" else "Training step", rows[0]
        lines += [f"**{what}**, {dtype}, batch {batch}, {side} x {side}", ""]
        body = []
        for row in sorted(rows, key=lambda r: r["step_time_ms"]):
            memory, shown = row["peak_memory_mb"], row["model"].rpartition(":")[2]
            body.append(
                [
                    f"**{shown}**" if row["model"] == ours["model"] else shown,
                    f"{row['backend']}, {row['compile'] or 'eager'}",
                    f"{row['param_count']:.1f}",
                    f"{row['gflops'] + row['scan_gflops']:.1f}" if "gflops" in row else "-",
                    f"{row['images_per_sec']:.1f}",
                    f"{row['step_time_ms']:.1f}",
                    "-" if memory is None else f"{memory / 1024:.2f}",
                    f"{row['step_time_ms'] / ours['step_time_ms']:.2f}",
                ]
            )
        header = ["model", "ops", "M parameters", "GFLOPs", "images/s", "ms", "GiB", f"time / {rows[0]['model']}"]
        lines += [*table(header, body), ""]
    lines += [f"- not measured: {summary(row)}" for row in document["rows"] if "error" in row]
    return lines
