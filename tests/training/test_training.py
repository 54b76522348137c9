"""Whole trainings of tiny models: exactness, faults, and what a run folder holds."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import multiprocessing
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, TrainerCallback

from hybridzoo import build_model, registry
from hybridzoo.data import load_data
from hybridzoo.errors import CheckpointError, ConfigError, DataError, TrainingError
from hybridzoo.training import load_recipe, train
from hybridzoo.training import run as run_module
from hybridzoo.training.callbacks import read_log
from hybridzoo.training.checkpoints import list_checkpoints
from hybridzoo.training.datasets import CachedImageDataset, ImageDataset


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


class StopAt(TrainerCallback):
    """Asks for a stop as SIGTERM does, after so many steps."""

    def __init__(self, trainer, step):
        self.trainer, self.step = trainer, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.trainer.signals.received = 15


def stop_after(monkeypatch, step):
    make = run_module.make_trainer

    def stopping(*args):
        trainer, tokenizer = make(*args)
        trainer.add_callback(StopAt(trainer, step))
        return trainer, tokenizer

    monkeypatch.setattr(run_module, "make_trainer", stopping)


HARD = {"ema_decay": 0.9, "gradient_accumulation": 2, "eval_every": "3 steps"}


@pytest.mark.parametrize(
    ("kind", "extra", "stop"),
    [
        ("image", {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, **HARD}, 5),  # inside the second epoch
        ("image", {"ema_decay": 0.9, "num_workers": 1, "layer_decay": 0.8}, 3),
        ("text", {"layer_decay": 0.8, "class_weights": "balanced", **HARD}, 4),  # at the end of an epoch
        ("image", {"precision": "bf16"}, 1),
    ],
    ids=["image-mixup", "image-workers", "text-boundary", "image-bf16"],
)
def test_stopped_and_resumed_is_bit_identical(kind, extra, stop, image_recipe, text_recipe, tmp_path, monkeypatch):
    recipe = (image_recipe if kind == "image" else text_recipe)(save_every=0, **extra)
    whole = train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        stopped = train(recipe, tmp_path / "parts")
    assert (stopped.status, stopped.step) == ("stopped", stop)
    assert [p.name for p in list_checkpoints(tmp_path / "parts" / "checkpoints")] == [f"checkpoint-{stop}"]
    resumed = train(recipe, tmp_path / "parts")
    assert (resumed.status, resumed.step) == ("finished", 6)
    assert_same(weights(whole.folder), weights(resumed.folder))
    last = [f / "checkpoints" / "checkpoint-6" for f in (whole.folder, resumed.folder)]
    assert_same(*map(weights, last))
    if "ema_decay" in extra:
        assert_same(*(load_file(p / "ema.safetensors") for p in last))
    states = [torch.load(p / "optimizer.pt", weights_only=True)["state"] for p in last]
    for key, state in states[0].items():
        assert_same(state, states[1][key])
    assert resumed.metrics == whole.metrics
    logs = [
        [(r["step"], r.get("loss"), r.get("eval_loss")) for r in read_log(r.folder / "log.jsonl")]
        for r in (whole, resumed)
    ]
    assert logs[0] == logs[1]


def test_workers_and_cache_change_nothing(image_recipe, tmp_path):
    one = train(image_recipe(max_steps=3), tmp_path / "a")
    two = train(image_recipe(max_steps=3, num_workers=2), tmp_path / "b")
    assert_same(weights(one.folder), weights(two.folder))
    assert not multiprocessing.active_children()  # they end with the training


def test_accumulated_micro_batches_are_the_big_batch(text_recipe, tmp_path, monkeypatch):
    """Without what differs by design: dropout, and the batches of similar length."""
    make = run_module.make_trainer

    def shuffled(*args):
        trainer, tokenizer = make(*args)
        trainer.batch_sampler.lengths = None
        return trainer, tokenizer

    monkeypatch.setattr(run_module, "make_trainer", shuffled)
    common = {"label_smoothing": 0.1, "class_weights": "balanced", "max_steps": 3, "learning_rate": 1e-4}
    encoder = registry.get_model("roberta_bilstm_test")[0].config["encoder"]
    finals = []
    for name, sizes in (("big", (8, 1)), ("small", (2, 4))):
        recipe = text_recipe(batch_size=sizes[0], gradient_accumulation=sizes[1], **common)
        recipe.model.config = {
            "encoder": encoder | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
            "input_dropout": 0.0,
            "head_dropout": 0.0,
        }
        run = train(recipe, tmp_path / name)
        finals.append(([r["loss"] for r in read_log(run.folder / "log.jsonl") if "loss" in r], weights(run.folder)))
    assert finals[0][0] == pytest.approx(finals[1][0], rel=1e-5)
    first, second = (torch.cat([v.flatten().float() for v in f[1].values()]) for f in finals)
    assert torch.allclose(first, second, atol=2e-5)


def test_run_folder_is_complete_and_loads(text_recipe, tmp_path):
    recipe = text_recipe(select_best=True, calibrate_temperature=True)
    recipe.evaluation.tasks = ["vader"]
    recipe.evaluation.batch_size = 256
    run = train(recipe, tmp_path / "run")
    folder = run.folder
    assert load_recipe(folder / "recipe.yaml") == recipe
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["data"]["sha256"] == load_data("vader").info.sha256
    assert environment["versions"]["torch"] == torch.__version__
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [r["step"] for r in read_log(folder / "log.jsonl") if "loss" in r] == [1, 2, 3, 4, 5, 6]
    model = build_model(str(folder))
    assert list(model.config.id2label.values()) == ["negative", "neutral", "positive"]
    assert model.config.temperature == pytest.approx(run.temperature)
    assert run.temperature != 1.0
    tokens = AutoTokenizer.from_pretrained(str(folder))("good film")["input_ids"]
    assert max(tokens) < model.get_input_embeddings().num_embeddings
    best = run.best
    scores = {r["step"]: r["eval_accuracy"] for r in read_log(folder / "log.jsonl") if "eval_accuracy" in r}
    assert best == {"metric": "accuracy", "value": max(scores.values()), "step": max(scores, key=scores.get)}
    assert run.metrics["accuracy"] == pytest.approx(best["value"])
    (result,) = run.results
    stored = json.loads((folder / result).read_text())
    assert stored["run"]["training_seed"] == recipe.training.seed
    card = (folder / "README.md").read_text()
    for fact in ("MIT", environment["data"]["sha256"], "model-index", "Hyper-parameters: ours", "validation accuracy"):
        assert fact in card
    assert train(recipe, folder) == run  # finished: nothing is done again
    assert len(list_checkpoints(folder / "checkpoints")) == 2


def test_early_stopping(image_recipe, tmp_path):
    recipe = image_recipe(early_stopping_patience=2, eval_every="1 steps", max_steps=30, learning_rate=1e-12)
    recipe.training.warmup_epochs = 0.0
    recipe.evaluation.metric = "accuracy"  # which such a learning rate does not change
    run = train(recipe, tmp_path / "run")
    assert (run.status, run.step, run.best["step"]) == ("finished", 3, 1)


def test_loss_that_is_not_finite(image_recipe, tmp_path):
    recipe = image_recipe(
        learning_rate=1e30, warmup_epochs=0.0, scheduler="constant", save_every="1 steps", max_steps=20
    )
    with pytest.raises(TrainingError, match=r"not finite .* at step \d+.*(checkpoint-\d+|no checkpoint)"):
        train(recipe, tmp_path / "run")
    for checkpoint in list_checkpoints(tmp_path / "run" / "checkpoints"):
        assert all(torch.isfinite(v).all() for v in weights(checkpoint).values() if v.is_floating_point())


# Checkpoints under stress ------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(image_recipe, tmp_path, monkeypatch):
    """A run that was stopped at step 5 with the checkpoints of steps 4 and 5, and its recipe."""
    recipe = image_recipe()
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        train(recipe, tmp_path / "run")
    return recipe, tmp_path / "run"


@pytest.mark.parametrize("how", ["truncated", "changed", "missing", "no list"])
def test_damaged_checkpoint_is_refused_and_the_one_before_offered(stopped, how):
    recipe, folder = stopped
    last, before = folder / "checkpoints" / "checkpoint-5", folder / "checkpoints" / "checkpoint-4"
    file = last / ("files.json" if how == "no list" else "optimizer.pt")
    data = bytearray(file.read_bytes())
    if how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif how == "changed":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=f"{file.name}.*--resume .*checkpoint-4") as caught:
        train(recipe, folder)
    assert str(last) in str(caught.value)
    run = train(recipe, folder, resume=before)
    assert (run.status, run.step) == ("finished", 6)
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert names == ["checkpoint-4", "checkpoint-6", "superseded-checkpoint-5"]


def test_half_written_folders_are_no_checkpoints(stopped):
    recipe, folder = stopped
    store = folder / "checkpoints"
    for name in (".writing-6", ".deleting-checkpoint-2"):
        (store / name).mkdir()
        (store / name / "model.safetensors").write_bytes(b"half")
    (store / "checkpoint-5").rename(store / ".replaced-checkpoint-5")  # killed between two renames
    assert train(recipe, folder).step == 6
    assert sorted(p.name for p in store.iterdir()) == ["checkpoint-5", "checkpoint-6"]


@contextmanager
def largest_file(size):
    """Files of this process cannot grow beyond `size` bytes: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [50_000, 1_000_000], ids=["weights", "optimizer"])
