"""A tokenizer and a model that fit each other, as trained ones do, but random."""

from __future__ import annotations

import pytest
import torch

from hybridzoo import build_model

LABELS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of a small tokenizer and of a model of its codes."""
    root = tmp_path_factory.mktemp("generation")
    torch.manual_seed(0)
    build_model("llamagen_vq_mini", codebook_size=32, z_channels=8).save_pretrained(root / "vq")
    model = build_model(
        "maskmamba_mini",
        codebook_size=32,
        num_layers=2,
        hidden_size=32,
        d_state=4,
        tokenizer=str(root / "vq"),
        id2label=dict(enumerate(LABELS)),
    )
    model.save_pretrained(root / "model")
    return root
