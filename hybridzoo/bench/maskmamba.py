"""MaskMamba at work: one Bi-Mamba-v2 layer beside one Transformer layer, and whole generations, in one process.

The paper times a single layer with its MLP at 2048 pixels (54.44 % less time than the Transformer's) without saying
which attention or GPU; here the Transformer layer runs with flash attention ("flash"), on NVIDIA GPUs also with cuDNN's
("cudnn"), and with the plain product ("naive"), at every size, and generations of the whole model stand beside it, with
the attention that torch chooses. Weights and codes are random.

Each row says how its calls ran: "eager", or "graph", a CUDA graph of the layer, in generations of the model's forward.
Small images are bound by Python's launches when eager, for both kinds of layers; a graph shows the device alone.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hybridzoo.bench.report import table
from hybridzoo.bench.timing import measure, synchronize
from hybridzoo.errors import ConfigError, unknown

LAYERS = ("bi_mamba_v2", "flash", "cudnn", "naive")
MODELS = ("serial_v2", "pure_transformer")
HOW = ("eager", "graph")
WARMUP_STEPS = 2  # decoding steps before a generation that counts, which compile its kernels


@dataclass(frozen=True)
class MaskMambaSettings:
    """What to measure.

    Attributes:
        model: registered name whose layers and size are timed.
        sizes: image sides in pixels.
        batch_size: images of a layer's call.
        generation_sizes: image sides of whole generations; empty leaves them out.
        generation_batch_size: images generated at once (twice as many rows with guidance).
        steps: decoding steps.
        dtype: of weights and activations.
        seconds: about how long each measurement lasts.
        device: where.
        compile: a torch.compile mode of the single layers, or None.
        how: "eager", "graph" or both, one after the other.
        generation_repeats: whole generations timed, at least.
    """

    model: str = "maskmamba_xl"
    sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    batch_size: int = 2
    generation_sizes: tuple[int, ...] = (256, 1024, 2048)
    generation_batch_size: int = 1
    steps: int = 20
    dtype: torch.dtype = torch.bfloat16
    seconds: float = 1.0
    device: str = "cuda"
    compile: str | None = None
    how: tuple[str, ...] = ("eager",)
    generation_repeats: int = 3

    def __post_init__(self) -> None:
        for how in self.how:
            if how not in HOW:
                raise ConfigError(unknown("way to run", how, HOW))
            if how == "graph" and not self.device.startswith("cuda"):
                raise ConfigError(f"a CUDA graph needs a CUDA device, not {self.device!r}")


def benchmark(settings: MaskMambaSettings) -> Iterator[dict[str, Any]]:
    """Rows as they are measured: layers first, then generations.

    Raises:
        UnknownNameError, ConfigError: no such model.
    """
    yield from layers(settings)
    yield from generations(settings)


def layers(settings: MaskMambaSettings) -> Iterator[dict[str, Any]]:
    """Forward of one layer as in a stack, where it adds the branch of the layer before it, per size, kind and way."""
    from hybridzoo.bench.models import captured
    from hybridzoo.models.maskmamba.blocks import MaskMambaBlock

    config, device = _config(settings.model), torch.device(settings.device)
    for size in settings.sizes:
        tokens = (size // config.downsample) ** 2 + config.num_condition_tokens
        x, branch = torch.randn(
            2, settings.batch_size, tokens, config.hidden_size, device=device, dtype=settings.dtype
        ).unbind()
        for kind in LAYERS if device.type == "cuda" else [k for k in LAYERS if k != "cudnn"]:
            block = MaskMambaBlock("M" if kind == "bi_mamba_v2" else "S", config).to(device, settings.dtype).eval()
            run: Any = torch.compile(block, mode=settings.compile) if settings.compile else block
            for how in settings.how if kind != "naive" else settings.how[:1]:  # of no use beside the others
                row = {"what": "layer", "kind": kind, "how": how, "size": size, "tokens": tokens}
                row["batch"] = settings.batch_size

                def call(run: Any = run, x: torch.Tensor = x, branch: torch.Tensor = branch) -> Any:
                    return run(x, branch)

                try:
                    with torch.inference_mode(), _attention(kind, device):
                        timed = captured(call, SimpleNamespace(graph=how == "graph"))
                        row |= _timed(timed, device, settings.seconds)
                    del timed
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    row["error"] = str(error).splitlines()[0]
                yield row
                _free()
            del block, run, call


def generations(settings: MaskMambaSettings) -> Iterator[dict[str, Any]]:
    """Codes of whole images with guidance, the model and its pure Transformer, in turn at every size."""
    from hybridzoo.loading import build_model

    device = torch.device(settings.device)
    models = {}
    for scheme in MODELS if settings.generation_sizes else ():
        model = build_model(settings.model, scheme=scheme, device=settings.device, dtype=settings.dtype)
        models[scheme] = model.eval()
    for size in settings.generation_sizes:
        for how in settings.how:
            for scheme, model in models.items():
                row = {"what": "generation", "kind": scheme, "how": how, "size": size, "steps": settings.steps}
                row |= {"batch": settings.generation_batch_size, "params": sum(p.numel() for p in model.parameters())}
                call = generation(model, settings, size, how)
                try:
                    call(min(WARMUP_STEPS, settings.steps))
                    row |= _timed_generations(call, device, settings)
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    row["error"] = str(error).splitlines()[0]
                yield row
                del call
                _free()


def generation(model: Any, settings: MaskMambaSettings, size: int, how: str = "eager") -> Callable[..., Any]:
    """A call that makes codes of images of `size`; its argument is the number of steps."""
    from hybridzoo.inference.image_generation import graphed_features

    labels = torch.zeros(settings.generation_batch_size, dtype=torch.long)
    options: dict[str, Any] = {"cfg_scale": 3.0, "cfg_schedule": "constant", "generator": 0}
    if how == "graph":
        options["features"] = graphed_features(model)

    def call(steps: int = settings.steps) -> Any:
        return model.generate(labels, height=size, width=size, steps=steps, **options)

    return call


def profile(settings: MaskMambaSettings, size: int, rows: int = 25) -> str:
    """Table of the kernels that take longest in one decoding step of the model at `size`, after a warm-up."""
    from torch.profiler import ProfilerActivity

    from hybridzoo.loading import build_model

    device = torch.device(settings.device)
    model = build_model(settings.model, scheme=MODELS[0], device=settings.device, dtype=settings.dtype).eval()
    call = generation(model, settings, size)
    call(WARMUP_STEPS)
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as found:
        call(1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return found.key_averages().table(sort_by=key, row_limit=rows, max_name_column_width=70)


def _attention(kind: str, device: torch.device) -> Any:
    """Which product the Transformer layer runs with; flash exists on CUDA only, elsewhere torch chooses."""
    if kind == "naive":
        return sdpa_kernel(SDPBackend.MATH)
    chosen = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}.get(kind)
    return nullcontext() if chosen is None or device.type != "cuda" else sdpa_kernel(chosen)


def _timed_generations(call: Callable[[], Any], device: torch.device, settings: MaskMambaSettings) -> dict[str, Any]:
    """By the wall clock, every call counted (they take seconds, and a few steps have been made before)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times: list[float] = []
    synchronize(device)
    while len(times) < settings.generation_repeats or (sum(times) < settings.seconds and len(times) < 100):
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return {
        "ms": statistics.median(times) * 1e3,
        "ms_low": min(times) * 1e3,
        "ms_high": max(times) * 1e3,
        "repeats": len(times),
        "peak_memory_mb": peak,
    }


