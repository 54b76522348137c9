"""evaluate: real models on the embedded sets, results that can be scored again, tracks, labels, baselines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybridzoo import build_model
from hybridzoo.data import load_data
from hybridzoo.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from hybridzoo.eval import PredictionFile, Result, ResultError, evaluate, read_results, rescore, run_task
from hybridzoo.eval.predictors import match_labels
from hybridzoo.eval.timm_csv import COLUMNS, append_row


def test_image_run_from_folder_to_file_and_back(image_folder: Path, tmp_path: Path) -> None:
    done = run_task(image_folder, "fashion_mnist_mini", out=tmp_path / "out", limit=60, device="cpu", batch_size=16)
    assert done.path is not None
    result = Result.from_json(done.path)
    assert result == done.result
    assert [r for _, r in read_results(tmp_path / "out")] == [result]
    assert (result.track, result.task.dataset.n_used, result.task.dataset.n_total) == ("subset", 60, 500)
    assert result.model.name == "tiny_image"
    assert result.model.settings["image_size"] == 32
    assert result.model.weights is not None
    assert len(result.model.weights.sha256 or "") == 64
    assert rescore(done.path) == result.metrics
    reference = result.provenance.predictions
    assert reference is not None
    file = PredictionFile.read(done.path.parent / reference.path, reference.sha256)
    split = load_data("fashion_mnist_mini")["test"]
    truth = dict(zip(split.ids, split.labels))
    assert [truth[i] for i in file.test.ids] == file.test.labels.tolist()
    assert file.test.logits is not None
    accuracy = 100 * (file.test.logits.argmax(1) == file.test.labels).mean()
    assert result.metrics["top1"].value == pytest.approx(accuracy, abs=1e-4)
    counts = np.array(result.details["confusion_matrix"]["counts"])
    assert counts.sum() == 60
    assert np.trace(counts) / 60 * 100 == pytest.approx(accuracy, abs=1e-4)
    assert str(tmp_path) not in done.path.read_text()  # no local paths in a file that is committed


def test_the_same_run_twice_is_two_files_with_equal_scores(image_folder: Path, tmp_path: Path) -> None:
    runs = [
        run_task(image_folder, "fashion_mnist_mini", out=tmp_path / "out", limit=20, device="cpu") for _ in range(2)
    ]
    assert runs[0].path != runs[1].path
    assert runs[0].result.metrics == runs[1].result.metrics
    assert runs[0].result.model == runs[1].result.model
    assert len(read_results(tmp_path / "out")) == 2


def test_changed_predictions_are_noticed(image_folder: Path, tmp_path: Path) -> None:
    done = run_task(image_folder, "fashion_mnist_mini", out=tmp_path, limit=20, device="cpu")
    assert done.path is not None
    gz = next(done.path.parent.glob("*.gz"))
    gz.write_bytes(replace(done.predictions, task="other").to_bytes())
    with pytest.raises(ResultError, match="is not the file that was scored"):
        rescore(done.path)
    gz.unlink()
    with pytest.raises(ResultError, match="cannot be read"):
        rescore(done.path)


def test_text_run_with_calibration(text_model: Any, tokenizer: Any) -> None:
    result = evaluate(
        text_model, "vader", limit=40, tokenizer=tokenizer, calibrate=True, device="cpu", name="mine.v1", batch_size=64
    )
    assert (result.model.name, result.model.tag) == ("mine", "v1")
    assert result.model.settings == {
        "max_length": text_model.config.max_length,
        "long_text": "truncate",
        "preprocess": "none",
        "temperature": 1.0,
    }
    assert {"accuracy", "f1_macro", "f1_weighted", "ece", "temperature", "ece_calibrated"} <= set(result.metrics)
    assert result.task.primary == "f1_macro"
    assert result.task.dataset.sha256 == load_data("vader").info.sha256


def test_run_folder_gives_recipe_and_seed(text_folder: Path) -> None:
    recipe = {"title": "Tiny", "model": {"name": "roberta_bilstm_test"}, "training": {"seed": 7}}
    (text_folder / "recipe.yaml").write_text(json.dumps(recipe))
    result = evaluate(text_folder, "vader", limit=10, device="cpu")
    assert result.run is not None
    assert (result.run.recipe, result.run.training_seed) == ("Tiny", 7)
    assert result.model.full_name == "roberta_bilstm_test.tiny_text"
    assert result.model.weights is not None
    assert result.model.weights.uri == "local-dir:tiny_text"


def test_labels_are_matched_by_name(text_model: Any, tokenizer: Any) -> None:
    names = text_model.config.id2label
    straight = run_task(text_model, "vader", limit=30, tokenizer=tokenizer, device="cpu").predictions.test.logits
    text_model.config.id2label = {0: names[2].upper(), 1: names[0].upper(), 2: names[1].upper()}
    turned = run_task(text_model, "vader", limit=30, tokenizer=tokenizer, device="cpu").predictions.test.logits
    assert straight is not None
    np.testing.assert_allclose(turned, straight[:, [1, 2, 0]])


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        (("a", "b"), ("a", "b"), None),
        (("B", "a"), ("a", "b"), [1, 0]),
        (("LABEL_0", "LABEL_1"), ("a", "b"), None),
    ],
)
def test_match_labels(model: tuple, data: tuple, expected: list[int] | None) -> None:
    assert match_labels(model, data, "m") == expected


def test_labels_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"m predicts yes, no, the data has a, b; set id2label"):
        match_labels(("yes", "no"), ("a", "b"), "m")
    with pytest.raises(ConfigError, match=r"m has 3 classes .* the data 2"):
        match_labels(("a", "b", "c"), ("a", "b"), "m")


def test_random_weights_are_called_so() -> None:
    with pytest.warns(UserWarning, match="random ones are evaluated"):
        result = evaluate("iformer_test", "fashion_mnist_mini", limit=20, device="cpu")
    assert result.model.weights is None
    assert "random weights" in result.provenance.notes


def test_baseline_is_fitted_on_the_train_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    from hybridzoo.eval import harness

    whole = load_data("vader", sources="tweets")
    monkeypatch.setattr(harness, "load_data", lambda *args, **kwargs: whole)
    done = run_task("baseline:tfidf_lr", "vader", out=tmp_path)
    assert done.result.model.name == "baseline_tfidf_lr"
    assert done.result.metrics["accuracy"].value > 100 * np.bincount(whole["test"].labels).max() / len(whole["test"])
    assert done.path is not None
    assert rescore(done.path) == done.result.metrics


@pytest.mark.parametrize(
    ("model", "task", "options", "error", "message"),
    [
        ("iformer_test", "vader", {}, ConfigError, "does image-classification, but task 'vader'"),
        ("iformr_test", "vader", {}, UnknownNameError, "did you mean 'iformer_test'"),
        ("iformer_test", "vadr", {}, UnknownNameError, "did you mean 'vader'"),
        ("iformer_test", "fashion_mnist", {}, DataError, "needs root"),
        ("iformer_test", "fashion_mnist_mini", {"limit": 0}, DataError, "limit must be at least 1"),
        ("iformer_test", "fashion_mnist_mini", {"protocol": "paper"}, UnknownNameError, "unknown protocol"),
        ("baseline:tfidf", "vader", {}, UnknownNameError, "unknown baseline"),
        ("baseline:tfidf_lr", "fashion_mnist_mini", {}, ConfigError, "but the data are for image-classification"),
        ("./no_such_folder/x", "vader", {}, (CheckpointError, UnknownNameError, OSError), "no_such_folder"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*random ones are evaluated")
def test_wrong_calls(model: str, task: str, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate(model, task, device="cpu", **options)


def test_folder_for_results_is_checked_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultError, match="cannot write into"):
        evaluate("no_such_model", "vader", out=tmp_path / "file" / "results")


def test_timm_columns(tmp_path: Path) -> None:
    model = build_model("iformer_test").eval()
    result = evaluate(model, "fashion_mnist_mini", limit=20, device="cpu", name="iformer_test")
    path = tmp_path / "results.csv"
    append_row(result, path)
    append_row(result, path)
    head, first, second = path.read_text().splitlines()
    assert head == "model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation" == ",".join(COLUMNS)
    row = dict(zip(COLUMNS, first.split(",")))
    assert first == second
    assert float(row["top1"]) + float(row["top1_err"]) == pytest.approx(100)
    assert (row["model"], row["img_size"], row["crop_pct"]) == ("iformer_test", "32", "0.9")
    assert float(row["param_count"]) == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, abs=0.006)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="other columns than timm's"):
        append_row(result, tmp_path / "other.csv")
