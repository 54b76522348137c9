"""`hybridzoo bench mambaad`: the anomaly detector and another implementation of it."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from hybridzoo.cli._measured import measure, place


def register(bench: typer.Typer) -> None:
    bench.command(name="mambaad")(mambaad_command)


def mambaad_command(
    models: Annotated[list[str] | None, typer.Argument(help="Models; ratios are to the first.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="infer, train; repeatable.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="fp32, default, tf32, amp; repeatable.")] = None,
    batch_size: Annotated[list[int] | None, typer.Option(help="Images a call; repeatable.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Of the ops: auto, torch, triton …; repeatable.")] = None,
    compile: Annotated[
        list[str] | None, typer.Option(help="eager, graph (of CUDA), or a torch.compile mode; repeatable.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the images.")] = 256,
    seconds: Annotated[float, typer.Option(help="About how long each measurement lasts.")] = 2.0,
    device: Annotated[str | None, typer.Option(help="cuda, cpu; the accelerator if there is one.")] = None,
    title: Annotated[str, typer.Option(help="Heading of these rows in the report.")] = "",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time inference (to the smoothed map) and whole training steps of MambaAD.

    A rival is python:PATH.py:FUNCTION for a module that takes images and returns the teacher's and the student's maps.

    \b
    hybridzoo bench mambaad mambaad_resnet34 --mode infer --mode train
    hybridzoo bench mambaad mambaad_resnet34 python:original.py:make --mode train --dtype fp32 --dtype amp
    """
    from hybridzoo.bench.mambaad import MambaADSettings, benchmark_all

    where = place(device)
    choices = product(
        mode or ["infer"], dtype or ["fp32"], batch_size or [16], compile or ["eager"], backend or ["auto"]
    )
    settings = [
        MambaADSettings(
            mode=m,
            dtype=d,
            batch_size=b,
            side=size,
            backend=k,
            compile=None if c == "eager" else c,
            seconds=seconds,
            device=where,
        )
        for m, d, b, c, k in choices
    ]
    measure("mambaad", models or ["mambaad_resnet34"], settings, benchmark_all, device=where, title=title, out=out)
