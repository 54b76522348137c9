"""`hybridzoo export`: ONNX and torch.export files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command(name="export")(export_command)


def export_command(
    model: Annotated[str, typer.Argument(help="Registered name, name.tag, folder or hub id.")],
    path: Annotated[Path, typer.Argument(help="File to write: .onnx or .pt2.")],
    format: Annotated[
        str | None,
        typer.Option("--format", help="onnx or torch; read from the suffix if left out.", show_default=False),
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained/--random", help="Weights of a registered name.")] = True,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Run the file and compare with torch.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Export a model for other runtimes, with any batch size (and any text length), and check the file.

    The file is run on sizes other than the exported one (onnxruntime for ONNX, a reload for torch.export) and compared
    with the model; a larger difference than the tolerance ends the command and leaves no file.

    \b
    hybridzoo export iformer_mini iformer.onnx
    hybridzoo export ./runs/my_model model.pt2
    """
    from hybridzoo import build_model, registry
    from hybridzoo.cli._table import echo_json
    from hybridzoo.errors import UnknownNameError
    from hybridzoo.export import export_model

    known = registry.is_model(model)
    if known and pretrained and registry.get_model(model)[0].default_tag is None:
        raise UnknownNameError(
            f"{model!r} has no published weights: give a folder of yours, or --random for random ones"
        )
    built = build_model(model, pretrained=pretrained) if known else build_model(model)
    report = export_model(built, path, format=format, check=check)
    if as_json:
        echo_json(report.to_dict())
        return
    typer.echo(f"{report.format} file of {report.bytes:,} bytes -> {report.path}")
    for line in report.checks:
        typer.echo(f"  {line.shapes}: largest difference {line.max_abs_error:.2e} (outputs up to {line.scale:.2g})")
    if not report.checks:
        typer.echo("  not checked (--no-check)")
