"""Recipes that are wrong get one clear error; right ones merge in order."""

from __future__ import annotations

import copy

import pytest
import yaml

from hybridzoo.errors import ConfigError, UnknownNameError
from hybridzoo.training import find_recipe, list_recipes, load_recipe, recipe_from_dict

GOOD = {"model": {"name": "iformer_test"}, "data": {"name": "fashion_mnist_mini"}}

WRONG = [  # (values below GOOD, overrides, words of the error)
    ({"training": {"lerning_rate": 1}}, [], ["lerning_rate", "did you mean 'learning_rate'", "training.lerning_rate"]),
    ({"trainig": {}}, [], ["trainig", "did you mean 'training'"]),
    ({"learning_rate": 1e-3}, [], ["did you mean 'training.learning_rate'"]),
    ({"training": {"augment": {"hlip": 1}}}, [], ["'hflip'", "training.augment.hlip"]),
    ({"training": {"learning_rate": "fast"}}, [], ["training.learning_rate", "'fast'", "expected float"]),
    ({"training": {"batch_size": 1.5}}, [], ["training.batch_size", "expected int"]),
    ({"training": {"scheduler": "cos"}}, [], ["training.scheduler", "cosine", "linear", "constant"]),
    ({"training": {"optimizer": {"betas": [0.9, "x"]}}}, [], ["training.optimizer.betas[1]", "float"]),
    ({"training": {"optimizer": {"betas": [0.9]}}}, [], ["training.optimizer.betas", "two numbers"]),
    ({"training": {"augment": 3}}, [], ["training.augment", "section"]),
    ({"training": {"eval_every": "often"}}, [], ["training.eval_every", "'200 steps'"]),
    ({"training": {"epochs": 0}}, [], ["training.epochs", "above 0"]),
    ({"training": {"batch_size": 0}}, [], ["training.batch_size", "at least 1"]),
    ({"training": {"learning_rate": -1}}, [], ["training.learning_rate"]),
    ({"training": {"min_learning_rate": 1}}, [], ["training.min_learning_rate", "learning_rate"]),
    ({"training": {"label_smoothing": 1.0}}, [], ["training.label_smoothing", "[0, 1)"]),
    ({"training": {"mixup_prob": 2}}, [], ["training.mixup_prob", "probability"]),
    ({"training": {"augment": {"scale": [1.0, 0.5]}}}, [], ["training.augment.scale", "low"]),
    ({"training": {"augment": {"interpolation": "cubic"}}}, [], ["training.augment.interpolation", "bicubic"]),
    ({"training": {"warmup_epochs": 0.5, "warmup_ratio": 0.1}}, [], ["warmup_epochs", "warmup_ratio"]),
    ({"training": {"epochs": 2, "warmup_epochs": 3}}, [], ["training.warmup_epochs"]),
    ({"training": {"layer_decay": 1.5}}, [], ["training.layer_decay"]),
    ({"training": {"ema_decay": 1.0}}, [], ["training.ema_decay"]),
    ({"training": {"report_to": ["wanb"]}}, [], ["'wandb'"]),
    ({"evaluation": {"metric": "acuracy"}}, [], ["'accuracy'"]),
    ({"data": {"name": "vader", "tokenizer": "train:100"}}, [], ["data.tokenizer", "train:8000"]),
    ({"model": {"name": "x", "weights": "a", "backbone": "b"}}, [], ["model.weights", "model.backbone"]),
    ({"model": {}}, [], ["model.name"]),
    ({}, ["training.epochs"], ["key=value"]),
    ({}, ["training.epoch=3"], ["'epochs'", "override 'training.epoch=3'"]),
    ({}, ["training.augment.scale=[1"], ["not valid YAML"]),
    ({}, ["model=3"], ["section"]),
]


@pytest.mark.parametrize(
    ("values", "overrides", "words"), WRONG, ids=[str(w[2][0]) + str(i) for i, w in enumerate(WRONG)]
)
def test_wrong_recipes_name_key_and_fix(values, overrides, words):
    with pytest.raises(ConfigError) as caught:
        recipe_from_dict({**copy.deepcopy(GOOD), **values}, overrides)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def write(path, values):
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: [1, 2", "not valid YAML"),
        ("- a\n- b\n", "a list"),
        ("just words", "unknown section 'just words'"),
        ("model: {name: a}\nmodel: {name: b}\n", "duplicate key"),
        ("model: {name: '${nowhere}'}\ndata: {name: b}\n", "nowhere"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        load_recipe(write(tmp_path / "r.yaml", text))
    assert "r.yaml" in str(caught.value)


def test_binary_file(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(ConfigError, match=r"r\.yaml"):
        load_recipe(tmp_path / "r.yaml")


def test_order_of_defaults_base_recipe_and_overrides(tmp_path):
    base_training = {"epochs": 9, "batch_size": 7, "learning_rate": 0.5}
    write(tmp_path / "base.yaml", GOOD | {"training": base_training})
    path = write(tmp_path / "r.yaml", {"base": "base", "training": {"batch_size": 8, "learning_rate": 0.25}})
    t = load_recipe(path, ["training.learning_rate=1e-3", "training.augment.scale=[0.5, 1]"]).training
    assert (t.epochs, t.batch_size, t.learning_rate, t.num_workers) == (9, 8, 1e-3, 0)
    assert t.augment.scale == [0.5, 1.0]


def test_a_base_has_no_base(tmp_path):
    write(tmp_path / "a.yaml", {"base": "b", **GOOD})
    write(tmp_path / "b.yaml", {"base": "a", **GOOD})
    with pytest.raises(ConfigError, match="one level"):
        load_recipe(tmp_path / "a.yaml")


def test_unknown_names(tmp_path):
    with pytest.raises(UnknownNameError, match="iformer/small_imagenet1k"):
        find_recipe("iformer/smal_imagenet1k")
    with pytest.raises(UnknownNameError, match="no recipe file"):
        find_recipe(tmp_path / "missing.yaml")
    write(tmp_path / "a.yaml", {"base": "nothing_like_it", **GOOD})
    with pytest.raises(UnknownNameError, match="base"):
        load_recipe(tmp_path / "a.yaml")
    assert find_recipe("iformer/small_imagenet1k").is_file()
    assert list_recipes("iformer/*384*") == [n for n in list_recipes() if n.startswith("iformer/") and "384" in n] != []
