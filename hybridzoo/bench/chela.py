"""One CHELA layer beside one Transformer layer and one layer of fla's linear attention, by length of the sequence.

All layers have the same width, the same gated MLP and the same norms around their mixers; they differ in the mixer.
Weights and inputs are random. "forward" runs in eval mode without gradients, where a CHELA layer keeps the taps of its
long kernel and their transform from call to call, as it does for users; "train" is forward and backward.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hybridzoo.bench.report import table
from hybridzoo.bench.timing import measure
from hybridzoo.errors import BackendError
from hybridzoo.layers.chela.long_conv import MultiScaleConv
from hybridzoo.layers.decoder import DecoderLayer
from hybridzoo.layers.decoder_spec import DecoderSpec, layer_spec
from hybridzoo.layers.mixer import KV, Mixer, MixerContext, MixerOutput, State
from hybridzoo.models.chela.configuration import ChelaConfig
from hybridzoo.models.chela.encoder import ChelaLayer
from hybridzoo.ops.dispatch import use_backend

KINDS = ("chela", "transformer", "fla")
MODES = ("forward", "train")


@dataclass(frozen=True)
class ChelaSettings:
    """What to measure.

    Attributes:
        lengths: positions of a row.
        kinds: of `KINDS`; "fla" is causal only and needs fla-core and a GPU.
        modes: of `MODES`.
        width: of the layers; heads have 64 channels.
        batch_size: rows; None: as many as make `tokens` positions.
        tokens: positions of a call, where batch_size is None.
        causal: look back only; else to both sides.
        dtype: of weights and activations.
        seconds: about how long each measurement lasts.
        device: where.
    """

    lengths: tuple[int, ...] = (1024, 4096, 16384, 65536)
    kinds: tuple[str, ...] = KINDS
    modes: tuple[str, ...] = MODES
    width: int = 512
    batch_size: int | None = 1
    tokens: int = 65536
    causal: bool = True
    dtype: torch.dtype = torch.bfloat16
    seconds: float = 0.5
    device: str = "cuda"

    @property
    def heads(self) -> int:
        """Of the Transformer and of fla's layer."""
        return max(1, self.width // 64)


class FlaMixer(Mixer):
    """Linear attention as fla computes it: elu + 1 of q and k, heads, an RMSNorm of each head's values.

    Args:
        width: of the layer.
        heads: that share it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.o_proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.norm = nn.RMSNorm(width // heads)

    def forward(self, x: Tensor, ctx: MixerContext, state: State | None = None, kv: KV | None = None) -> MixerOutput:
        """(B, T, D) -> (B, T, D)"""
        from fla.ops.linear_attn import chunk_linear_attn  # pyright: ignore[reportMissingImports]

        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).unbind(2)  # (B, T, H, D / H) each
        o = chunk_linear_attn(F.elu(q) + 1, F.elu(k) + 1, v.contiguous(), normalize=False)[0]
        return MixerOutput(self.o_proj(self.norm(o).flatten(2)))


class Causal(nn.Module):
    """A decoder layer as a plain map (B, T, D) -> (B, T, D)."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """One call with positions of its own, as one layer of a model makes it."""
        positions = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        return self.layer(x, MixerContext(positions), None, None).y


def make_layer(kind: str, length: int, settings: ChelaSettings) -> nn.Module:
    """A layer of a kind for sequences of a length, (B, T, D) -> (B, T, D), on its device."""
    width, mlp = settings.width, 2 * settings.width
    device = torch.device(settings.device)
    with device:
        if settings.causal:
            mixer = {"chela": layer_spec("chela", {}), "transformer": layer_spec("attention", _heads(settings))}
            spec = DecoderSpec(8, width, (mixer.get(kind, mixer["transformer"]),), mlp, max_positions=length)
            layer: nn.Module = DecoderLayer(spec, 0)
            if kind == "fla":
                layer.mixer = FlaMixer(width, settings.heads)
            layer = Causal(layer)  # type: ignore[arg-type]
        else:
            config = ChelaConfig(
                hidden_size=width,
                num_hidden_layers=1,
                ffn_hidden_size=mlp * 3 // 2,  # two matrices as large as the gated MLP's three
                max_length=length,
                norm="rms",
                pre_norm=True,
                dropout=0.0,
                mixer="chela" if kind == "chela" else "attention",
                mixer_options=None if kind == "chela" else _heads(settings),
            )
            layer = ChelaLayer(config)
    for module in layer.modules():
        draw: Any = getattr(module, "init_weights", None)
        if draw is not None and not isinstance(module, Mixer):
            draw()
    layer.to(settings.dtype)
    for module in layer.modules():
        if isinstance(module, MultiScaleConv):  # kernels are made in fp32, as in training under autocast
            module.float()
    return layer


def _heads(settings: ChelaSettings) -> dict[str, int]:
    return {"num_heads": settings.heads}


def benchmark(settings: ChelaSettings) -> Iterator[dict[str, Any]]:
    """Rows as they are measured: ms, ns for each token, tokens for each second, peak memory."""
    device = torch.device(settings.device)
    for mode in settings.modes:
        for length in settings.lengths:
            batch = settings.batch_size or max(1, settings.tokens // length)
            for kind in settings.kinds:
                if kind == "fla" and not settings.causal:
                    continue
                row: dict[str, Any] = {"mode": mode, "kind": kind, "length": length, "batch": batch}
                row |= {"width": settings.width, "causal": settings.causal}
                try:
                    layer = make_layer(kind, length, settings)
                    row["params"] = sum(p.numel() for p in layer.parameters())
                    row |= _timed(layer, mode, batch, length, settings, device)
                    layer = None
                except (RuntimeError, ImportError, BackendError, torch.OutOfMemoryError) as error:
                    row["error"] = str(error).splitlines()[0]
                yield row
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()


def _timed(
    layer: nn.Module, mode: str, batch: int, length: int, settings: ChelaSettings, device: torch.device
) -> dict[str, Any]:
    shape = (batch, length, settings.width)
    x = torch.randn(shape, device=device, dtype=settings.dtype, requires_grad=mode == "train")
    gradient = torch.randn_like(x, requires_grad=False)
    flash = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if device.type == "cuda" else nullcontext()

    def forward() -> Any:
        with torch.no_grad():
            return layer(x)

    def train() -> Any:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).backward(gradient)

    call: Callable[[], Any] = forward if mode == "forward" else train
    layer.train(mode == "train")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with flash, use_backend(hybrid_attention="torch"):  # torch's own flash attention, whatever the zoo would take
        timing = measure(call, device, seconds=settings.seconds, max_repeats=200)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    tokens = batch * length
    return {
        "ms": timing.median * 1e3,
        "ms_low": timing.low * 1e3,
        "ms_high": timing.high * 1e3,
        "repeats": timing.repeats,
        "ns_per_token": timing.median / tokens * 1e9,
        "tokens_per_second": tokens / timing.median,
        "peak_memory_mb": peak,
    }


def describe(row: dict[str, Any]) -> str:
    """One line."""
    head = f"{row['mode']:>7}  {row['kind']:<11}  L {row['length']:>6}  batch {row['batch']:>3}"
    if "error" in row:
        return f"{head}  {row['error']}"
    memory = "" if row["peak_memory_mb"] is None else f"  {row['peak_memory_mb'] / 1024:.2f} GiB"
    return f"{head}  {row['ms']:9.3f} ms  {row['ns_per_token']:8.1f} ns/token{memory}"


def ratios(rows: Sequence[dict[str, Any]], mode: str, other: str, ours: str = "chela") -> dict[int, float]:
    """length -> time of `other` / time of `ours`, where both ran."""
    times = {(r["kind"], r["length"]): r["ms"] for r in rows if r["mode"] == mode and "error" not in r}
    lengths = sorted({length for _, length in times})
    return {n: times[other, n] / times[ours, n] for n in lengths if (other, n) in times and (ours, n) in times}


def crossover(gains: dict[int, float]) -> int | None:
    """The smallest measured length from which on ours is never slower."""
    found = None
    for length in sorted(gains, reverse=True):
        if gains[length] < 1:
            break
        found = length
    return found


def flatness(rows: Sequence[dict[str, Any]], mode: str, kind: str = "chela", start: int = 4096) -> float | None:
    """Largest time for a token over the smallest one, from a length on; None with fewer than two lengths."""
    each = [
        r["ns_per_token"]
        for r in rows
        if r["mode"] == mode and r["kind"] == kind and r["length"] >= start and "error" not in r
    ]
    return max(each) / min(each) if len(each) > 1 else None


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences: from which length on CHELA is not slower, and how much a token's time changes with the length."""
    lines = []
    for mode in dict.fromkeys(r["mode"] for r in rows):
        for other in ("transformer", "fla"):
            gains = ratios(rows, mode, other)
            if gains:
                start = crossover(gains)
                found = "at no measured length" if start is None else f"from {start} positions on"
                shown = ", ".join(f"{length}: {gain:.2f}" for length, gain in gains.items())
                lines.append(f"{mode}: not slower than {other} {found} (time of {other} / time of chela: {shown}).")
        change = flatness(rows, mode)
        if change is not None:
            lines.append(f"{mode}: the time for a token changes by a factor of {change:.2f} from 4096 positions on.")
    return lines


def render(document: dict[str, Any]) -> list[str]:
    """A table for each mode: milliseconds, nanoseconds for a token, GiB."""
    rows, lines = document["rows"], []
    for mode in dict.fromkeys(r["mode"] for r in rows):
        part = [r for r in rows if r["mode"] == mode]
        kinds = list(dict.fromkeys(r["kind"] for r in part))
        first = part[0]
        what = "Forward" if mode == "forward" else "Forward and backward"
        lines += [
            f"**{what}**, one {'causal ' if first['causal'] else ''}layer of width {first['width']}: milliseconds "
            "(nanoseconds for a token, peak GiB)",
            "",
        ]
        body = []
        for length, batch in sorted({(r["length"], r["batch"]) for r in part}):
            cells = [_cell(next((r for r in part if r["kind"] == k and r["length"] == length), None)) for k in kinds]
            gains = [ratios(part, mode, k).get(length) for k in kinds if k != "chela"]
            body.append([f"{length}", f"{batch}", *cells, *("-" if g is None else f"{g:.2f}" for g in gains)])
        header = ["positions", "rows", *kinds, *(f"{k} / chela" for k in kinds if k != "chela")]
        lines += [*table(header, body), ""]
    return [*lines, *(f"- {line}" for line in summary(rows))]


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or "error" in row:
        return "-" if row is None else "does not run"
    memory = "" if row["peak_memory_mb"] is None else f", {row['peak_memory_mb'] / 1024:.2f}"
    return f"{row['ms']:.2f} ({row['ns_per_token']:.0f}{memory})"
