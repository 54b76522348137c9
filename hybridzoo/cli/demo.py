"""`hybridzoo demo`: the zoo's own trained models, evaluated on embedded data and ranked, offline."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

# Trained models in checkpoints/ and the embedded task that each is measured on.
PAIRS = (
    ("roberta_bilstm_mini", "vader"),
    ("iformer_mini", "fashion_mnist_mini"),
    ("mambaad_mini", "texture_ad_mini"),
    ("maskmamba_mini", "fashion_mnist_mini_generation"),
)
# Options of a task's predictor, so that every line takes seconds.
OPTIONS: dict[str, dict[str, Any]] = {"maskmamba_mini": {"count": 100}}


@dataclass(frozen=True)
class Shown:
    """One line of the closing table."""

    model: str
    task: str
    metric: str
    value: float
    error: float | None
    samples: int
    seconds: float
    picture: Path | None


def register(app: typer.Typer) -> None:
    app.command(name="demo")(demo_command)


def demo_command(
    out: Annotated[Path, typer.Option("--out", help="Folder for results, pictures and the page.")] = Path("runs/demo"),
) -> None:
    """Build the zoo's trained models from checkpoints/, evaluate them on real embedded data, rank them on a page.

    Needs no network and no GPU. Each run adds its results to the folder.

    \b
    hybridzoo demo
    hybridzoo demo --out /tmp/demo
    """
    ready, missing = split_by_checkpoint(PAIRS)
    if missing:
        names = ", ".join(name for name, _ in missing)
        typer.echo(
            f"not in checkpoints/ and therefore left out: {names} (train with `hybridzoo train`, see "
            "`hybridzoo recipes list`)",
            err=True,
        )
    if not ready:
        typer.echo("error: no trained model is there, so there is nothing to show", err=True)
        raise typer.Exit(2)
    shown = [_measure(step, len(ready), name, task, out) for step, (name, task) in enumerate(ready, 1)]
    _finish(shown, out)


def split_by_checkpoint(pairs: tuple[tuple[str, str], ...]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The pairs whose weights lie in checkpoints/, and the others."""
    from hybridzoo._paths import asset_root

    ready, missing = [], []
    for name, task in pairs:
        folder = asset_root("checkpoints") / name
        whole = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
        (ready if whole else missing).append((name, task))
    return ready, missing


def _measure(step: int, steps: int, name: str, task: str, out: Path) -> Shown:
    from hybridzoo import build_model
    from hybridzoo._paths import asset_root
    from hybridzoo.eval.harness import run_task

    begin = time.perf_counter()
    folder = asset_root("checkpoints") / name
    built = build_model(folder)
    parameters = sum(p.numel() for p in built.parameters())
    typer.echo(f"[{step}/{steps}] {name}: {parameters:,} parameters from {folder}")
    typer.echo(f"      evaluating on {task} …")
    options = OPTIONS.get(name, {})
    done = run_task(name if _tagged(name) else folder, task, out=out / "results", progress=True, **options)
    result, primary = done.result, done.result.task.primary
    metric = result.metrics[primary]
    return Shown(
        model=name,
        task=task,
        metric=primary,
        value=metric.value,
        error=metric.stderr,
        samples=result.task.dataset.n_used,
        seconds=time.perf_counter() - begin,
        picture=_picture(done, out / "pictures" / f"{name}-{task}.png"),
    )


def _tagged(name: str) -> bool:
    """Whether the registry knows weights of this model (else the folder is read directly)."""
    from hybridzoo import registry

    return registry.get_model(name)[0].default_tag is not None


def _picture(done: Any, path: Path) -> Path | None:
    """What the task's kind draws first (heat maps, boxes, samples), else the confusion matrix."""
    from hybridzoo.eval.kinds import record_kind
    from hybridzoo.eval.metrics.plots import save_confusion_matrix
    from hybridzoo.eval.tasks import load_task

    result = done.result
    kind = record_kind(load_task(result.task.name).kind)
    if kind is not None:
        drawn = kind.pictures(done.predictions, result, done.path.with_suffix(""), done.bundle, 0)
        return drawn[0] if drawn else None
    matrix = result.details.get("confusion_matrix")
    if matrix is None:
        return None
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    title = f"{result.model.name} on {result.task.name}"
    drawn = save_confusion_matrix(np.asarray(matrix["counts"]), matrix["labels"], path, title=title)
    return path if drawn else None


def _finish(shown: list[Shown], out: Path) -> None:
    from hybridzoo.cli._table import text_table
    from hybridzoo.eval.leaderboard.build import Outputs, build
    from hybridzoo.eval.leaderboard.rows import metric_label

    outputs = build(out / "results", Outputs.in_folder(out))
    rows = []
    for line in shown:
        error = "" if line.error is None else f" ± {line.error:.2f}"
        score = f"{metric_label(line.metric)} {line.value:.2f}{error}"
        rows.append([line.model, line.task, score, line.samples, f"{line.seconds:.1f} s"])
    typer.echo("")
    typer.echo(text_table(["model", "task", "score, %", "samples", "time"], rows, right=[3, 4]))
    typer.echo("")
    for line in shown:
        if line.picture:
            typer.echo(f"picture:          {line.picture}")
    if any(line.picture is None for line in shown):
        typer.echo("pictures are missing: pip install matplotlib")
    typer.echo(f"results:          {out / 'results'}")
    typer.echo(f"leaderboard:      {outputs.page.resolve().as_uri()}")
