"""Model speed end to end: our models and their rivals, built, warmed up and timed the same way in one process.

Inference is one forward pass under `torch.inference_mode`. A training step is forward, cross entropy, backward and an
AdamW update. Weights and inputs are random. Under "amp" the weights stay fp32 and autocast computes in bf16.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridzoo.bench.precision import autocast
from hybridzoo.bench.rows import measure_all, millions, peak_memory, start_memory
from hybridzoo.bench.timing import Timing, measure
from hybridzoo.errors import ConfigError, unknown

MODES = ("infer", "train")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "amp": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure.

    Args:
        mode: "infer" or "train".
        dtype: "fp32", "bf16", "fp16" (weights and inputs in it), or "amp" (fp32 weights, bf16 autocast).
        batch_size: rows a call.
        image_size: side of the images; the model's own if None.
        compile: through `torch.compile` with this mode ("default", "max-autotune-no-cudagraphs", ...); None is eager.
        graph: replay the call, in training the whole step, as one CUDA graph: no work on the host, the device alone.
        channels_last: images and convolution weights in the channels_last memory format.
        seconds: about how long each measurement lasts.
        device: where.
    """

    mode: str = "infer"
    dtype: str = "amp"
    batch_size: int = 256
    image_size: int | None = None
    compile: str | None = None
    graph: bool = False
    channels_last: bool = True
    seconds: float = 1.0
    device: str = "cuda"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(unknown("mode", self.mode, MODES))
        if self.dtype not in DTYPES:
            raise ConfigError(unknown("dtype", self.dtype, DTYPES))
        if self.graph and not self.device.startswith("cuda"):
            raise ConfigError(f"graph=True needs a CUDA device, not {self.device!r}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size}: give at least 1")
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"image_size={self.image_size}: give at least 1")


