"""Texts cut short in the first steps: by how much, what is refused, and that a training does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hybridzoo.data.lra.listops import ListOpsRules, write_listops
from hybridzoo.errors import ConfigError
from hybridzoo.models.chela.modeling import ChelaForSequenceClassification
from hybridzoo.training import recipe_from_dict
from hybridzoo.training.length_warmup import check_length_warmup, cut, length_at
from hybridzoo.training.run import train
from hybridzoo.training.schema import TrainingSection


def test_rows_double_in_equal_parts() -> None:
    t = TrainingSection(length_warmup_ratio=0.5, length_warmup_start=64)
    found = [length_at(step, 80, 1000, t) for step in range(0, 80, 10)]
    assert found == [64, 128, 256, 512, None, None, None, None]
    assert length_at(39, 80, 1024, t) == 512
    assert length_at(0, 80, 64, t) is None  # no row is longer
    assert length_at(0, 80, 1000, TrainingSection()) is None


def test_only_tokens_are_cut() -> None:
    batch = {
        "input_ids": torch.arange(12).view(2, 6),
        "attention_mask": torch.ones(2, 6),
        "labels": torch.tensor([0, 1]),
    }
    found = cut(batch, 4)
    assert found["input_ids"].tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
    assert found["attention_mask"].shape == (2, 4)
    assert found["labels"] is batch["labels"]
    assert cut(batch, None) is batch


@pytest.mark.parametrize(
    ("values", "lengths", "classes"),
    [
        ({"length_warmup_ratio": 1.5}, [9], True),
        ({"length_warmup_start": 0}, [9], True),
        ({"length_warmup_ratio": 0.1}, None, True),
        ({"length_warmup_ratio": 0.1}, [9], False),
    ],
)
def test_what_has_no_meaning_is_refused(values: dict[str, Any], lengths: Any, classes: bool) -> None:
    with pytest.raises(ConfigError, match="length_warmup"):
        check_length_warmup(TrainingSection(**values), lengths, classes)


def test_a_training_grows_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = ListOpsRules(max_depth=4, max_args=4, min_length=40, max_length=60)
    write_listops(tmp_path / "listops", sizes={"train": 24, "val": 10, "test": 10}, rules=rules)
    seen: list[int] = []
    forward = ChelaForSequenceClassification.forward

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            seen.append(kwargs["input_ids"].shape[1])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(ChelaForSequenceClassification, "forward", noted)
    training = {"max_steps": 8, "batch_size": 4, "length_warmup_ratio": 0.5, "length_warmup_start": 16, "save_every": 0}
    data = {"name": "lra_listops", "root": str(tmp_path / "listops"), "tokenizer": "listops"}
    recipe = {"model": {"name": "chela_test", "config": {"num_labels": 10}}, "data": data, "training": training}
    run = train(recipe_from_dict(recipe), tmp_path / "run")
    assert run.status == "finished"
    assert seen[:4] == [16, 16, 32, 32]
    assert min(seen[4:]) > 40
