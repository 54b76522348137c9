"""Small real models for the harness: the families' `_test` variants, saved with what they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

LABELS = ("negative", "neutral", "positive")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from hybridzoo.data import load_data
    from hybridzoo.data.tokenizers import train_bpe_tokenizer

    return train_bpe_tokenizer(load_data("vader")["train"].content[:500], 512)


@pytest.fixture
def text_model() -> Any:
    """RoBERTa-BiLSTM with 45 thousand random parameters and three named classes."""
    import torch

    from hybridzoo import build_model

    torch.manual_seed(0)
    return build_model(
        "roberta_bilstm_test", id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)}
    )


@pytest.fixture
def text_folder(text_model: Any, tokenizer: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "tiny_text"
    text_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def image_model() -> Any:
    import torch

    from hybridzoo import build_model

    torch.manual_seed(0)
    return build_model("iformer_test").eval()


@pytest.fixture
def image_folder(image_model: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "tiny_image"
    image_model.save_pretrained(folder)
    return folder