def build(name: str, image_size: int | None = None) -> nn.Module:
    """A model with random weights on the CPU.

    Args:
        name: a model of the zoo (`iformer_small`), of timm (`timm:swin_tiny_patch4_window7_224`), or a function that
            returns a module, in a Python file that you trust (`python:PATH.py:FUNCTION`).
        image_size: passed to a zoo model's config, whose example inputs then have that size.

    Raises:
        UnknownNameError, ConfigError: what was given and what exists.
    """
    kind, _, rest = name.partition(":")
    if kind == "timm":
        import timm

        if not timm.is_model(rest):
            raise ConfigError(unknown("timm model", rest, timm.list_models()))
        return timm.create_model(rest)
    if kind == "python":
        path, _, function = rest.rpartition(":")
        if not Path(path).is_file():
            raise ConfigError(f"{name!r}: no file {path!r}; give python:PATH.py:FUNCTION")
        spec = importlib.util.spec_from_file_location(f"hybridzoo_peer_{Path(path).stem}", path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{name!r}: {path!r} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise ConfigError(unknown(f"function of {path}", function, [n for n in vars(module) if n[0] != "_"]))
        return getattr(module, function)()
    from hybridzoo.loading import build_model

    return build_model(name)


def _inputs(model: Any, settings: Settings, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Example inputs of a zoo model; random images for a plain module. Under the key "" they are passed by position."""
    config: Any = getattr(model, "config", None)
    size, channels = settings.image_size, getattr(model, "in_chans", 3)
    if hasattr(model, "example_inputs") and not hasattr(config, "image_size"):
        return {k: v.to(device) for k, v in model.example_inputs(settings.batch_size).items()}
    if hasattr(config, "image_size"):
        size, channels = size or config.image_size, config.num_channels
    else:
        own = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
        size = size or own.get("input_size", (3, 224, 224))[-1]
    images = torch.randn(settings.batch_size, channels, size, size).to(device, dtype)
    if settings.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return {"pixel_values" if hasattr(config, "image_size") else "": images}


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


_gmacs: dict[tuple[str, int | None], float] = {}  # counted once per model and size


def count_gmacs(call: Callable[[], Any]) -> float:
    """Multiply-accumulates of one sample, in units of 1e9, by torch's counter; `call` runs a batch of one."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        call()  # the counter does not see the CPU's fused attention
    return counter.get_total_flops() / 2e9


def benchmark(name: str, settings: Settings) -> dict[str, Any]:
    """Measure one model; a row with timm's column names (`infer_*` or `train_*`), throughput spread and peak memory."""
    device = torch.device(settings.device)
    dtype = DTYPES[settings.dtype]
    torch.manual_seed(0)
    model = build(name, settings.image_size)
    row = _describe(name, model, settings)
    model = model.to(device, dtype)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    inputs = _inputs(model, settings, device, dtype)
    run = torch.compile(model, mode=settings.compile, dynamic=False) if settings.compile else model

    def forward() -> Tensor:
        with autocast(settings.dtype, device):
            output = run(inputs[""]) if "" in inputs else run(**inputs)
        return _logits(output)

    start_memory(device)
    if settings.mode == "infer":
        model.eval()
        with torch.inference_mode():
            timing = measure(captured(forward, settings), device, seconds=settings.seconds)
    else:
        step = _train_step(model, forward, settings, device)
        timing = measure(captured(step, settings), device, seconds=settings.seconds)
    return row | _numbers(timing, inputs, settings, device)


def captured(call: Callable[[], Any], settings: Any) -> Callable[[], Any]:
    """`call`, or the replay of a CUDA graph of it where `settings.graph`."""
    if not settings.graph:
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _train_step(model: nn.Module, forward: Callable, settings: Settings, device: torch.device) -> Callable[[], Any]:
    model.train()
    fused = True if device.type == "cuda" else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused, capturable=settings.graph)
    state: dict[str, Tensor] = {}

    def step() -> Tensor:
        logits = forward().float()
        if "labels" not in state:
            state["labels"] = torch.randint(0, logits.shape[-1], logits.shape[:-1], device=device)
        loss = F.cross_entropy(logits.flatten(0, -2), state["labels"].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def _describe(name: str, model: nn.Module, settings: Settings) -> dict[str, Any]:
    one = Settings(mode="infer", dtype="fp32", batch_size=1, image_size=settings.image_size, device="cpu")
    known = (name, settings.image_size)
    if known not in _gmacs:
        model.eval()
        inputs = _inputs(model, one, torch.device("cpu"), torch.float32)
        _gmacs[known] = count_gmacs(lambda: model(inputs[""]) if "" in inputs else model(**inputs))
    return {
        "model": name,
        "param_count": millions(model),
        f"{settings.mode}_gmacs": round(_gmacs[known], 3),
    }


def _numbers(timing: Timing, inputs: dict, settings: Settings, device: torch.device) -> dict[str, Any]:
    first = next(iter(inputs.values()))
    p = settings.mode
    per_second = settings.batch_size / timing.median
    return {
        f"{p}_samples_per_sec": round(per_second, 2),
        f"{p}_samples_per_sec_low": round(settings.batch_size / timing.high, 2),
        f"{p}_samples_per_sec_high": round(settings.batch_size / timing.low, 2),
        f"{p}_step_time": round(timing.median * 1e3, 3),  # milliseconds
        f"{p}_batch_size": settings.batch_size,
        f"{p}_img_size": first.shape[-1] if first.ndim == 4 else None,
        "repeats": timing.repeats,
        "dtype": settings.dtype,
        "compile": "graph" if settings.graph else settings.compile,
        "channels_last": settings.channels_last,
        "peak_memory_mb": peak_memory(device),
    }


def benchmark_all(names: list[str], settings: list[Settings], log: Callable[[str], None] = print) -> list[dict]:
    """Every model under every setting, one after the other; a failure becomes a row with `error`, not the end."""

    def stated(setting: Settings) -> dict[str, Any]:
        return {"mode": setting.mode}

    def row(name: str, setting: Settings) -> dict[str, Any]:
        return stated(setting) | benchmark(name, setting)

    return measure_all(names, settings, row, summary, log, stated=stated)


def summary(row: dict[str, Any]) -> str:
    """One line for the terminal."""
    if "error" in row:
        return f"{row['mode']:5s} {row['model']:44s} {row['error']}"
    p = row["mode"]
    memory = f"  {row['peak_memory_mb']:8.0f} MB" if row["peak_memory_mb"] is not None else ""
    how = f"{row['dtype']} {row['compile'] or 'eager'}"
    return (
        f"{p:5s} {row['model']:44s} {how:20s} B{row[f'{p}_batch_size']:<4d} {row[f'{p}_samples_per_sec']:10.1f}/s "
        f"{row[f'{p}_step_time']:9.2f} ms{memory}"
    )
