"""Predictions as files, and scores as a pure function of them."""

from __future__ import annotations

import gzip
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hybridzoo.errors import UnknownNameError
from hybridzoo.eval.predictions import PredictionFile, Predictions, score
from hybridzoo.eval.schema import ResultError
from hybridzoo.eval.tasks import TASKS, list_tasks, load_task

NAMES = ("negative", "neutral", "positive")


def predictions(rows: int = 200, classes: int = 3, seed: int = 0) -> tuple[Predictions, np.ndarray]:
    random = np.random.RandomState(seed)
    labels = random.randint(0, classes, rows)
    logits = random.randn(rows, classes).astype(np.float32)
    logits[np.arange(rows), labels] += 1
    return Predictions.from_logits([f"s/{i}" for i in range(rows)], labels, logits), logits


def file(**changes: Any) -> PredictionFile:
    made = PredictionFile("vader", NAMES, predictions()[0])
    return replace(made, **changes)


def test_file_round_trip_gives_equal_scores() -> None:
    written = PredictionFile.from_bytes(file().to_bytes())
    again = PredictionFile.from_bytes(written.to_bytes())
    assert score(written, TASKS["vader"]) == score(again, TASKS["vader"])
    assert written.to_bytes() == file().to_bytes()
    assert written.test.ids[7] == "s/7"
    np.testing.assert_allclose(written.test.logits, predictions()[1], rtol=1e-6)


def test_scores_by_hand() -> None:
    logits = np.array([[2.0, 0, 0], [0, 2.0, 0], [0, 2.0, 0], [0, 0, 2.0]])
    made = Predictions.from_logits(list("abcd"), [0, 1, 2, 2], logits)
    metrics, details = score(PredictionFile("vader", NAMES, made), TASKS["vader"])
    assert metrics["accuracy"].value == 75
    assert metrics["f1_macro"].value == pytest.approx(100 * (1 + 2 / 3 + 2 / 3) / 3, abs=1e-4)
    wrong, right = -np.log(1 / (np.e**2 + 2)), -np.log(np.e**2 / (np.e**2 + 2))
    assert metrics["nll"].value == pytest.approx((3 * right + wrong) / 4, abs=1e-5)
    assert details["confusion_matrix"]["counts"] == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert details["per_class"]["positive"] == {"precision": 100.0, "recall": 50.0, "f1": 66.6667, "support": 2.0}


def test_error_bars_are_seeded_and_shrink() -> None:
    task = TASKS["vader"]
    small, large = (PredictionFile("vader", NAMES, predictions(n)[0]) for n in (100, 2500))
    assert score(small, task)[0] == score(small, task)[0]
    assert score(small, task, seed=1)[0] != score(small, task)[0]
    ratio = score(small, task)[0]["accuracy"].stderr / score(large, task)[0]["accuracy"].stderr
    assert 3.5 < ratio < 7  # 5 expected
    assert score(small, task, resamples=0)[0]["accuracy"].stderr is None


def test_temperature_is_fitted_on_validation_only() -> None:
    test, logits = predictions(seed=1)
    validation, other = predictions(400, seed=2)
    sharp = Predictions.from_logits(validation.ids, validation.labels, other * 6)
    made = PredictionFile("vader", NAMES, Predictions.from_logits(test.ids, test.labels, logits * 6), sharp)
    metrics, details = score(PredictionFile.from_bytes(made.to_bytes()), TASKS["vader"])
    assert metrics["temperature"].value > 3
    assert metrics["nll_calibrated"].value < metrics["nll"].value
    assert metrics["ece_calibrated"].value < metrics["ece"].value
    assert len(details["reliability_calibrated"]["count"]) == 15
    plain, _ = score(replace(made, validation=None), TASKS["vader"])
    assert plain["accuracy"] == metrics["accuracy"]
    assert "temperature" not in plain


def test_many_classes_keep_the_best_five() -> None:
    full, logits = predictions(300, 1000)
    made = PredictionFile("imagenet1k", tuple(map(str, range(1000))), full)
    read = PredictionFile.from_bytes(made.to_bytes())
    assert read.test.logits is None
    assert read.test.top is not None
    np.testing.assert_array_equal(read.test.top, np.argsort(-logits, axis=1)[:, :5])
    metrics, details = score(read, TASKS["imagenet1k"])
    labels = full.labels
    assert metrics["top1"].value == pytest.approx(100 * (logits.argmax(1) == labels).mean(), abs=1e-4)
    top5 = [label in row for label, row in zip(labels, np.argsort(-logits, axis=1)[:, :5])]
    assert metrics["top5"].value == pytest.approx(100 * np.mean(top5), abs=1e-4)
    shifted = logits - logits.max(1, keepdims=True)
    nll = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(300), labels]
    assert metrics["nll"].value == pytest.approx(nll.mean(), rel=1e-4)
    assert "confusion_matrix" not in details
    with pytest.raises(ResultError, match="needs all logits"):
        score(read, replace(TASKS["imagenet1k"], metrics=("top1", "brier")))


def test_nan_logits_are_refused() -> None:
    with pytest.raises(ResultError, match="NaN or infinite logits, first for b"):
        Predictions.from_logits(["a", "b"], [0, 1], np.array([[0.0, 1.0], [np.nan, 0.0]]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"plain text",
        gzip.compress(b"not json"),
        gzip.compress(b'{"predictions": 1}\n'),
        gzip.compress(b'{"predictions": 9, "task": "t", "label_names": []}\n'),
        file().to_bytes()[:200],
    ],
    ids=["empty", "plain", "not-json", "no-head", "other-version", "truncated"],
)
def test_damaged_files(data: bytes) -> None:
    with pytest.raises(ResultError, match=r"damaged|format 9"):
        PredictionFile.from_bytes(data)


def test_tasks() -> None:
    assert {
        "imagenet1k",
        "fashion_mnist",
        "fashion_mnist_mini",
        "imdb",
        "twitter_airline",
        "sentiment140",
        "vader",
    } <= set(list_tasks())
    assert load_task("imdb", "paper").name == "imdb_paper"
    assert load_task("imdb_paper", "official").name == "imdb"
    assert all(t.primary in t.metrics for t in TASKS.values())
    with pytest.raises(UnknownNameError, match="did you mean 'imdb'"):
        load_task("imbd")
    with pytest.raises(UnknownNameError, match="unknown protocol"):
        load_task("vader", "paper")
