"""`hybridzoo bench mambaad`: the anomaly detector and another implementation of it."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated

import typer


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
    import torch

    from hybridzoo.bench.mambaad import MambaADSettings, benchmark_all
    from hybridzoo.bench.report import write_json

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
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
    rows: list[dict] = []
    for setting in settings:
        rows += benchmark_all(models or ["mambaad_resnet34"], [setting], log=typer.echo)
        if out is not None:  # after each setting, so that an interruption loses little
            write_json(out, "mambaad", rows, torch.device(where), title=title)
    if out is not None:
        typer.echo(f"wrote {out}")
    if all("error" in row for row in rows):
        raise typer.Exit(1)
