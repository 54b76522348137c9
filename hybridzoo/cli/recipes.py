"""`hybridzoo recipes`: list, show and copy recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="List, show and copy training recipes: list, copy, edit, train.")


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="recipes")


@app.command(name="list")
def list_command(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or wildcards such as '*imdb*'.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the zoo's recipes.

    \b
    hybridzoo recipes list
    hybridzoo recipes list iformer
    """
    from hybridzoo.cli._table import echo_json, text_table
    from hybridzoo.training.recipe import list_recipes, load_recipe

    rows = []
    for name in list_recipes(pattern):
        recipe = load_recipe(name)
        rows.append(
            {
                "name": name,
                "model": recipe.model.name,
                "data": recipe.data.name,
                "epochs": recipe.training.epochs,
                "title": recipe.title,
                "paper": recipe.paper,
            }
        )
    if as_json:
        echo_json(rows)
        return
    if not rows:
        typer.echo("no recipe matches; `hybridzoo recipes list` shows all", err=True)
        raise typer.Exit(1)
    cells = [[r["name"], r["model"], r["data"], f"{r['epochs']:g}", r["title"]] for r in rows]
    typer.echo(text_table(["recipe", "model", "data", "epochs", "title"], cells, right=[3]))


@app.command(name="show")
def show_command(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values to replace.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Every key, with the defaults filled in.")] = False,
) -> None:
    """Print a recipe as it is written, or complete with `--full`.

    \b
    hybridzoo recipes show iformer/small_imagenet1k
    hybridzoo recipes show iformer/small_imagenet1k training.epochs=100 --full
    """
    from hybridzoo.training.recipe import find_recipe, load_recipe, recipe_to_yaml

    loaded = load_recipe(recipe, overrides or [])
    complete = full or bool(overrides)
    typer.echo(recipe_to_yaml(loaded) if complete else find_recipe(recipe).read_text(encoding="utf-8"), nl=False)


@app.command(name="copy")
def copy_command(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file.")],
    target: Annotated[Path | None, typer.Argument(help="File to write; NAME.yaml here if left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Copy a recipe to edit it. A `base:` stays valid: it is written by its name in the zoo.

    \b
    hybridzoo recipes copy iformer/fashion_mnist_mini my.yaml
    hybridzoo train my.yaml
    """
    from hybridzoo.errors import ConfigError
    from hybridzoo.training.recipe import find_recipe, load_recipe, portable_text

    load_recipe(recipe)  # a broken recipe is not worth copying
    source = find_recipe(recipe)
    target = target or Path(source.name)
    if target.is_dir():
        target = target / source.name
    if target.exists() and not force:
        raise ConfigError(f"{target} exists; give another name, or --force to replace it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(portable_text(source), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror or error}") from error
    typer.echo(f"wrote {target}; run it with: hybridzoo train {target}")