def test_full_disk_leaves_earlier_checkpoints(stopped, size):
    recipe, folder = stopped
    before = {p: p.read_bytes() for p in (folder / "checkpoints").rglob("*") if p.is_file()}
    with largest_file(size), pytest.raises(TrainingError, match=r"checkpoint-6 could not be written.*checkpoint-5"):
        train(recipe, folder)
    assert {p: p.read_bytes() for p in (folder / "checkpoints").rglob("*") if p.is_file()} == before
    assert train(recipe, folder).status == "finished"


def test_run_folder_of_something_else(stopped, image_recipe, tmp_path):
    recipe, folder = stopped
    other = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, learning_rate=0.5))
    with pytest.raises(TrainingError, match=r"training\.learning_rate was 0\.001, is 0\.5"):
        train(other, folder)
    with pytest.raises(TrainingError, match="already holds checkpoint-5"):
        train(recipe, folder, resume=False)
    with pytest.raises(TrainingError, match="no checkpoint"):
        train(recipe, tmp_path / "new", resume=True)
    with pytest.raises(TrainingError, match="checkpoint-4, checkpoint-5"):
        train(recipe, folder, resume=folder / "checkpoints" / "checkpoint-3")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    with pytest.raises(TrainingError, match="no run folder"):
        train(recipe, tmp_path / "mine")
    with pytest.raises(TrainingError, match="is a file"):
        train(recipe, tmp_path / "mine" / "thesis.txt")
    with pytest.raises(TrainingError, match="cannot be written"):
        train(recipe, "/proc/hybridzoo-run")


