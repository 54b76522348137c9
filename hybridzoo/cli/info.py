"""`hybridzoo info`: what is known of one model."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command(name="info")(info_command)


def info_command(
    name: Annotated[str, typer.Argument(help="A registered model, with or without a tag.")],
    fast: Annotated[bool, typer.Option("--fast", help="Do not build the model: no parameter and FLOP counts.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show parameters, FLOPs, paper, source, licence, tags and configuration of a model. Downloads nothing.

    \b
    hybridzoo info iformer_small
    hybridzoo info roberta_bilstm_base --json
    """
    from hybridzoo.cli._table import echo_json, si
    from hybridzoo.info import model_info

    info = model_info(name)
    facts = info.to_dict(measure=not fast)
    if as_json:
        echo_json(facts)
        return
    rows = [
        ("model", f"{info.name}  ({info.title})"),
        ("about", info.summary),
        ("task", info.task),
        ("family", info.family),
    ]
    if not fast:
        rows += [
            ("parameters", f"{info.parameters:,} ({si(info.parameters)})"),
            ("FLOPs", f"{info.flops:,} ({si(info.flops)}) for one forward of one sample; a multiply-add counts two"),
        ]
    rows += [("paper", info.paper), ("source", info.source), ("licence", f"{info.license} (original code)")]
    rows += [("config", f"{key} = {value!r}") for key, value in info.config.items()] or [("config", "the defaults")]
    for tag, weights in info.tags.items():
        rows.append((f".{tag}", f"{weights.uri} ({weights.license})"))
        rows += [("", f"{metric}: {value} (as published)") for metric, value in weights.metrics.items()]
    if not info.tags:
        rows.append(
            ("weights", "none published; train with `hybridzoo train`, or load your own with build_model(PATH)")
        )
    width = max(len(label) for label, _ in rows) + 2
    previous = None
    for label, text in rows:
        typer.echo(f"{'' if label == previous else label:<{width}}{text}".rstrip())
        previous = label
