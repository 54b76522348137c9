"""Language models at work: decoding, prefill, cache size and training steps, ours beside their rivals in one process.

Weights and tokens are random, in bf16. Rivals are built from their published configurations:

    llama_3_2_3b, llama_3_2_1b    transformers' LlamaForCausalLM
    llama_1_3b                    a Llama of DeltaNet-1.3B's size (vocabulary 32000, untied)
    fla_deltanet_1_3b             DeltaNetForCausalLM of flash-linear-attention (`pip install flash-linear-attention`)

Decoding is timed with a full cache: its slots hold random numbers, as if `context` tokens had been read, and each step
feeds one token a row. "eager" launches kernel by kernel, "graph" replays the step as one CUDA graph.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch

from hybridzoo.bench.lm_cache import counted
from hybridzoo.bench.lm_models import LmSettings, build, captured, decoding_step
from hybridzoo.bench.lm_report import render as render  # `hybridzoo bench report` looks for it here
from hybridzoo.bench.lm_scaling import scaling, train_step
from hybridzoo.bench.timing import measure
from hybridzoo.errors import ConfigError, unknown
from hybridzoo.ops.dispatch import use_backend

Rows = Iterator[dict[str, Any]]


def decode(name: str, settings: LmSettings) -> Rows:
    """Tokens per second for each batch size, eager and as a graph; larger ones than one that does not fit are left."""
    model = build(name, settings)
    device = torch.device(settings.device)
    too_large = float("inf")
    for batch in settings.batch_sizes:
        if batch >= too_large:
            continue
        rows = []
        try:
            with torch.inference_mode():
                eager, graphed, size = decoding_step(model, batch, settings)
                timing = measure(eager, device, seconds=settings.seconds)
                rows.append(_decode_row(name, "eager", batch, settings, timing, size))
                if device.type == "cuda" and name != "fla_deltanet_1_3b":
                    with captured(graphed, model) as step:
                        timing = measure(step, device, seconds=settings.seconds)
                    rows.append(_decode_row(name, "graph", batch, settings, timing, size))
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:  # the second: a graph could not be captured
            too_large = batch
            row = {"what": "decode", "model": name, "batch": batch, "context": settings.context}
            rows.append({**row, "mode": "graph" if rows else "eager", "error": _reason(error)})
        yield from rows
        eager = graphed = step = None  # they hold the cache
        _free()


def _decode_row(name: str, mode: str, batch: int, settings: LmSettings, timing: Any, size: int) -> dict[str, Any]:
    return {
        "what": "decode",
        "model": name,
        "mode": mode,
        "batch": batch,
        "context": settings.context,
        "tokens_per_sec": batch / timing.median,
        "ms": timing.median * 1e3,
        "ms_low": timing.low * 1e3,
        "ms_high": timing.high * 1e3,
        "cache_mb": size / 1e6,
        "peak_memory_mb": _peak(settings),
    }


def prefill(name: str, settings: LmSettings) -> Rows:
    """Tokens per second of reading a prompt of `context` tokens, the cache filled, logits of the last position."""
    model, device = build(name, settings), torch.device(settings.device)
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(0, vocabulary, (settings.prefill_batch_size, settings.context), device=device)
    with torch.inference_mode():
        timing = measure(lambda: model(ids, use_cache=True, logits_to_keep=1), device, seconds=settings.seconds)
    yield {
        "what": "prefill",
        "model": name,
        "mode": "eager",
        "batch": settings.prefill_batch_size,
        "context": settings.context,
        "tokens_per_sec": ids.numel() / timing.median,
        "ms": timing.median * 1e3,
        "ms_low": timing.low * 1e3,
        "ms_high": timing.high * 1e3,
        "peak_memory_mb": _peak(settings),
    }


def train(name: str, settings: LmSettings) -> Rows:
    """Tokens per second of whole training steps: forward, backward, AdamW (fused on a GPU), bf16 weights."""
    device = torch.device(settings.device)
    for batch, length in settings.train:
        row = {"what": "train", "model": name, "batch": batch, "context": length}
        try:
            model = build(name, settings).train()
            if settings.gradient_checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            ids = torch.randint(0, model.get_input_embeddings().num_embeddings, (batch, length), device=device)
            step = train_step(model, ids)
            timing = measure(step, device, warmup=2, seconds=settings.seconds)
            yield {
                **row,
                "mode": "checkpointed" if settings.gradient_checkpointing else "eager",
                "tokens_per_sec": ids.numel() / timing.median,
                "ms": timing.median * 1e3,
                "ms_low": timing.low * 1e3,
                "ms_high": timing.high * 1e3,
                "params_m": sum(p.numel() for p in model.parameters()) / 1e6,
                "peak_memory_mb": _peak(settings),
            }
        except torch.OutOfMemoryError as error:
            yield {**row, "error": _reason(error)}
        model = ids = step = None
        _free()


def cache_sizes(name: str, settings: LmSettings) -> Rows:
    """Bytes of one row's cache: by formula as the paper counts and in full, and of the cache itself, measured.

    The paper (Hymba, table 2) counts 8,000 tokens in 2 bytes each, 1 MB = 10^6 bytes; ours counts the context given.
    """
    model = build(name, settings)
    with torch.inference_mode():
        size = decoding_step(model, 1, settings)[2]
    row = {"what": "cache", "model": name, "batch": 1, "context": settings.context, "measured_mb": size / 1e6}
    for label, tokens in (("paper", 8000), ("full", settings.context)):
        row[f"{label}_mb"] = counted(model.config, tokens, paper=label == "paper") / 1e6
    yield row


MEASURES: dict[str, Callable[[str, LmSettings], Rows]] = {
    "cache": cache_sizes,
    "decode": decode,
    "prefill": prefill,
    "train": train,
    "scaling": scaling,
}


def benchmark(
    what: Sequence[str],
    models: Sequence[str],
    settings: LmSettings,
    log: Callable[[str], Any] = print,
    save: Callable[[list[dict[str, Any]]], Any] | None = None,
    max_seconds: float | None = None,
) -> list[dict[str, Any]]:
    """Measure every model in the order given; the first one is compared with the others at the end.

    Args:
        what: of MEASURES.
        models: names of the zoo or of RIVALS.
        settings: how.
        log: called with each row as text.
        save: called with all rows so far after each, so that an interruption loses little.
        max_seconds: after so long no further row is begun.

    Raises:
        ConfigError: an unknown name, or a rival whose package is not installed.
    """
    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    for kind in what:
        if kind not in MEASURES:
            raise ConfigError(unknown("measurement", kind, MEASURES))
    for kind in what:
        for name in models:
            found = _surviving(MEASURES[kind](name, settings), {"what": kind, "model": name})
            while max_seconds is None or time.monotonic() - started < max_seconds:
                with use_backend(**dict(text.split("=") for text in settings.backends)):
                    row = next(found, None)
                if row is None:
                    break
                if settings.backends:
                    row = {**row, "backends": ",".join(settings.backends)}
                rows.append(row)
                log(describe(row))
                if save is not None:
                    save(rows)
            found.close()
            _free()
    return rows


def _surviving(rows: Rows, about: dict[str, Any]) -> Generator[dict[str, Any]]:
    """The rows; a model that does not fit at all becomes a row that says so."""
    try:
        yield from rows
    except torch.OutOfMemoryError as error:
        yield {**about, "error": _reason(error)}


def _reason(error: Exception) -> str:
    return "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(error).strip().splitlines()[0]


def describe(row: dict[str, Any]) -> str:
    """A row in one line."""
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the first model of each measurement gains over each other one: the best rows of both, and equal settings.

    For decoding, "best" takes the fastest batch size and mode of each; the others compare equal batch and mode.
    """
    made: list[dict[str, Any]] = []
    fine = [r for r in rows if "error" not in r]
    for what in dict.fromkeys(r["what"] for r in fine):
        group = [r for r in fine if r["what"] == what]
        ours, names = group[0]["model"], list(dict.fromkeys(r["model"] for r in group))
        for name in names[1:]:
            if what == "cache":
                for key in ("paper_mb", "full_mb", "measured_mb"):
                    pair = [next(r[key] for r in group if r["model"] == n) for n in (ours, name)]
                    if all(pair):
                        made.append({"what": f"cache {key}", "ours": ours, "other": name, "ratio": pair[1] / pair[0]})
                continue
            best = [max((r for r in group if r["model"] == n), key=lambda r: r["tokens_per_sec"]) for n in (ours, name)]
            made.append(_ratio(f"{what}, best of each", *best))
            for theirs in (r for r in group if r["model"] == name):
                same = [
                    r
                    for r in group
                    if r["model"] == ours and all(r[k] == theirs[k] for k in ("batch", "context", "mode"))
                ]
                if same:
                    made.append(_ratio(f"{what}, {theirs['mode']}, batch {theirs['batch']}", same[0], theirs))
    return made


def _ratio(what: str, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    return {
        "what": what,
        "context": ours["context"],
        "ours": f"{ours['model']} ({ours['mode']}, batch {ours['batch']})",
        "other": f"{theirs['model']} ({theirs['mode']}, batch {theirs['batch']})",
        "ratio": ours["tokens_per_sec"] / theirs["tokens_per_sec"],
    }


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(settings: LmSettings) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**20 if settings.device.startswith("cuda") else None
