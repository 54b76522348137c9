"""`hybridzoo recipes` and `hybridzoo train` without a training."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from hybridzoo.cli import app
from hybridzoo.errors import HybridzooError
from hybridzoo.training import list_recipes, load_recipe, recipe_to_dict


def run(*args):
    return CliRunner().invoke(app, list(args), catch_exceptions=False)


def test_recipes_list():
    rows = json.loads(run("recipes", "list", "--json").stdout)
    assert [r["name"] for r in rows] == list_recipes()
    assert run("recipes", "list", "nothing-like-it").exit_code == 1
    assert "iformer/small_imagenet1k" in run("recipes", "list", "iformer").stdout


@pytest.mark.parametrize("name", list_recipes())
def test_a_copied_recipe_is_the_same_recipe(name, tmp_path):
    target = tmp_path / "deep" / "mine.yaml"
    assert run("recipes", "copy", name, str(target)).exit_code == 0
    assert load_recipe(target) == load_recipe(name)
    with pytest.raises(HybridzooError, match="--force"):
        run("recipes", "copy", name, str(target))
    assert run("recipes", "copy", name, str(target), "--force").exit_code == 0


def test_show_and_dry_run_print_what_would_run():
    shown = run("recipes", "show", "iformer/small_imagenet1k", "training.epochs=7").stdout
    assert yaml.safe_load(shown)["training"]["epochs"] == 7
    dry = run("train", "iformer/small_imagenet1k", "training.epochs=7", "--dry-run").stdout
    assert yaml.safe_load(dry) == recipe_to_dict(load_recipe("iformer/small_imagenet1k", ["training.epochs=7"]))
    assert run("recipes", "show", "iformer/small_imagenet1k").stdout.startswith("# iFormer-S")


def test_errors_reach_the_user():
    with pytest.raises(HybridzooError, match="iformer/small_imagenet1k"):
        run("train", "iformer/smal_imagenet1k")
    with pytest.raises(HybridzooError, match=r"training\.epoch"):
        run("train", "iformer/small_imagenet1k", "training.epoch=3")


def test_help_teaches_by_example():
    text = run("train", "--help").stdout
    assert "torchrun" in text
    assert "training.epochs=2" in text
