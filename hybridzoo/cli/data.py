"""`hybridzoo data`: the data sets by name, and sets that are made here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="List data sets, and make the generated ones of the Long Range Arena.")

OutArgument = Annotated[Path, typer.Argument(help="Folder to write into.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the data set.")]
WorkersOption = Annotated[int, typer.Option(min=1, help="Processes; the files are the same for every number.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="data")


@app.command(name="list")
def list_command(
    pattern: Annotated[str, typer.Argument(help="Part of a name or task.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the data sets that recipes and tasks know by name.

    \b
    hybridzoo data list
    hybridzoo data list lra
    """
    from hybridzoo.cli._table import echo_json, text_table
    from hybridzoo.data import data_spec, list_data

    specs = [s for s in map(data_spec, list_data()) if pattern in s.name or pattern in s.task]
    if as_json:
        keys = ("name", "title", "task", "protocols", "license", "source", "needs", "options", "track")
        echo_json([{key: getattr(spec, key) for key in keys} for spec in specs])
        return
    if not specs:
        typer.echo("no data set matches; `hybridzoo data list` shows all", err=True)
        raise typer.Exit(1)
    rows = [[s.name, s.task, ", ".join(s.protocols), "root" if s.needs else "none", s.title] for s in specs]
    typer.echo(text_table(["data set", "for", "protocols", "needs", "title"], rows))


@app.command(name="lra-listops")
def listops_command(
    out: OutArgument,
    n_train: Annotated[int, typer.Option(min=0, help="Samples of basic_train.tsv.")] = 96_000,
    n_val: Annotated[int, typer.Option(min=0, help="Of basic_val.tsv.")] = 2_000,
    n_test: Annotated[int, typer.Option(min=0, help="Of basic_test.tsv.")] = 2_000,
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    min_length: Annotated[int, typer.Option(help="Samples have more tokens than this,")] = 500,
    max_length: Annotated[int, typer.Option(help="and fewer than this.")] = 2_000,
    max_depth: Annotated[int, typer.Option(help="Of the trees.")] = 10,
    max_args: Annotated[int, typer.Option(help="Of an operator.")] = 10,
    quiet: QuietOption = False,
) -> None:
    """Make ListOps of the Long Range Arena: basic_train.tsv, basic_val.tsv and basic_test.tsv.

    The defaults are the official sizes (0.7 GB). The first 1,000 samples are the official program's for the seed.

    \b
    hybridzoo data lra-listops data/listops --workers 8
    hybridzoo train chela/lra_listops data.root=data/listops
    """
    from hybridzoo.data.lra.listops import ListOpsRules, write_listops

    begin = time.perf_counter()
    sizes = {"train": n_train, "val": n_val, "test": n_test}
    rules = ListOpsRules(max_depth=max_depth, max_args=max_args, min_length=min_length, max_length=max_length)
    written = write_listops(out, sizes=sizes, seed=seed, workers=workers, rules=rules, progress=not quiet)
    made = ", ".join(f"{count:,} {name}" for name, count in written.items())
    typer.echo(f"wrote {made} samples to {out} in {time.perf_counter() - begin:.1f} s")


@app.command(name="lra-pathfinder")
def pathfinder_command(
    out: OutArgument,
    n: Annotated[int, typer.Option("--n", min=1, help="Images; the benchmark has 200,000.")] = 200_000,
    size: Annotated[int, typer.Option(help="32 (Pathfinder), 64, 128 (Path-X) or 256 pixels a side.")] = 32,
    level: Annotated[str, typer.Option(help="hard (the benchmark), intermediate or easy.")] = "hard",
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images of a folder below imgs/.")] = 1_000,
    metadata: Annotated[
        str, typer.Option(help="text, as in lra_release, or binary, as the official program.")
    ] = "text",
    quiet: QuietOption = False,
) -> None:
    """Make Pathfinder images with their metadata, in the layout of lra_release.

    The first batch is what the official program makes for the seed. A run that was stopped goes on where it was.

    \b
    hybridzoo data lra-pathfinder data/lra --n 20000 --workers 8
    hybridzoo data lra-pathfinder data/lra --size 128 --n 1000
    """
    from hybridzoo.data.lra.pathfinder_files import write_pathfinder
    from hybridzoo.data.lra.pathfinder_rules import LEVEL_NAMES
    from hybridzoo.errors import DataError, unknown

    if level not in LEVEL_NAMES:
        raise DataError(unknown("level of Pathfinder", level, LEVEL_NAMES))
    begin = time.perf_counter()
    folder = write_pathfinder(
        out,
        n,
        size=size,
        contour_length=LEVEL_NAMES[level],
        seed=seed,
        workers=workers,
        batch=batch,
        metadata=metadata,
        progress=not quiet,
    )
    typer.echo(f"{n:,} images are in {folder} ({time.perf_counter() - begin:.1f} s)")
