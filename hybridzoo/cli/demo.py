"""`hybridzoo demo`: the zoo's own trained models, evaluated on embedded data and ranked, offline."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    app.command(name="demo")(demo_command)


def demo_command(
    out: Annotated[Path, typer.Option("--out", help="Folder for results, pictures and the page.")] = Path("runs/demo"),
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Name of a model in checkpoints/, or a pattern. Repeatable.")
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option("--checkpoints", help="Another folder of trained models.", show_default="checkpoints")
    ] = None,
) -> None:
    """Build the zoo's trained models from checkpoints/, evaluate them on real embedded data, rank them on a page.

    Each model shows what it does: labels, boxes, heat maps, new images, new text. Needs no network and no GPU. Each run
    adds its results to the folder.

    \b
    hybridzoo demo
    hybridzoo demo --only "*bilstm*" --out /tmp/demo
    """
    from transformers.utils.logging import disable_progress_bar

    from hybridzoo._paths import asset_root
    from hybridzoo.cli._demo_stages import Stage, find_stages, run_stage
    from hybridzoo.errors import HybridzooError

    disable_progress_bar()  # of transformers' loading: a stage says what it does itself
    warnings.filterwarnings("ignore", category=UserWarning)
    root = checkpoints or asset_root("checkpoints")
    stages, left_out = find_stages(root, only or ())
    for name, why in left_out:
        typer.echo(f"left out: {name}: {why}", err=True)
    if not stages:
        typer.echo(
            f"error: no trained model is in {root}, so there is nothing to show; train one (`hybridzoo recipes list`)",
            err=True,
        )
        raise typer.Exit(2)
    typer.echo(f"{len(stages)} trained models from {root}, on the CPU, offline. Results and pictures go to {out}")
    begin = time.perf_counter()
    shown: list[tuple[Stage, Any]] = []
    for number, stage in enumerate(stages, 1):
        task = stage.task or "its own codes"
        typer.echo(f"\n[{number}/{len(stages)}] {stage.name}: {stage.kind.replace('-', ' ')} on {task}")
        try:
            shown.append((stage, run_stage(stage, out, lambda line: typer.echo(f"      {line}"))))
        except HybridzooError as error:  # one model that cannot be shown does not hide the others
            typer.echo(f"      failed: {error}", err=True)
    _finish(shown, out, time.perf_counter() - begin)
    if len(shown) < len(stages):
        raise typer.Exit(1)


def _finish(shown: list[tuple[Any, Any]], out: Path, seconds: float) -> None:
    from hybridzoo.cli._table import text_table
    from hybridzoo.eval.leaderboard.build import Outputs, build
    from hybridzoo.eval.leaderboard.rows import metric_label

    rows = []
    for stage, done in shown:
        if done.result is None:
            rows.append([stage.name, "", done.text, "", f"{done.seconds:.0f} s"])
            continue
        primary = done.result.task.primary
        metric = done.result.metrics[primary]
        error = "" if metric.stderr is None else f" ± {metric.stderr:.2f}"
        score = f"{metric_label(primary)} {metric.value:.2f}{error}{' %' if metric.unit == '%' else ''}"
        used = done.result.task.dataset.n_used
        rows.append([stage.name, stage.task, score, f"{used:,}", f"{done.seconds:.0f} s"])
    typer.echo("")
    typer.echo(text_table(["model", "task", "score", "samples", "time"], rows, right=[3, 4]))
    outputs = build(out / "results", Outputs.in_folder(out))
    pictures = [path for _, done in shown for path in done.pictures]
    typer.echo(f"\n{seconds / 60:.1f} minutes. {len(pictures)} pictures, all of them on the page:")
    for path in pictures:
        typer.echo(f"  {path}")
    typer.echo(f"results:     {out / 'results'}")
    typer.echo(f"leaderboard: {outputs.page.resolve().as_uri()}")
