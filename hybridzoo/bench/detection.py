"""Speed of detectors: inference and the whole training step, ours beside rivals, in one process.

Weights and images are random, sizes are what a detector gets in practice (800 x 1333). Inference is the network alone,
from pixels to logits and boxes. A training step is forward with the detector's own losses (assignment on the host
included), backward, clipping and an AdamW update. Every row says its settings, so the rows of one file name where a
gain comes from: the op's backend, mixed precision, compilation, memory format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridzoo.bench.precision import WEIGHTS, autocast, tf32_of
from hybridzoo.bench.rows import image_row, measure_all, millions, start_memory, train_step
from hybridzoo.bench.timing import measure
from hybridzoo.errors import ConfigError, unknown

MODES = ("infer", "train")
DTYPES = WEIGHTS
PEERS = tuple(f"transformers:deformable_detr_r50{kind}" for kind in ("", "_two_stage", "_two_stage_wide"))
PEER_QUERIES = 900  # of the two-stage rival: as many as Co-DINO has
CLIP_NORM = 0.1


@dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """How to measure.

    Args:
        mode: "infer" or "train".
        dtype: a name of `bench.precision`; "bf16" is for inference.
        batch_size: images a call.
        height, width: of the images.
        objects: per image, in training.
        backend: of the zoo's ops: "auto", "torch" (the definition), or another registered one.
        compile: through `torch.compile` with this mode; None is eager.
        channels_last: images and convolution weights in the channels_last memory format.
        cudnn_benchmark: convolutions by the algorithm that was fastest when each size came first.
        graph: inference replayed as one CUDA graph (the copy of the images into it included); both ours and the rivals.
        seconds: about how long each measurement lasts.
        device: where.
    """

    mode: str = "infer"
    dtype: str = "fp32"
    batch_size: int = 1
    height: int = 800
    width: int = 1333
    objects: int = 7
    backend: str = "auto"
    compile: str | None = None
    channels_last: bool = False
    cudnn_benchmark: bool = False
    graph: bool = False
    seconds: float = 2.0
    device: str = "cuda"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(unknown("mode", self.mode, MODES))
        if self.dtype not in DTYPES:
            raise ConfigError(unknown("dtype", self.dtype, DTYPES))
        if self.mode == "train" and self.dtype == "bf16":
            raise ConfigError("dtype='bf16' is inference with bf16 weights; train with dtype='amp'")
        if self.graph and (self.mode != "infer" or self.compile or not self.device.startswith("cuda")):
            raise ConfigError(
                "graph=True is for eager inference on a CUDA device (the assignment of a training runs on the host)"
            )
        for name in ("batch_size", "height", "width", "objects"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: give at least 1")


def build(name: str) -> nn.Module:
    """A detector with random weights on the CPU.

    Args:
        name: a model of the zoo (`co_dino_r50`), the same without what only training uses (`plain:co_dino_r50`: plain
            DINO), one of `PEERS`, or a function that returns a module which is called
            with pixel_values, pixel_mask and labels, in a Python file that you trust (`python:PATH.py:FUNCTION`).

    Raises:
        UnknownNameError, ConfigError: what was given and what exists.
    """
    kind, _, rest = name.partition(":")
    if kind == "transformers":
        if name not in PEERS:
            raise ConfigError(unknown("rival", name, PEERS))
        return _deformable_detr(two_stage="two_stage" in rest, wide=rest.endswith("wide"))
    from hybridzoo.bench.models import build as build_any

    if kind == "plain":
        model: Any = build_any(rest)
        return model.without_auxiliary_heads()
    return build_any(name)


def _deformable_detr(*, two_stage: bool, wide: bool) -> nn.Module:
    """transformers' Deformable-DETR with its ResNet-50; a timm backbone would ask the hub even for random weights.

    `wide` gives it the feed-forward layers of DINO, twice as wide as its own.
    """
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

    stages: dict[str, Any] = {"out_features": ["stage2", "stage3", "stage4"]}
    backbone = ResNetConfig(**stages)
    values: dict[str, Any] = {"use_timm_backbone": False, "backbone_config": backbone, "num_labels": 80}
    if two_stage:
        # The loss of every decoder layer, as it was trained in its paper; as ours has it.
        values |= {"auxiliary_loss": True, "two_stage": True, "with_box_refine": True, "num_queries": PEER_QUERIES}
        values["two_stage_num_proposals"] = PEER_QUERIES  # else it keeps 300 of them
    if wide:
        values |= {"encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048}
    return DeformableDetrForObjectDetection(DeformableDetrConfig(**values))


def inputs_for(settings: DetectionSettings) -> dict[str, Any]:
    """Random images without padding, and in training random objects."""
    generator = torch.Generator().manual_seed(0)
    s, device = settings, torch.device(settings.device)
    pixels = torch.randn(s.batch_size, 3, s.height, s.width, generator=generator).to(device)
    if s.dtype == "bf16":
        pixels = pixels.bfloat16()
    if s.channels_last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    inputs: dict[str, Any] = {
        "pixel_values": pixels,
        "pixel_mask": torch.ones(s.batch_size, s.height, s.width, dtype=torch.long, device=device),
    }
    if s.mode == "train":
        inputs["labels"] = []
        for _ in range(s.batch_size):
            sides = 0.05 + 0.3 * torch.rand(s.objects, 2, generator=generator)
            centres = sides / 2 + (1 - sides) * torch.rand(s.objects, 2, generator=generator)
            boxes = torch.cat((centres, sides), 1).to(device)
            classes = torch.randint(0, 80, (s.objects,), generator=generator).to(device)
            inputs["labels"].append({"class_labels": classes, "boxes": boxes})
    return inputs


def benchmark(name: str, settings: DetectionSettings) -> dict[str, Any]:
    """Measure one detector: images per second, milliseconds of a call and their spread, peak memory."""
    from hybridzoo.inference.graph import GraphedCalls
    from hybridzoo.ops.dispatch import use_backend

    device, dtype = torch.device(settings.device), DTYPES[settings.dtype]
    torch.manual_seed(0)
    model: Any = build(name).to(device, dtype)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    inputs = inputs_for(settings)
    parameters = millions(model)
    run = torch.compile(model, mode=settings.compile, dynamic=False) if settings.compile else model
    start_memory(device)
    mixed, tf32 = autocast(settings.dtype, device), tf32_of(settings.dtype, cudnn_benchmark=settings.cudnn_benchmark)
    with tf32, use_backend(settings.backend if settings.backend != "auto" else None):
        if settings.mode == "infer":
            model.eval()

            call = GraphedCalls(model, ("logits",)) if settings.graph else run

            def forward() -> Tensor:
                with mixed:
                    return call(**inputs)["logits"]

            with torch.inference_mode():
                if settings.graph:
                    _check_graph(forward, lambda: model(**inputs)["logits"], mixed)
                timing = measure(forward, device, seconds=settings.seconds)
        else:
            timing = measure(_train_step(model, run, inputs, mixed), device, seconds=settings.seconds)
    return image_row(name, settings, {"param_count": parameters}, timing)


def _check_graph(graph: Callable[[], Tensor], eager: Callable[[], Tensor], mixed: Any) -> None:
    """Raise if a graph gives other scores than an eager call. The best are compared: near ties change places."""
    with mixed:
        want = eager().float().amax(-1).sort(descending=True).values[:, :100].clone()
    for _ in range(2):
        found = graph().float().amax(-1).sort(descending=True).values[:, :100]
        if not torch.allclose(found, want, rtol=0.05, atol=0.05):
            raise RuntimeError(f"the graph's scores differ from an eager call's by {(found - want).abs().max():.3g}")


def _train_step(model: Any, run: Any, inputs: dict[str, Any], mixed: Any) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        with mixed:
            return run(**inputs)["loss"]

    return train_step(model, loss, clip_norm=CLIP_NORM)


def benchmark_all(
    names: Sequence[str], settings: Sequence[DetectionSettings], log: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Every detector under every setting; a failure becomes a row with `error`, not the end."""

    def left_out(name: str, setting: DetectionSettings) -> bool:  # the backend is one of the zoo's ops
        return name.startswith("transformers:") and setting.backend not in ("auto", "torch")

    return measure_all(names, settings, benchmark, summary, log, left_out=left_out)


