"""ZooConfig: unknown keys, types, labels, round trips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridzoo import build_model, registry
from hybridzoo.errors import ConfigError, HybridzooError

pytestmark = pytest.mark.usefixtures("toy")


def config_class() -> Any:
    return registry.resolve(registry.get_family("toy").config_class)


WRONG = [
    ({"width": (4,)}, "unknown key of ToyConfig 'width'; did you mean 'widths'"),
    ({"dropout": "0.1"}, "dropout.*expected float, got str"),
    ({"dropout": True}, "dropout"),
    ({"widths": 8}, "widths.*expected a tuple, got int"),
    ({"widths": ["a"]}, r"widths\[0\].*expected int, got str"),
    ({"widths": ()}, "at least one"),
    ({"image_mean": [0.5, "x"]}, "image_mean"),
    ({"image_size": True}, "expected int, got bool"),
    ({"dropout": 1.5}, r"dropout=1.5 must lie in \[0, 1\)"),
    ({"num_labels": 0}, "at least 1"),
    ({"num_labels": "3"}, "must be an int"),
    ({"num_classes": 2, "num_labels": 3}, "disagree"),
    ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "id2label names 2 classes"),
    ({"id2label": {0: "a", 2: "b"}}, "keys of id2label must be 0 to 1"),
    ({"problem_type": "single"}, "problem_type.*single_label_classification"),
    ({"dtype": "float31"}, "unknown dtype.*float32"),
    ({"attn_implementation": "someone/kernel"}, "names code to download"),
    ({"per_layer_config": {0: {"widths": (1,)}}}, "unknown key"),
    ({"top_k": 3}, "unknown key"),
    ({"fusion_config": {}}, "unknown key"),
    ({"transformers_weights": "other.safetensors"}, "unknown key"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda v: next(iter(v)) if isinstance(v, dict) else None)
def test_wrong_values_raise_in_the_constructor_and_from_json(values: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        config_class()(**values)
    with pytest.raises(ConfigError, match=message):
        build_model("toy_test", **values)
    if "id2label" not in values:
        stored = json.loads(json.dumps(values))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "hybridzoo_toy", **stored}))
        with pytest.raises(ConfigError):
            config_class().from_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=r"config\.json"):
            build_model(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("dropout", "x"), ("widths", "8"), ("image_size", 1.5)])
def test_assignment_is_checked(field: str, value: Any) -> None:
    config = config_class()()
    before = getattr(config, field)
    with pytest.raises(ConfigError, match=field):
        setattr(config, field, value)
    assert getattr(config, field) == before


def test_an_impossible_value_is_not_saved(tmp_path: Path) -> None:
    config = config_class()()
    config.dropout = 3  # each assignment checks its own type; values are checked together, when saving
    with pytest.raises(ConfigError, match="dropout=3"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_lists_and_integers_take_the_declared_type() -> None:
    config = config_class()(widths=[3, 4], dropout=0, image_mean=(0, 1))
    assert config.widths == (3, 4)
    assert isinstance(config.widths, tuple)
    assert isinstance(config.dropout, float)
    assert config.image_mean == [0.0, 1.0]
    config.widths = [5]
    assert config.widths == (5,)


def test_round_trip_through_json_keeps_types(tmp_path: Path) -> None:
    config = config_class()(widths=(3, 4), image_mean=[0.5], id2label={0: "a", 1: "b", 2: "c"})
    config.save_pretrained(tmp_path)
    for again in (
        config_class().from_pretrained(tmp_path),
        config_class().from_dict(config.to_dict()),
        config_class()(**json.loads((tmp_path / "config.json").read_text())),
    ):
        assert again.to_dict() == config.to_dict()
        assert again.widths == (3, 4)
        assert again.id2label == {0: "a", 1: "b", 2: "c"}
        assert again.label2id == {"a": 0, "b": 1, "c": 2}


def test_num_classes_is_num_labels() -> None:
    config = config_class()(num_classes=5)
    assert (config.num_labels, config.num_classes, len(config.id2label)) == (5, 5, 5)
    config.num_classes = 7
    assert config.num_labels == 7
    assert build_model("toy_test", num_classes=4).classifier.out_features == 4


def test_label_override_replaces_the_names_of_the_registered_model() -> None:
    assert build_model("toy_named").config.id2label == {0: "cat", 1: "dog", 2: "cow"}
    assert build_model("toy_named", num_labels=5).config.num_labels == 5
    model = build_model("toy_named", id2label={0: "x", 1: "y"})
    assert model.config.label2id == {"x": 0, "y": 1}
    assert model.classifier.out_features == 2


def test_auto_map_is_ignored(tmp_path: Path) -> None:
    """A config.json may point at code in its repository; nothing of it is imported, and it is not saved again."""
    model = build_model("toy_test")
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    again = build_model(tmp_path)
    assert not hasattr(again.config, "auto_map")
    again.save_pretrained(tmp_path / "again")
    assert "auto_map" not in (tmp_path / "again" / "config.json").read_text()
    assert type(again).from_pretrained(tmp_path, trust_remote_code=True).config.to_dict()
    values["model_type"] = "somebody_elses"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(HybridzooError, match="not one of the zoo's"):
        build_model(tmp_path)
    assert not (tmp_path / "ran").exists()