def _timed(call: Callable[[], Any], device: torch.device, seconds: float, warmup: int = 5) -> dict[str, Any]:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    timing = measure(call, device, warmup=warmup, seconds=seconds, max_repeats=200)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return {
        "ms": timing.median * 1e3,
        "ms_low": timing.low * 1e3,
        "ms_high": timing.high * 1e3,
        "repeats": timing.repeats,
        "peak_memory_mb": peak,
    }


def _config(name: str) -> Any:
    from hybridzoo import registry
    from hybridzoo.loading import make_config

    model, _ = registry.get_model(name)
    return make_config(model.family, model.config)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe(row: dict[str, Any]) -> str:
    """One line."""
    head = f"{row['what']:>10}  {row['kind']:<16}  {row['how']:<5}  {row['size']:>5} px  batch {row['batch']}"
    if "error" in row:
        return f"{head}  {row['error']}"
    memory = "" if row["peak_memory_mb"] is None else f"  {row['peak_memory_mb'] / 1024:.2f} GiB"
    return f"{head}  {row['ms']:10.3f} ms{memory}"


def ratios(rows: Sequence[dict[str, Any]], what: str, ours: str, other: str, how: str = "eager") -> dict[int, float]:
    """size -> time of `other` / time of `ours`, where both ran in that way."""
    rows = [r for r in rows if r["what"] == what and r.get("how", "eager") == how and "error" not in r]
    times = {(r["kind"], r["size"]): r["ms"] for r in rows}
    sizes = sorted({size for _, size in times})
    return {s: times[other, s] / times[ours, s] for s in sizes if (other, s) in times and (ours, s) in times}


