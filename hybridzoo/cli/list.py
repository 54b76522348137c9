"""`hybridzoo list`: the registered models."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command(name="list")(list_command)


def list_command(
    patterns: Annotated[
        list[str] | None, typer.Argument(help="Wildcards such as '*former*'; 'name.*' also lists weight tags.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only models of this task, e.g. image-classification.")] = None,
    family: Annotated[str | None, typer.Option(help="Only models of this family.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only models with weights, as name.tag.")] = False,
    parameters: Annotated[
        bool, typer.Option("--parameters", help="Count parameters too (builds each model on the meta device).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models that `build_model` knows.

    \b
    hybridzoo list
    hybridzoo list "*former*" --task image-classification
    hybridzoo list --pretrained --json
    """
    from hybridzoo import registry
    from hybridzoo.cli._table import echo_json, si, text_table

    names = registry.list_models(patterns or "", task=task, family=family, pretrained=pretrained)
    rows = []
    for name in names:
        model, tag = registry.get_model(name)
        row = {"name": name, "family": model.family, "task": model.task, "tags": list(model.tags)}
        row["license"] = model.tags[tag].license if tag else None
        row["summary"] = model.summary
        if parameters:
            from hybridzoo.info import model_info

            row["parameters"] = model_info(name).parameters
        rows.append(row)
    if as_json:
        echo_json(rows)
        return
    if not rows:
        typer.echo("no model matches; `hybridzoo list` shows all", err=True)
        raise typer.Exit(1)
    count = ["parameters"] if parameters else []
    header = ["name", "family", "task", *count, "weights", "summary"]
    cells = []
    for row in rows:
        numbers = [si(row["parameters"])] if parameters else []
        weights = ", ".join(row["tags"]) or None
        cells.append([row["name"], row["family"], row["task"], *numbers, weights, row["summary"]])
    typer.echo(text_table(header, cells, right=[3] if parameters else []))
