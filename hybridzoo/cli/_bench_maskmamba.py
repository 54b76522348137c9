"""`hybridzoo bench maskmamba`: a Mamba layer and a Transformer layer, and whole generations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hybridzoo.cli._measured import place


def register(bench: typer.Typer) -> None:
    bench.command(name="maskmamba")(maskmamba_command)


def maskmamba_command(
    model: Annotated[str, typer.Argument(help="Whose layers are timed.")] = "maskmamba_xl",
    sizes: Annotated[str, typer.Option(help="Image sides of the single layers.")] = "256,512,1024,2048",
    batch_size: Annotated[int, typer.Option(help="Images of a layer's call.")] = 2,
    generation_sizes: Annotated[str, typer.Option(help="Image sides of generations; '' for none.")] = "256,1024,2048",
    generation_batch_size: Annotated[int, typer.Option(help="Images generated at once.")] = 1,
    steps: Annotated[int, typer.Option(help="Decoding steps.")] = 20,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    repeats: Annotated[int, typer.Option(help="Generations timed, at least.", min=1)] = 3,
    compile: Annotated[str | None, typer.Option(help="A torch.compile mode for the single layers.")] = None,
    how: Annotated[str | None, typer.Option(help="eager, graph (CUDA graphs), or both: the default on a GPU.")] = None,
    profile: Annotated[int, typer.Option(help="Print the longest kernels of a step at this size; 0: do not.")] = 0,
    seconds: Annotated[float, typer.Option(help="About how long each measurement lasts.")] = 1.0,
    device: Annotated[str | None, typer.Option(help="cuda, cpu; the accelerator if there is one.")] = None,
    title: Annotated[str, typer.Option(help="Heading of these rows in the report.")] = "",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time one Bi-Mamba-v2 layer against a Transformer layer (flash and plain attention), and whole generations.

    \b
    hybridzoo bench maskmamba --out docs/performance/maskmamba.json
    """
    import torch

    from hybridzoo.bench import maskmamba as work
    from hybridzoo.bench.report import write_json
    from hybridzoo.errors import ConfigError, unknown
    from hybridzoo.inference.classifier import DTYPES

    if dtype not in DTYPES:
        raise ConfigError(unknown("dtype", dtype, DTYPES))
    where = place(device)
    ways = how or ("eager,graph" if where.startswith("cuda") else "eager")
    settings = work.MaskMambaSettings(
        model=model,
        sizes=_numbers(sizes, "--sizes"),
        batch_size=batch_size,
        generation_sizes=_numbers(generation_sizes, "--generation-sizes"),
        generation_batch_size=generation_batch_size,
        steps=steps,
        dtype=DTYPES[dtype],
        seconds=seconds,
        device=where,
        compile=compile,
        how=tuple(part.strip() for part in ways.split(",") if part.strip()),
        generation_repeats=repeats,
    )
    rows: list[dict[str, Any]] = []
    for row in work.benchmark(settings):
        rows.append(row)
        typer.echo(work.describe(row))
        if out is not None:  # after every row: a run that is cut off leaves what it has
            write_json(out, "maskmamba", rows, torch.device(settings.device), title=title)
    for what, ours, other in (("layer", "bi_mamba_v2", "flash"), ("generation", "serial_v2", "pure_transformer")):
        for way in settings.how:
            gains = work.ratios(rows, what, ours, other, way)
            shown = ", ".join(f"{size} px {gain:.2f}x" for size, gain in gains.items())
            if gains:
                since = work.crossover(gains)
                end = "slower at the largest" if since is None else f"not slower from {since} px on"
                typer.echo(f"{what}, {way}: time of {other} / time of {ours}: {shown}; {end}")
    if profile:
        typer.echo(work.profile(settings, profile))
    if out is not None and rows:
        typer.echo(f"wrote {out}")
    if rows and all("error" in row for row in rows):
        raise typer.Exit(1)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    from hybridzoo.errors import ConfigError

    try:
        found = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: give whole numbers with commas between, as 256,1024") from error
    if any(n < 1 for n in found):
        raise ConfigError(f"{option} {text!r}: sizes are pixels, 1 or more")
    return found