def how_run(row: dict[str, Any]) -> str:
    """ "eager", "graph" or the mode of torch.compile."""
    return "graph" if row.get("graph") else row["compile"] or "eager"


def summary(row: dict[str, Any]) -> str:
    """One line for the terminal."""
    how = f"{row['mode']} {row['dtype']} {row['backend']} {how_run(row)} B{row['batch_size']}"
    if "error" in row:
        return f"{row['model']:46s} {how:34s} {row['error']}"
    memory = "" if row["peak_memory_mb"] is None else f"  {row['peak_memory_mb']:8.0f} MB"
    return f"{row['model']:46s} {how:34s} {row['images_per_sec']:9.2f} img/s {row['step_time_ms']:9.2f} ms{memory}"


def render(document: dict[str, Any]) -> list[str]:
    """Lines of the performance page: one table per mode, precision, size and batch; ratios are to the first row."""
    from hybridzoo.bench.report import table

    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    lines: list[str] = []
    for row in document["rows"]:
        if "error" not in row:
            benchmark = row.get("cudnn_benchmark", False)
            key = (row["mode"], row["dtype"], row["batch_size"], row["height"], row["width"], benchmark)
            groups.setdefault(key, []).append(row)
    for (mode, dtype, batch, height, width, benchmark), rows in groups.items():
        what = "Inference" if mode == "infer" else f"Training step ({rows[0]['objects']} objects an image)"
        ours = rows[0]
        chosen = ", `cudnn.benchmark`" if benchmark else ""
        lines += [f"**{what}**, {dtype}, batch {batch}, {height} x {width}{chosen}", ""]
        body = []
        for row in sorted(rows, key=lambda r: -r["images_per_sec"]):
            memory = row["peak_memory_mb"]
            kind = "**{}**" if row["model"] == ours["model"] else "{}"
            body.append(
                [
                    kind.format(row["model"]),
                    row["backend"] if not row["model"].startswith("transformers:") else "-",
                    how_run(row) + (", channels_last" if row["channels_last"] else ""),
                    f"{row['param_count']:.1f}",
                    f"{row['images_per_sec']:.2f}",
                    f"{row['step_time_ms']:.1f}",
                    "-" if memory is None else f"{memory / 1024:.2f}",
                    f"{ours['images_per_sec'] / row['images_per_sec']:.2f}",
                ]
            )
        header = ["model", "ops", "how", "M parameters", "images/s", "ms", "GiB", f"{ours['model']} is faster by"]
        lines += [*table(header, body), ""]
    lines += [f"- not measured: {summary(row)}" for row in document["rows"] if "error" in row]
    return lines
