"""`hybridzoo bench lm`: language models and their rivals."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from hybridzoo.cli._measured import place


def register(bench: typer.Typer) -> None:
    bench.command(name="lm")(lm_command)


def lm_command(
    models: Annotated[list[str], typer.Argument(help="Models of the zoo and rivals; ratios are to the first.")],
    what: Annotated[
        list[str] | None, typer.Option(help="cache, decode, prefill (these if left out), train, scaling; repeatable.")
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens in the cache, and of a prompt.")] = 8192,
    batch_sizes: Annotated[str, typer.Option(help="Of decoding, up to what fits.")] = "1,16,64,128,256",
    prefill_batch_size: Annotated[int, typer.Option(help="Prompts read together.")] = 1,
    train: Annotated[str, typer.Option(help="Batch size x sequence length of training steps.")] = "8x2048",
    gradient_checkpointing: Annotated[bool, typer.Option(help="In training steps.")] = False,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    seconds: Annotated[float, typer.Option(help="About how long each measurement lasts.")] = 1.0,
    max_seconds: Annotated[float | None, typer.Option(help="Begin no further row after so long.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu; the accelerator if there is one.")] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="op=name that measured calls must take; auto if left out; repeatable.")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of these rows in the report.")] = "",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time decoding, prefill and training steps, and count cache bytes.

    scaling times training steps on one device and on all: start it with torchrun --nproc-per-node N -m hybridzoo.

    Rivals: llama_3_2_3b, llama_3_2_1b, llama_1_3b, fla_deltanet_1_3b.

    \b
    hybridzoo bench lm hymba_1_5b llama_3_2_3b --what cache --what decode --what prefill --out hymba.json
    hybridzoo bench lm deltanet_1_3b fla_deltanet_1_3b llama_1_3b --what train --train 8x2048,2x8192 --out deltanet.json
    """
    import torch

    from hybridzoo.bench.lm import LmSettings, benchmark, describe, ratios
    from hybridzoo.bench.report import write_json
    from hybridzoo.errors import ConfigError, unknown
    from hybridzoo.inference.classifier import DTYPES

    if dtype not in DTYPES:
        raise ConfigError(unknown("dtype", dtype, DTYPES))
    settings = LmSettings(
        context=context,
        batch_sizes=tuple(_numbers(batch_sizes, "--batch-sizes")),
        prefill_batch_size=prefill_batch_size,
        train=tuple(_pairs(train)),
        gradient_checkpointing=gradient_checkpointing,
        seconds=seconds,
        device=place(device),
        dtype=DTYPES[dtype],
        backends=tuple(backend or ()),
    )

    def save(rows: list[dict[str, Any]]) -> None:
        if out is not None:
            write_json(out, "lm", [*rows, *ratios(rows)], torch.device(settings.device), title=title)

    kinds = what or ["cache", "decode", "prefill"]
    rows = benchmark(kinds, models, settings, log=typer.echo, save=save, max_seconds=max_seconds)
    if not rows and int(os.environ.get("RANK", "0")):
        return  # the first process of several speaks
    for gain in ratios(rows):
        typer.echo(describe(gain))
    if out is not None:
        typer.echo(f"wrote {out}")
    if all("error" in row for row in rows):
        raise typer.Exit(1)


def _numbers(text: str, option: str) -> list[int]:
    from hybridzoo.errors import ConfigError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: give whole numbers with commas between, as 1,16,64") from error


def _pairs(text: str) -> list[tuple[int, int]]:
    from hybridzoo.errors import ConfigError

    made = []
    for part in text.split(","):
        numbers = part.split("x")
        if len(numbers) != 2 or not all(n.strip().isdigit() for n in numbers):
            raise ConfigError(f"--train {text!r}: give batch size x sequence length, as 8x2048,2x8192")
        made.append((int(numbers[0]), int(numbers[1])))
    return made
