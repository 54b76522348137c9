"""A tokenizer and a model of its codes through `train`, from recipe to folder to images."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from hybridzoo import build_model
from hybridzoo._paths import asset_root
from hybridzoo.data import load_data
from hybridzoo.errors import ConfigError
from hybridzoo.eval.generation import GenerationOptions, evaluate_generation
from hybridzoo.eval.schema import Result
from hybridzoo.inference.image_generation import ImageGenerator
from hybridzoo.training import load_recipe
from hybridzoo.training.build import build_recipe_model
from hybridzoo.training.run import train

QUICK = [
    "data.name=fashion_mnist_mini",
    "data.options={limit: 40}",
    "training.epochs=2",
    "training.warmup_epochs=0",
    "training.batch_size=10",
    "training.num_workers=0",
    "training.eval_every=1",
    "training.save_every=0",
]
SMALL = ["model.config.num_layers=2", "model.config.hidden_size=32", "model.config.d_state=4"]


def test_from_tokenizer_to_images(tmp_path):
    tokenizer = [*QUICK, "model.config.z_channels=8", "model.config.codebook_size=32"]
    first = train(load_recipe("maskmamba/tokenizer_fashion_mnist_mini", tokenizer), tmp_path / "vq")
    assert first.status == "finished"
    assert first.step == 8
    assert 0 < first.metrics["codebook_usage"] <= 1
    model = [*QUICK, *SMALL, f"model.config.tokenizer={tmp_path / 'vq'}", "model.config.codebook_size=32"]
    second = train(load_recipe("maskmamba/fashion_mnist_mini", model), tmp_path / "model")
    assert second.metrics.keys() == {"loss", "accuracy"}
    losses = [json.loads(line) for line in (tmp_path / "model" / "log.jsonl").read_text().splitlines()]
    checked = [entry["eval_loss"] for entry in losses if "eval_loss" in entry]
    assert len(checked) >= 2
    assert checked[-1] < checked[0]
    built = build_model(tmp_path / "model")
    assert built.config.id2label[8] == "Bag"
    assert len(ImageGenerator(built, device="cpu")(["Bag"], steps=2)) == 1


@pytest.fixture
def emoji(tmp_path):
    """90 dark and light squares in the layout of emoji-datasource-google."""
    folder, entries = tmp_path / "emoji" / "img" / "google" / "64", []
    folder.mkdir(parents=True)
    for i in range(90):
        Image.new("RGBA", (64, 64), (i, 0, 200 * (i % 2), 255)).save(folder / f"{i:04x}.png")
        entries.append({"unified": f"{i:04X}", "category": ("dark", "light")[i % 2], "image": f"{i:04x}.png"})
    (tmp_path / "emoji" / "emoji.json").write_text(json.dumps(entries))
    return tmp_path / "emoji"


def test_a_classifier_judges_samples_of_emoji(emoji, tmp_path):
    quick = [f"data.root={emoji}", *QUICK[2:]]
    judge = train(load_recipe("iformer/emoji", [*quick, "evaluation.tasks=[emoji]"]), tmp_path / "judge")
    assert judge.status == "finished"
    own = Result.from_json(next((tmp_path / "judge" / "results").rglob("*.json")))
    assert own.task.name == "emoji"
    assert own.task.dataset.split == "test"
    codes = {"codebook_size": 32, "z_channels": 8, "image_size": 64}
    vq = load_recipe("maskmamba/tokenizer_emoji", [*quick, *(f"model.config.{k}={v}" for k, v in codes.items())])
    build_recipe_model(vq).save_pretrained(tmp_path / "vq")
    config = [*SMALL, "model.config.codebook_size=32", f"model.config.tokenizer={tmp_path / 'vq'}"]
    train(load_recipe("maskmamba/emoji", [*quick, *config]), tmp_path / "model")
    test = load_data("emoji", root=emoji)["test"]
    options = GenerationOptions(count=8, steps=2, classifier=str(tmp_path / "judge"))
    found = evaluate_generation(tmp_path / "model", test, options, device="cpu")
    assert set(found.metrics) == {"class_accuracy", "class_accuracy_real"}
    assert found.samples.images.shape == (8, 64, 64, 3)


@pytest.mark.parametrize("name", ["fashion_mnist_mini", "emoji"])
def test_ablations_differ_in_one_thing_and_have_as_many_parameters(name):
    files = sorted(asset_root("recipes").glob(f"maskmamba/{name}_*.yaml"))
    assert {f.stem.removeprefix(f"{name}_") for f in files} >= {"transformer", "mamba"}
    full = load_recipe(f"maskmamba/{name}")
    count = parameters(full)
    for file in files:
        other = load_recipe(f"maskmamba/{file.stem}")
        assert other.training == full.training
        assert other.data == full.data
        changed = {k for k, v in other.model.config.items() if full.model.config.get(k) != v}
        assert len(changed - {"mlp_ratio"}) == 1
        assert abs(parameters(other) / count - 1) < 0.007


def parameters(recipe):
    return sum(p.numel() for p in build_recipe_model(recipe, device="meta").parameters())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.label_smoothing=0.1"], "label_smoothing is for classifiers"),
        (["data.name=vader"], "learns from images or codes"),
        (["evaluation.metric=f1_macro"], "metric 'f1_macro'"),
        (["model.config.num_labels=7"], "num_labels=7"),
    ],
)
def test_recipes_that_mean_nothing_are_named(overrides, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        train(load_recipe("maskmamba/fashion_mnist_mini", [*QUICK[:1], *overrides]), tmp_path)
