"""`hybridzoo bench chela`: one layer beside a Transformer layer and fla's linear attention, by length."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybridzoo.cli._measured import place


def register(bench: typer.Typer) -> None:
    bench.command(name="chela")(chela_command)


def chela_command(
    lengths: Annotated[str, typer.Option(help="Positions of a row.")] = "1024,4096,16384,65536",
    batch_size: Annotated[int, typer.Option(help="Rows of a call; 0: as many as make --tokens positions.")] = 1,
    tokens: Annotated[int, typer.Option(help="Positions of a call with --batch-size 0.")] = 65536,
    width: Annotated[int, typer.Option(help="Width of the layers; heads have 64 channels.")] = 512,
    kind: Annotated[list[str] | None, typer.Option(help="chela, transformer, fla; repeatable, all by default.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="forward, train; repeatable, both by default.")] = None,
    causal: Annotated[bool, typer.Option(help="Look back only, or (--no-causal) to both sides.")] = True,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    seconds: Annotated[float, typer.Option(help="About how long each measurement lasts.")] = 0.5,
    device: Annotated[str | None, typer.Option(help="cuda, cpu; the accelerator if there is one.")] = None,
    title: Annotated[str, typer.Option(help="Heading of these rows in the report.")] = "",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time one CHELA layer against a Transformer layer (flash attention) and fla's linear attention.

    \b
    hybridzoo bench chela --out docs/performance/chela.json
    """
    import torch

    from hybridzoo.bench.chela import KINDS, MODES, ChelaSettings, benchmark, describe, summary
    from hybridzoo.bench.report import write_json
    from hybridzoo.errors import ConfigError, unknown
    from hybridzoo.inference.classifier import DTYPES

    if dtype not in DTYPES:
        raise ConfigError(unknown("dtype", dtype, DTYPES))
    for what, given, known in (("kind", kind, KINDS), ("mode", mode, MODES)):
        for value in given or []:
            if value not in known:
                raise ConfigError(unknown(what, value, known))
    if min(width, tokens, batch_size + 1) < 1:
        raise ConfigError(f"--width {width}, --tokens {tokens} must be 1 or more, --batch-size {batch_size} 0 or more")
    settings = ChelaSettings(
        lengths=_numbers(lengths),
        kinds=tuple(kind or KINDS),
        modes=tuple(mode or MODES),
        width=width,
        batch_size=batch_size or None,
        tokens=tokens,
        causal=causal,
        dtype=DTYPES[dtype],
        seconds=seconds,
        device=place(device),
    )
    rows = []
    for row in benchmark(settings):
        rows.append(row)
        typer.echo(describe(row))
        if out is not None:  # after every row, so that an interrupted run keeps what it has
            write_json(out, "chela", rows, torch.device(settings.device), title=title)
    for line in summary(rows):
        typer.echo(line)
    if out is not None:
        typer.echo(f"wrote {out}")
    if all("error" in row for row in rows):
        raise typer.Exit(1)


def _numbers(text: str) -> tuple[int, ...]:
    from hybridzoo.errors import ConfigError

    try:
        found = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"--lengths {text!r}: give whole numbers with commas between, as 1024,4096") from error
    if not found or any(n < 2 for n in found):
        raise ConfigError(f"--lengths {text!r}: give at least one length, of 2 positions or more")
    return found
