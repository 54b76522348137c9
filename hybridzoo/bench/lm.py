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
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hybridzoo.bench.lm_cache import counted
from hybridzoo.bench.lm_models import LmSettings, build, captured, decoding_step
from hybridzoo.bench.timing import measure
from hybridzoo.errors import ConfigError, unknown


def decode(name: str, settings: LmSettings) -> list[dict[str, Any]]:
    """Tokens per second for each batch size, eager and as a graph; a size that does not fit is the last one."""
    model, rows = build(name, settings), []
    device = torch.device(settings.device)
    for batch in settings.batch_sizes:
        try:
            with torch.inference_mode():
                eager, graphed, size = decoding_step(model, batch, settings)
                rows.append(
                    _decode_row(name, "eager", batch, settings, measure(eager, device, seconds=settings.seconds), size)
                )
                if device.type == "cuda" and name != "fla_deltanet_1_3b":
                    with captured(graphed, model) as step:
                        timing = measure(step, device, seconds=settings.seconds)
                    rows.append(_decode_row(name, "graph", batch, settings, timing, size))
            eager = graphed = None  # they hold the cache
        except torch.OutOfMemoryError:
            rows.append(
                {"what": "decode", "model": name, "batch": batch, "context": settings.context, "error": "out of memory"}
            )
            break
        finally:
            _free()
    return rows


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


def prefill(name: str, settings: LmSettings) -> list[dict[str, Any]]:
    """Tokens per second of reading a prompt of `context` tokens, the cache filled, logits of the last position."""
    model, device = build(name, settings), torch.device(settings.device)
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(0, vocabulary, (settings.prefill_batch_size, settings.context), device=device)
    with torch.inference_mode():
        timing = measure(lambda: model(ids, use_cache=True, logits_to_keep=1), device, seconds=settings.seconds)
    return [
        {
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
    ]


def train(name: str, settings: LmSettings) -> list[dict[str, Any]]:
    """Tokens per second of whole training steps: forward, backward, AdamW (fused on a GPU), bf16 weights."""
    rows, device = [], torch.device(settings.device)
    for batch, length in settings.train:
        row = {"what": "train", "model": name, "batch": batch, "context": length}
        try:
            model = build(name, settings).train()
            if settings.gradient_checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
            ids = torch.randint(0, model.get_input_embeddings().num_embeddings, (batch, length), device=device)

            def step(model: Any = model, optimizer: Any = optimizer, ids: torch.Tensor = ids) -> None:
                model(input_ids=ids, labels=ids).loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            timing = measure(step, device, warmup=2, seconds=settings.seconds)
            rows.append(
                {
                    **row,
                    "mode": "checkpointed" if settings.gradient_checkpointing else "eager",
                    "tokens_per_sec": ids.numel() / timing.median,
                    "ms": timing.median * 1e3,
                    "ms_low": timing.low * 1e3,
                    "ms_high": timing.high * 1e3,
                    "params_m": sum(p.numel() for p in model.parameters()) / 1e6,
                    "peak_memory_mb": _peak(settings),
                }
            )
            del step
        except torch.OutOfMemoryError:
            rows.append({**row, "error": "out of memory"})
        model = optimizer = ids = None
        _free()
    return rows


def cache_sizes(name: str, settings: LmSettings) -> list[dict[str, Any]]:
    """Bytes of one row's cache: by formula as the paper counts and in full, and of the cache itself, measured.

    The paper (Hymba, table 2) counts 8,000 tokens in 2 bytes each, 1 MB = 10^6 bytes; ours counts the context given.
    """
    model = build(name, settings)
    with torch.inference_mode():
        size = decoding_step(model, 1, settings)[2]
    row = {"what": "cache", "model": name, "batch": 1, "context": settings.context, "measured_mb": size / 1e6}
    for label, tokens in (("paper", 8000), ("full", settings.context)):
        row[f"{label}_mb"] = counted(model.config, tokens, paper=label == "paper") / 1e6
    return [row]


MEASURES: dict[str, Callable[[str, LmSettings], list[dict[str, Any]]]] = {
    "cache": cache_sizes,
    "decode": decode,
    "prefill": prefill,
    "train": train,
}


def benchmark(
    what: Sequence[str], models: Sequence[str], settings: LmSettings, log: Callable[[str], Any] = print
) -> list[dict[str, Any]]:
    """Measure every model in the order given; the first one is compared with the others at the end.

    Args:
        what: of WHAT.
        models: names of the zoo or of RIVALS.
        settings: how.
        log: called with each row as text.

    Raises:
        ConfigError: an unknown name.
    """
    rows: list[dict[str, Any]] = []
    for kind in what:
        if kind not in MEASURES:
            raise ConfigError(unknown("measurement", kind, MEASURES))
        for name in models:
            try:
                found = MEASURES[kind](name, settings)
            except torch.OutOfMemoryError:
                found = [{"what": kind, "model": name, "error": "out of memory"}]
            for row in found:
                log(describe(row))
            rows += found
            _free()
    return rows


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
