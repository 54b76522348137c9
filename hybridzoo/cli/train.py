"""`hybridzoo train`: run a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command(name="train")(train_command)


def train_command(
    recipe: Annotated[str, typer.Argument(help="A recipe of the zoo (`hybridzoo recipes list`) or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace the recipe's.")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Where everything goes; runs/MODEL-DATA-seedN if left out.")
    ] = None,
    resume: Annotated[
        str, typer.Option(help="auto: go on if there is a checkpoint; true: there must be one; or a checkpoint folder.")
    ] = "auto",
    no_resume: Annotated[
        bool, typer.Option("--no-resume", help="Refuse a folder that already has checkpoints.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the complete recipe and stop.")] = False,
) -> None:
    """Train a model by a recipe: `hybridzoo train RECIPE KEY=VALUE ...`.

    \b
    hybridzoo train iformer/fashion_mnist_mini data.root=/data/fashion_mnist
    hybridzoo train iformer/fashion_mnist_mini training.epochs=2 training.batch_size=64 --run-dir runs/trial
    hybridzoo train my_recipe.yaml model.config.drop_path_rate=0.1 --dry-run

    Interrupted (Ctrl-C, SIGTERM, a crash)? The same command goes on from the last checkpoint.

    \b
    Several processes:
    torchrun --nproc-per-node 8 -m hybridzoo train iformer/small_imagenet1k --run-dir runs/small
    accelerate launch --num-processes 8 -m hybridzoo train iformer/small_imagenet1k --run-dir runs/small
    """
    from hybridzoo.training.recipe import load_recipe, recipe_to_yaml

    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        typer.echo(recipe_to_yaml(loaded), nl=False)
        return
    from hybridzoo.errors import TrainingError
    from hybridzoo.training.checkpoints import list_checkpoints
    from hybridzoo.training.run import train

    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise TrainingError("training needs accelerate: pip install 'hybridzoo[train]'") from error
    wanted: str | bool = False if no_resume else {"true": True, "false": False}.get(resume.lower(), resume)
    run = train(loaded, run_dir, wanted)
    if os.environ.get("RANK", "0") != "0":
        return
    if run.status == "stopped":
        saved = list_checkpoints(run.folder / "checkpoints")[-1]
        typer.echo(f"stopped at step {run.step}, saved {saved}; the same command goes on from there", err=True)
        raise typer.Exit(128 + (run.signal or 15))
    values = ", ".join(f"{k} {v:.4f}" for k, v in run.metrics.items())
    typer.echo(f"{run.folder}: {run.step} steps, {run.epoch:g} epochs" + (f"; validation {values}" if values else ""))
    for path in run.results:
        typer.echo(f"result: {run.folder / path}")