def crossover(gains: dict[int, float]) -> int | None:
    """The smallest measured size from which on ours is never slower."""
    found = None
    for size in sorted(gains, reverse=True):
        if gains[size] < 1:
            break
        found = size
    return found


def render(document: dict[str, Any]) -> list[str]:
    """Tables of a layer and of whole generations, eager and as graphs."""
    rows, lines = document["rows"], []
    for what, kinds, ours in (("layer", LAYERS, "bi_mamba_v2"), ("generation", MODELS, "serial_v2")):
        for how in HOW:
            part = [r for r in rows if r["what"] == what and r.get("how", "eager") == how]
            if part:
                lines += _table(part, what, [k for k in kinds if any(r["kind"] == k for r in part)], ours, how)
    for how in HOW:
        start = crossover(ratios(rows, "layer", "bi_mamba_v2", "flash", how))
        if start is not None:
            said = "" if how == "eager" else " as CUDA graphs"
            lines.append(
                f"Of the measured sizes, the Mamba layer{said} is not slower than flash attention from {start} px on."
            )
    return lines


def _table(part: list[dict[str, Any]], what: str, kinds: list[str], ours: str, how: str) -> list[str]:
    first = part[0]
    title = "One layer with its MLP, forward" if what == "layer" else f"{first['steps']} steps with guidance"
    repeats = sorted({r["repeats"] for r in part if "error" not in r})
    several = "" if what == "layer" or not repeats else f", median of {repeats[0]} or more"
    title = f"**{title}{', as a CUDA graph' if how == 'graph' else ''}**"
    others = [k for k in kinds if k != ours]
    body = []
    for size in sorted({r["size"] for r in part}):
        cells = [_cell(next((r for r in part if r["kind"] == k and r["size"] == size), None)) for k in kinds]
        gains = [ratios(part, what, ours, k, how).get(size) for k in others]
        body.append([f"{size} px", *cells, *("-" if g is None else f"{g:.2f}" for g in gains)])
    head = f"{title}, batch {first['batch']}, milliseconds (peak GiB){several}"
    return [head, "", *table(["", *kinds, *(f"{k} / {ours}" for k in others)], body), ""]


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or "error" in row:
        return "-" if row is None else "does not run"
    memory = "" if row["peak_memory_mb"] is None else f" ({row['peak_memory_mb'] / 1024:.1f})"
    return f"{row['ms']:.2f}{memory}"
