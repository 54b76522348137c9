"""`hybridzoo bench models|ops|report`: measure speed, and write the page that shows it."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Annotated

import typer

from hybridzoo.cli._measured import measure, place

bench = typer.Typer(name="bench", help="Measure speed: models, ops, and the report.", no_args_is_help=True)


@bench.command()
def models(
    names: Annotated[list[str] | None, typer.Argument(help="Models of the zoo, e.g. iformer_small.")] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="Rival: timm:NAME, or python:PATH.py:FUNCTION. Repeatable.")
    ] = None,
    mode: Annotated[list[str] | None, typer.Option(help="infer, train; repeatable.")] = None,
    dtype: Annotated[str, typer.Option(help="amp (bf16 autocast), bf16, fp16 or fp32.")] = "amp",
    batch_size: Annotated[int, typer.Option(help="Rows of an inference call.")] = 256,
    train_batch_size: Annotated[int | None, typer.Option(help="Rows of a training step; half of the above.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the images; the model's own if left out.")] = None,
    compile: Annotated[
        list[str] | None, typer.Option(help="eager, graph (CUDA graph), or a torch.compile mode; repeatable.")
    ] = None,
    channels_last: Annotated[bool, typer.Option(help="Memory format of images and convolutions.")] = True,
    seconds: Annotated[float, typer.Option(help="About how long each measurement lasts.")] = 1.0,
    device: Annotated[str | None, typer.Option(help="cuda, cpu; the accelerator if there is one.")] = None,
    title: Annotated[str, typer.Option(help="Heading of these rows in the report.")] = "",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time models and their rivals in one process: samples per second, milliseconds, memory."""
    from hybridzoo.bench.models import Settings, benchmark_all
    from hybridzoo.errors import ConfigError

    every = [*(names or []), *(peer or [])]
    if not every:
        raise ConfigError("nothing to measure: name a model (`hybridzoo list` shows them) or a --peer")
    where = place(device)
    settings = [
        Settings(
            mode=m,
            dtype=dtype,
            batch_size=batch_size if m == "infer" else (train_batch_size or max(1, batch_size // 2)),
            image_size=image_size,
            compile=None if c in ("eager", "graph") else c,
            graph=c == "graph",
            channels_last=channels_last,
            seconds=seconds,
            device=where,
        )
        for c in (compile or ["eager"])
        for m in (mode or ["infer"])
    ]
    measure("models", every, settings, benchmark_all, device=where, title=title, out=out)


@bench.command()
def report(
    source: Annotated[Path, typer.Option(help="Folder of JSON files written by --out.")] = Path("docs/performance"),
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("docs/performance.md"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if the page is stale.")] = False,
) -> None:
    """Write the performance page from the JSON files of earlier measurements."""
    from hybridzoo.bench.report import render
    from hybridzoo.errors import ConfigError

    text = render(source)
    if check:
        if not out.is_file() or out.read_text() != text:
            raise ConfigError(f"{out} is stale: run `hybridzoo bench report`")
        typer.echo(f"{out} is up to date")
        return
    out.write_text(text)
    typer.echo(f"wrote {out}")


def register(app: typer.Typer) -> None:
    """Add `bench` with its commands; each `_bench_NAME.py` beside this file adds its own."""
    folder = importlib.import_module("hybridzoo.cli").__path__
    for module in sorted(pkgutil.iter_modules(folder), key=lambda m: m.name):
        if module.name.startswith("_bench_"):
            importlib.import_module(f"hybridzoo.cli.{module.name}").register(bench)
    app.add_typer(bench)