# Recipes that do not fit -------------------------------------------------------------------------------------------


def change_model(recipe):
    recipe.model.name, recipe.model.config = "roberta_bilstm_test", {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.model.config.update(num_labels=7), "num_labels=7, but fashion_mnist_mini has 10 classes"),
        (change_model, "fashion_mnist_mini is data for image-classification"),
        (lambda r: r.data.options.update(limmit=3), "'limmit'"),
        (lambda r: setattr(r.training, "calibrate_temperature", True), "no field temperature"),
        (lambda r: setattr(r.training, "report_to", ["wandb"]), "pip install wandb"),
        (lambda r: setattr(r.training, "precision", "fp16"), "needs a GPU"),
    ],
    ids=["labels", "task", "option", "temperature", "tracker", "fp16"],
)
def test_recipes_that_do_not_fit(image_recipe, tmp_path, change, words):
    if "GPU" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if "wandb" in words and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed here")
    recipe = image_recipe()
    change(recipe)
    with pytest.raises((ConfigError, DataError), match=words):
        train(recipe, tmp_path / "run")


def test_text_recipe_needs_a_tokenizer_that_fits(text_recipe, tmp_path):
    recipe = text_recipe()
    recipe.data.tokenizer = None
    with pytest.raises(ConfigError, match=r"data\.tokenizer is missing"):
        train(recipe, tmp_path / "a")
    recipe.data.tokenizer = "train:600"
    with pytest.raises(ConfigError, match="600 tokens, but the model has embeddings for 512"):
        train(recipe, tmp_path / "b")
    recipe.data.tokenizer = str(tmp_path)
    with pytest.raises(ConfigError, match="no readable tokenizer"):
        train(recipe, tmp_path / "c")


def test_starts_from_weights_and_freezes(text_recipe, tmp_path):
    first = train(text_recipe(max_steps=2), tmp_path / "first")
    recipe = text_recipe(max_steps=2, freeze_backbone=True)
    recipe.model.weights, recipe.data.tokenizer = str(first.folder), None
    second = train(recipe, tmp_path / "second")
    a, b = weights(first.folder), weights(second.folder)
    frozen = {k for k in a if torch.equal(a[k], b[k])}
    assert {k for k in a if k.startswith("encoder.")} <= frozen
    assert {k for k in a if k.startswith("head.")} <= a.keys() - frozen


def test_small_images_are_cached_and_others_are_not(image_recipe, tmp_path):
    from hybridzoo.training.build import build_datasets, build_recipe_model

    bundle = load_data("fashion_mnist_mini", limit=20)
    recipe = image_recipe(augment={"padding_crop": 2, "hflip": 0.5})
    model = build_recipe_model(recipe, bundle.info.label_names)
    assert isinstance(build_datasets(recipe, bundle, model, None)[0], ImageDataset)  # 32 pixels, the images have 28
    recipe.model.name, recipe.model.config = "iformer_mini", {}
    model = build_recipe_model(recipe, bundle.info.label_names)
    train_set, validation_set = build_datasets(recipe, bundle, model, None)
    assert isinstance(train_set, CachedImageDataset)
    recipe.training.augment.padding_crop, recipe.training.augment.hflip = 0, 0.0
    plain, _ = build_datasets(recipe, bundle, model, None)
    from hybridzoo.data.transforms import build_transform
    from hybridzoo.training.sampling import Key

    transform = build_transform(model.config, train=False)
    batch = plain.__getitems__([Key(0, i, 0) for i in range(20)])
    expected = torch.stack([transform(bundle["train"][i]["image"]) for i in range(20)])
    assert torch.allclose(batch["pixel_values"], expected, atol=1e-6)
    assert batch["labels"].tolist() == bundle["train"].labels
    assert torch.equal(validation_set[3]["pixel_values"], transform(bundle["validation"][3]["image"]))


def test_tensorboard_when_asked(image_recipe, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    run = train(image_recipe(max_steps=2, report_to=["tensorboard"]), tmp_path / "run")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (run.folder / "tensorboard").rglob("events.out.tfevents.*")
    seen = EventAccumulator(str(events)).Reload()
    assert [e.step for e in seen.Scalars("train/loss")] == [1, 2]
