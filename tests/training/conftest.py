"""Small recipes on real, embedded data."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from hybridzoo.training import Recipe, recipe_from_dict

IMAGES = {
    "model": {"name": "iformer_test", "config": {"drop_path_rate": 0.2}},
    "data": {"name": "fashion_mnist_mini", "options": {"limit": 32}},
    "training": {
        "max_steps": 6,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_epochs": 0.25,
        "weight_decay": 0.05,
        "eval_every": "3 steps",
        "save_every": "2 steps",
        "log_every": 1,
        "augment": {"scale": [0.5, 1.0], "hflip": 0.5, "random_erasing": 0.25},
    },
    "evaluation": {"metric": "loss", "batch_size": 16},
}
TEXTS = {
    "model": {"name": "roberta_bilstm_test"},
    "data": {"name": "vader", "tokenizer": "train:400", "options": {"limit": 64}},
    "training": {
        "max_steps": 6,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "scheduler": "linear",
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "clip_grad_norm": 1.0,
        "eval_every": "3 steps",
        "save_every": "2 steps",
        "log_every": 1,
    },
    "evaluation": {"batch_size": 32},
}


def _make(base: dict[str, Any], **training: Any) -> Recipe:
    values = copy.deepcopy(base)
    values["training"] |= training
    return recipe_from_dict(values)


@pytest.fixture(scope="session")
def image_recipe():
    """A function: training keys -> a recipe for iformer_test."""
    return lambda **training: _make(IMAGES, **training)


@pytest.fixture(scope="session")
def text_recipe():
    """A function: training keys -> a recipe for roberta_bilstm_test."""
    return lambda **training: _make(TEXTS, **training)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
