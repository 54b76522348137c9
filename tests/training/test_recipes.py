"""Every recipe of the zoo: it parses, its model builds, and it says what its paper says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hybridzoo.data import list_data
from hybridzoo.eval import list_tasks
from hybridzoo.training import find_recipe, list_recipes, load_recipe, recipe_to_dict, save_recipe
from hybridzoo.training.build import build_recipe_model
from hybridzoo.training.param_groups import param_groups
from hybridzoo.training.schedule import make_schedule

TABLE = yaml.safe_load(Path(__file__).with_name("paper_hyperparameters.yaml").read_text())


def stated(recipe, config, key):
    """The recipe's value of a key of the table."""
    if key == "samples_per_step":
        raise AssertionError("handled by the caller")
    values = recipe_to_dict(recipe)
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            section, _, name = key.partition(".")
            assert section == "model", f"the table names {key}, which no recipe has"
            return getattr(config, name)
        values = values[part]
    return values


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_builds_and_has_the_papers_hyper_parameters(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.title, "a recipe has a title"
    assert recipe.data.name in list_data()
    assert set(recipe.evaluation.tasks) <= set(list_tasks())
    assert f"hybridzoo train {name}" in find_recipe(name).read_text(), "the header of a recipe gives its command"
    save_recipe(recipe, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml") == recipe

    model = build_recipe_model(recipe, device="meta")
    t = recipe.training
    groups = param_groups(
        model,
        learning_rate=t.learning_rate,
        weight_decay=t.weight_decay,
        no_decay_norm_bias=t.no_decay_norm_bias,
        layer_decay=t.layer_decay,
    )
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert sum(len(g["params"]) for g in groups) == len(trainable)
    schedule = make_schedule(t, updates_per_epoch=100)
    assert max(schedule(s) for s in range(schedule.decay_steps)) <= t.learning_rate * (1 + 1e-12)

    if recipe.paper == "ours":
        return
    assert name in TABLE, f"{name} follows {recipe.paper}: put the paper's values into paper_hyperparameters.yaml"
    for key, expected in TABLE[name].items():
        if key == "samples_per_step":
            processes, samples = expected
            assert processes * t.batch_size * t.gradient_accumulation == samples, key
        else:
            found = stated(recipe, model.config, key)
            assert (list(found) if isinstance(found, tuple) else found) == expected, f"{key}: {found} != {expected}"


def test_the_table_names_recipes_that_exist():
    assert set(TABLE) <= set(list_recipes())
