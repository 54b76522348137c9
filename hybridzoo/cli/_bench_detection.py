"""`hybridzoo bench detection`: detectors and their rivals."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from hybridzoo.cli._measured import measure, place


def register(bench: typer.Typer) -> None:
    bench.command(name="detection")(detection_command)


def detection_command(
    models: Annotated[list[str], typer.Argument(help="Detectors; ratios are to the first.")],
    mode: Annotated[list[str] | None, typer.Option(help="infer, train; repeatable.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="fp32, tf32, default, amp, bf16; repeatable.")] = None,
    batch_size: Annotated[list[int] | None, typer.Option(help="Images a call; repeatable.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Of the ops: auto, torch, triton …; repeatable.")] = None,
    compile: Annotated[
        list[str] | None, typer.Option(help="eager, graph, or a torch.compile mode; repeatable.")
    ] = None,
    size: Annotated[str, typer.Option(help="Height x width of the images.")] = "800x1333",
    objects: Annotated[int, typer.Option(help="Per image, in training.")] = 7,
    channels_last: Annotated[bool, typer.Option(help="Memory format of images and convolutions.")] = False,
    cudnn_benchmark: Annotated[bool, typer.Option(help="Convolutions by the fastest algorithm of each size.")] = False,
    seconds: Annotated[float, typer.Option(help="About how long each measurement lasts.")] = 2.0,
    device: Annotated[str | None, typer.Option(help="cuda, cpu; the accelerator if there is one.")] = None,
    title: Annotated[str, typer.Option(help="Heading of these rows in the report.")] = "",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time inference and whole training steps (losses and assignment included) of detectors.

    plain:NAME is a model of the zoo without auxiliary heads and denoising. Rivals:
    transformers:deformable_detr_r50_two_stage (900 queries), the same with _wide (feed-forward layers as wide as
    DINO's), transformers:deformable_detr_r50, or python:PATH.py:FUNCTION for a module that takes pixel_values,
    pixel_mask and labels.

    \b
    hybridzoo bench detection co_dino_r50 transformers:deformable_detr_r50_two_stage --dtype fp32 --dtype bf16
    hybridzoo bench detection co_dino_r50 --mode train --dtype amp --backend torch --backend auto --batch-size 2
    """
    from hybridzoo.bench.detection import DetectionSettings, benchmark_all
    from hybridzoo.errors import ConfigError

    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--size {size}: give height x width, e.g. 800x1333")
    where = place(device)
    choices = product(
        mode or ["infer"], dtype or ["fp32"], batch_size or [1], compile or ["eager"], backend or ["auto"]
    )
    settings = [
        DetectionSettings(
            mode=m,
            dtype=d,
            batch_size=b,
            height=int(height),
            width=int(width),
            objects=objects,
            backend=k,
            compile=None if c in ("eager", "graph") else c,
            graph=c == "graph",
            channels_last=channels_last,
            cudnn_benchmark=cudnn_benchmark,
            seconds=seconds,
            device=where,
        )
        for m, d, b, c, k in choices
        if not (m == "train" and (d == "bf16" or c == "graph"))
    ]
    measure("detection", models, settings, benchmark_all, device=where, title=title, out=out)
