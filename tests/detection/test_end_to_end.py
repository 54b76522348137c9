"""A detector of the zoo through evaluation, rescoring, training, pipeline and command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hybridzoo import build_model
from hybridzoo.cli import app
from hybridzoo.data import load_data
from hybridzoo.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved detector of one class, with random weights."""
    path = tmp_path_factory.mktemp("model") / "detector"
    model = build_model("co_detr_test", num_labels=1, shortest_edge=96, longest_edge=128)
    model.config.id2label, model.config.label2id = {0: "tree"}, {"tree": 0}
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "trees.png"
    load_data("trees_mini")["test"][0]["image"].save(path)
    return path


def test_evaluation_writes_records_that_score_the_same_again(folder: Path, tmp_path: Path) -> None:
    from hybridzoo.eval import rescore, run_task

    done = run_task(str(folder), "trees_mini", out=tmp_path, batch_size=2, name="mine", device="cpu")
    result = done.result
    assert result.task.primary == "ap"
    assert result.task.dataset.n_used == 5
    assert result.track == "mini"
    assert result.model.settings["max_detections"] >= 100
    assert {"ap", "ap50", "ap_small", "ar_100"} <= set(result.metrics)
    assert result.metrics["ap"].stderr is not None
    assert result.details["objects"] == 133  # 150 without the crowd regions
    assert done.path is not None
    assert rescore(done.path) == result.metrics
    with pytest.raises(ConfigError, match="calibrate"):
        run_task(str(folder), "trees_mini", calibrate=True)
    with pytest.raises(ConfigError, match="a baseline needs a task of classification"):
        run_task("baseline:tfidf_lr", "trees_mini")
    part = run_task(str(folder), "trees_mini", limit=2, device="cpu").result
    assert (part.track, part.task.dataset.n_used) == ("subset", 2)


def test_a_damaged_records_file_is_refused(folder: Path, tmp_path: Path) -> None:
    from hybridzoo.eval import rescore, run_task
    from hybridzoo.eval.schema import ResultError

    done = run_task(str(folder), "trees_mini", limit=1, out=tmp_path, device="cpu")
    assert done.path is not None
    records = next(tmp_path.rglob("*.predictions.jsonl.gz"))
    records.write_bytes(records.read_bytes()[:-20])
    with pytest.raises(ResultError, match="is not the file that was scored"):
        rescore(done.path)


def test_a_model_of_other_classes_is_refused() -> None:
    from hybridzoo.eval import run_task

    with pytest.raises(ConfigError, match="5 classes"):
        run_task(build_model("co_detr_test"), "trees_mini", limit=1, device="cpu")
    with pytest.raises(ConfigError, match="object-detection"):
        run_task("co_detr_test", "fashion_mnist_mini", limit=1)


def test_the_pipeline_of_transformers_gives_the_same_boxes(folder: Path, photo: Path) -> None:
    from transformers import pipeline

    from hybridzoo.inference.detection import Detector

    detect: Any = pipeline("object-detection", model=str(folder), device="cpu")
    theirs = detect(str(photo), threshold=0.0)
    ours = Detector(build_model(folder), device="cpu", threshold=0.0)([str(photo)])[0]
    assert len(theirs) == len(ours) > 0
    for one, other in zip(theirs, ours):
        assert one["label"] == other["label"] == "tree"
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        np.testing.assert_allclose(list(one["box"].values()), other["box"], atol=1.01)  # theirs are whole pixels


def test_trained_by_a_recipe_to_a_folder_with_results(tmp_path: Path) -> None:
    from hybridzoo.training import recipe_from_dict, train

    recipe = recipe_from_dict(
        {
            "title": "test",
            "model": {"name": "co_detr_test", "config": {"shortest_edge": 64, "longest_edge": 64}},
            "data": {"name": "trees_mini"},
            "training": {
                "max_steps": 3,
                "batch_size": 2,
                "scheduler": "step",
                "milestones": [0.7],
                "lr_scales": {"backbone": 0.1},
                "ema_decay": 0.9,
                "auxiliary_heads": False,
                "weights_dtype": "fp16",
                "box_augment": {"hflip": 0.5, "crop_scale": [0.5, 1.0]},
            },
            "evaluation": {"tasks": ["trees_mini"], "metric": "ap", "batch_size": 3},
        }
    )
    run = train(recipe, tmp_path / "run")
    assert run.status == "finished"
    assert set(run.metrics) == {"ap", "ap50", "ap75", "loss"}
    assert len(run.results) == 1
    assert (run.folder / "preprocessor_config.json").is_file()
    config = build_model(run.folder).config
    assert config.id2label == {0: "tree"}
    assert not config.has_auxiliary_heads
    entries = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert any("eval_ap" in entry for entry in entries)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training": {"augment": {"hflip": 0.5}}}, "training.box_augment holds"),
        ({"training": {"label_smoothing": 0.1}}, "label_smoothing is for classifiers"),
        ({"evaluation": {"metric": "accuracy"}}, "unknown metric 'accuracy'"),
        ({"training": {"box_augment": {"hflp": 1}}}, "did you mean"),
        ({"training": {"box_augment": {"lsj": [0.1, 2.0]}}}, "needs a model with pad_size"),
        ({"data": {"name": "fashion_mnist_mini"}}, "detects objects, but fashion_mnist_mini is data for"),
        ({"training": {"lr_scales": {"bakcbone": 0.1}}}, "did you mean 'backbone'"),
    ],
)
def test_recipes_that_do_not_fit(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    from hybridzoo.training import recipe_from_dict, train

    values: dict[str, Any] = {
        "model": {"name": "co_detr_test"},
        "data": {"name": "trees_mini"},
        "training": {"max_steps": 1},
        "evaluation": {"metric": "ap"},
    }
    for section, keys in change.items():
        values[section] = {**values[section], **keys}
    with pytest.raises(ConfigError, match=words):
        train(recipe_from_dict(values), tmp_path / "run")


def test_a_model_without_auxiliary_heads_cannot_drop_them(tmp_path: Path) -> None:
    from hybridzoo.training import recipe_from_dict, train

    values = {
        "model": {"name": "iformer_test"},
        "data": {"name": "fashion_mnist_mini"},
        "training": {"max_steps": 1, "auxiliary_heads": False},
    }
    with pytest.raises(ConfigError, match="has no auxiliary heads"):
        train(recipe_from_dict(values), tmp_path / "run")


def test_predict_and_eval_from_the_command_line(folder: Path, photo: Path, tmp_path: Path) -> None:
    def call(*words: Any) -> Any:
        return CliRunner().invoke(app, [str(w) for w in words])

    done = call("predict", folder, photo, "--out", tmp_path / "boxes.png", "--threshold", "0.01", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "tree" in done.output
    assert (tmp_path / "boxes.png").is_file()
    done = call("predict", folder, photo, "--format", "jsonl", "-o", tmp_path / "boxes.jsonl", "--device", "cpu")
    assert done.exit_code == 0, done.output
    done = call("eval", folder, "trees_mini", "--out", tmp_path / "results", "--errors", "2", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "ap_small" in done.output
    assert list((tmp_path / "results").rglob("*.curves.png"))
    assert list((tmp_path / "results").rglob("*.errors/*.png"))
    done = call("predict", "iformer_mini", photo, "--out", tmp_path / "x.png")
    assert done.exit_code != 0
    assert "is for detectors" in (done.output + str(done.exception))
