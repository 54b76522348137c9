"""`hybridzoo convert`: checkpoints between the original implementation's layout and the zoo's folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command(name="convert")(convert_command)


def convert_command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Original checkpoint, or with --to-original a folder.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; with --to-original a weights file.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Registered model or family that SRC belongs to.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="The original's own configuration as JSON, where it is not the model's default."),
    ] = None,
    to_original: Annotated[bool, typer.Option("--to-original", help="The other way.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST if it exists.")] = False,
) -> None:
    """Convert an original checkpoint to a folder for `build_model`, or back.

    Every key must find its place: a missing, unexpected or mis-shaped one ends the command and is named.
    DST appears only when it is complete.

    \b
    hybridzoo convert iformer_small.pth ./iformer_small --model iformer_small
    hybridzoo convert ./iformer_small weights.safetensors --to-original
    """
    from hybridzoo.export.checkpoints import convert_checkpoint

    written = convert_checkpoint(
        source, target, model=model, config=config, to_original=to_original, overwrite=overwrite
    )
    typer.echo(f"{written.tensors} tensors, {written.parameters:,} parameters -> {written.path}")
