"""`hybridzoo bench ops`: our backends of the primitives beside their rivals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybridzoo.cli._measured import place


def register(bench: typer.Typer) -> None:
    """Add `ops` to the `bench` command."""
    bench.command(name="ops")(ops)


def ops(
    op: Annotated[str | None, typer.Option(help="Only this op, e.g. selective_scan.")] = None,
    peer: Annotated[str, typer.Option(help="all: measure the installed rivals, too; none: ours alone.")] = "all",
    seconds: Annotated[float, typer.Option(help="About how long each measurement lasts.")] = 0.3,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; the accelerator if there is one.")] = None,
    title: Annotated[str, typer.Option(help="Heading of these rows in the report.")] = "",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time the ops' backends and their rivals: forward, forward and backward, memory. One thread on the CPU."""
    import torch

    from hybridzoo.bench.report import write_json
    from hybridzoo.errors import ConfigError
    from hybridzoo.ops._benchmark import benchmark

    if peer not in ("all", "none"):
        raise ConfigError(f"--peer must be all or none, it is {peer!r}")
    where = place(device)
    if where == "cpu":
        torch.set_num_threads(1)
    rows = benchmark(where, op, seconds=seconds, peers=peer == "all", log=typer.echo)
    if out is not None:
        write_json(out, "ops", rows, torch.device(where), title=title)
        typer.echo(f"wrote {out}")
