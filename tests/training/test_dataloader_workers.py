"""Data of every kind of training in the workers of a DataLoader, also where these are new processes ("spawn")."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.utils.data import DataLoader

from hybridzoo.training import recipe_from_dict
from hybridzoo.training.objectives import OBJECTIVES, objective_of
from hybridzoo.training.run import make_trainer
from hybridzoo.training.sampling import Key

FIRST = Key(0, 0, 0)
LM = {"vocab_size": 259, "pattern": "D", "num_hidden_layers": 1, "kv_groups": []}
STREAM = {"stream": True, "sequence_length": 32, "stream_tokens": 256, "validation_documents": 2, "separator": "\n\n"}
CASES: dict[str, dict[str, Any]] = {
    "texts": {"model": "roberta_bilstm_test", "data": "vader", "tokenizer": "train:300", "options": {"limit": 32}},
    "images": {
        "model": "iformer_test",
        "data": "fashion_mnist_mini",
        "options": {"limit": 16},
        "training": {"augment": {"hflip": 0.5, "color_jitter": 0.4}},
    },
    "cached images": {"model": "iformer_test", "data": "fashion_mnist_mini", "options": {"limit": 16}},
    "tokens": {
        "model": "chela_test",
        "config": {"vocab_size": 18, "num_labels": 10},
        "data": "listops_short_mini",
        "tokenizer": "listops",
        "options": {"train_size": 24},
    },
    "packed text": {
        "model": "hybrid_lm_test",
        "config": LM,
        "data": "austen_mini",
        "tokenizer": "bytes",
        "options": {"sequence_length": 64},
        "metric": "loss",
    },
    "stream": {
        "model": "hybrid_lm_test",
        "config": LM,
        "data": "corpus",
        "root": "texts",
        "tokenizer": "bytes",
        "options": STREAM,
        "metric": "loss",
    },
    "recall": {"model": "deltanet_mqar", "data": "mqar", "options": {}, "metric": "loss"},
    "pairs of answers": {
        "model": "hybrid_lm_test",
        "config": LM,
        "data": "preferences",
        "root": "pairs.jsonl",
        "tokenizer": "bytes",
        "options": {"sequence_length": 64},
        "training": {"objective": "dpo"},
        "metric": "loss",
    },
    "image tokenizer": {
        "model": "llamagen_vq_test",
        "data": "fashion_mnist_mini",
        "options": {"limit": 16},
        "metric": "loss",
    },
    "codes": {
        "model": "maskmamba_mini",
        "config": {"tokenizer": "llamagen_vq_mini"},
        "data": "fashion_mnist_mini",
        "options": {"limit": 16},
        "metric": "loss",
    },
    "boxes": {
        "model": "co_detr_test",
        "data": "trees_mini",
        "training": {"box_augment": {"hflip": 0.5, "copy_paste": 1.0, "oversample": 0.5}},
        "metric": "ap",
    },
    "normal images": {
        "model": "mambaad_test",
        "backbone": "test_efficientnet",
        "data": "texture_ad_mini",
        "metric": "loss",
    },
}


def make(name: str, folder: Path) -> Any:
    """The trainer of a case, which holds its data sets."""
    case = CASES[name]
    (folder / "texts").mkdir(exist_ok=True)
    for i in range(3):
        (folder / "texts" / f"{i}.txt").write_text("\n\n".join(f"Document {j} of file {i}." for j in range(9)))
    pair = '{"prompt": "Why?", "chosen": " Because.", "rejected": " No."}\n'
    (folder / "pairs.jsonl").write_text(pair * 20)
    data = {k: case[k] for k in ("tokenizer", "options") if k in case} | {"name": case["data"]}
    if "root" in case:
        data["root"] = str(folder / case["root"])
    model = {"name": case["model"], "config": case.get("config", {})}
    if "backbone" in case:
        torch.save(timm.create_model(case["backbone"]).state_dict(), folder / "teacher.pth")
        model["backbone"] = str(folder / "teacher.pth")
    training = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "eval_every": 0, "save_every": 0}
    recipe = recipe_from_dict(
        {
            "model": model,
            "data": data,
            "training": training | case.get("training", {}),
            "evaluation": {"metric": case["metric"]} if "metric" in case else {},
        }
    )
    objective = objective_of(recipe)
    return make_trainer(recipe, objective.load(), folder / "run", objective)[0]


@pytest.fixture(scope="module")
def trainer_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The trainer of a case, made when it is first asked for."""
    return cache(lambda name: make(name, tmp_path_factory.mktemp("case")))


def test_every_kind_of_training_is_here(trainer_of: Callable[[str], Any]) -> None:
    kinds = {type(trainer_of(name).objective).__name__ for name in CASES}
    assert kinds == {target.split(":")[1] for target in OBJECTIVES.values()} | {"Preference"}


@pytest.mark.parametrize("name", CASES)
def test_data_sets_can_be_pickled(name: str, trainer_of: Callable[[str], Any]) -> None:
    trainer = trainer_of(name)
    pickle.dumps(trainer.data_collator)
    for dataset, key in ((trainer.train_dataset, FIRST), (trainer.eval_dataset, 0)):
        if dataset is not None:
            before = dataset.__getitems__([key])
            again = pickle.loads(pickle.dumps(dataset))
            torch.testing.assert_close(again.__getitems__([key]), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["boxes", "stream"])
def test_batches_of_a_spawned_worker(name: str, trainer_of: Callable[[str], Any]) -> None:
    trainer = trainer_of(name)
    loader = DataLoader(
        trainer.train_dataset,
        batch_sampler=[[FIRST]],
        collate_fn=trainer.data_collator,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    (batch,) = loader
    torch.testing.assert_close(batch, trainer.train_dataset.__getitems__([FIRST]), rtol=0, atol=0)
