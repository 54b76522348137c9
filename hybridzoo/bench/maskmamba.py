"""MaskMamba at work: one Bi-Mamba-v2 layer beside one Transformer layer, and whole generations, in one process.

The paper times a single layer with its MLP at 2048 pixels (54.44 % less time than the Transformer's) without saying
which attention or GPU; here the Transformer layer runs with flash attention ("flash"), on NVIDIA GPUs also with cuDNN's
("cudnn"), and with the plain product ("naive"), at every size, and generations of the whole model stand beside it, with
the attention that torch chooses. Weights and codes are random.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hybridzoo.bench.report import table
from hybridzoo.bench.timing import measure

LAYERS = ("bi_mamba_v2", "flash", "cudnn", "naive")
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
        compile: a torch.compile mode, or None.
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


def benchmark(settings: MaskMambaSettings) -> Iterator[dict[str, Any]]:
    """Rows as they are measured: layers first, then generations.

    Raises:
        UnknownNameError, ConfigError: no such model.
    """
    yield from layers(settings)
    yield from generations(settings)


def layers(settings: MaskMambaSettings) -> Iterator[dict[str, Any]]:
    """Forward of one layer, per size and kind."""
    from hybridzoo.models.maskmamba.blocks import MaskMambaBlock

    config, device = _config(settings.model), torch.device(settings.device)
    for size in settings.sizes:
        tokens = (size // config.downsample) ** 2 + config.num_condition_tokens
        x = torch.randn(settings.batch_size, tokens, config.hidden_size, device=device, dtype=settings.dtype)
        for kind in LAYERS if device.type == "cuda" else [k for k in LAYERS if k != "cudnn"]:
            row = {"what": "layer", "kind": kind, "size": size, "tokens": tokens, "batch": settings.batch_size}
            block = MaskMambaBlock("M" if kind == "bi_mamba_v2" else "S", config).to(device, settings.dtype).eval()
            call: Any = torch.compile(block, mode=settings.compile) if settings.compile else block
            try:
                with torch.inference_mode(), _attention(kind, device):
                    row |= _timed(lambda call=call, x=x: call(x), device, settings.seconds)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                row["error"] = str(error).splitlines()[0]
            yield row
            del block, call
            _free()


def generations(settings: MaskMambaSettings) -> Iterator[dict[str, Any]]:
    """Codes of whole images with guidance, the model and its pure Transformer."""
    from hybridzoo.loading import build_model

    device = torch.device(settings.device)
    for scheme in ("serial_v2", "pure_transformer") if settings.generation_sizes else ():
        model = build_model(settings.model, scheme=scheme, device=settings.device, dtype=settings.dtype).eval()
        labels = torch.zeros(settings.generation_batch_size, dtype=torch.long)
        for size in settings.generation_sizes:
            row = {"what": "generation", "kind": scheme, "size": size, "steps": settings.steps}
            row |= {"batch": settings.generation_batch_size, "params": sum(p.numel() for p in model.parameters())}

            def call(
                steps: int = settings.steps, model: Any = model, size: int = size, labels: torch.Tensor = labels
            ) -> Any:
                options = {"steps": steps, "cfg_scale": 3.0, "cfg_schedule": "constant", "generator": 0}
                return model.generate(labels, height=size, width=size, **options)

            try:
                call(min(WARMUP_STEPS, settings.steps))
                row |= _timed(call, device, settings.seconds, warmup=0, min_repeats=1)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                row["error"] = str(error).splitlines()[0]
            yield row
            _free()
        del model, call
        _free()


def _attention(kind: str, device: torch.device) -> Any:
    """Which product the Transformer layer runs with; flash exists on CUDA only, elsewhere torch chooses."""
    if kind == "naive":
        return sdpa_kernel(SDPBackend.MATH)
    chosen = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}.get(kind)
    return nullcontext() if chosen is None or device.type != "cuda" else sdpa_kernel(chosen)


def _timed(
    call: Callable[[], Any], device: torch.device, seconds: float, warmup: int = 5, min_repeats: int = 3
) -> dict[str, Any]:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    timing = measure(call, device, warmup=warmup, seconds=seconds, max_repeats=200, min_repeats=min_repeats)
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
    head = f"{row['what']:>10}  {row['kind']:<16}  {row['size']:>5} px  batch {row['batch']}"
    if "error" in row:
        return f"{head}  {row['error']}"
    memory = "" if row["peak_memory_mb"] is None else f"  {row['peak_memory_mb'] / 1024:.2f} GiB"
    return f"{head}  {row['ms']:10.3f} ms{memory}"


def ratios(rows: Sequence[dict[str, Any]], what: str, ours: str, other: str) -> dict[int, float]:
    """size -> time of `other` / time of `ours`, where both ran."""
    times = {(r["kind"], r["size"]): r["ms"] for r in rows if r["what"] == what and "error" not in r}
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
    """Two tables: a layer, and whole generations."""
    rows, lines = document["rows"], []
    for what, kinds, ours in (
        ("layer", LAYERS, "bi_mamba_v2"),
        ("generation", ("serial_v2", "pure_transformer"), "serial_v2"),
    ):
        part = [r for r in rows if r["what"] == what]
        if not part:
            continue
        kinds = tuple(k for k in kinds if any(r["kind"] == k for r in part))
        first = part[0]
        title = "One layer with its MLP, forward" if what == "layer" else f"{first['steps']} steps with guidance"
        lines += [f"**{title}**, batch {first['batch']}, milliseconds (peak GiB)", ""]
        others = [k for k in kinds if k != ours]
        body = []
        for size in sorted({r["size"] for r in part}):
            cells = [_cell(next((r for r in part if r["kind"] == k and r["size"] == size), None)) for k in kinds]
            gains = [ratios(part, what, ours, k).get(size) for k in others]
            body.append([f"{size} px", *cells, *("-" if g is None else f"{g:.2f}" for g in gains)])
        lines += [*table(["", *kinds, *(f"{k} / {ours}" for k in others)], body), ""]
    start = crossover(ratios(rows, "layer", "bi_mamba_v2", "flash"))
    if start is not None:
        lines.append(f"Of the measured sizes, the Mamba layer is not slower than flash attention from {start} px on.")
    return lines


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or "error" in row:
        return "-" if row is None else "does not run"
    memory = "" if row["peak_memory_mb"] is None else f" ({row['peak_memory_mb'] / 1024:.1f})"
    return f"{row['ms']:.2f}{memory}"
