"""Metrics against scikit-learn, and against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hybridzoo.eval.metrics import (
    averages,
    bootstrap_errors,
    brier_score,
    confusion_matrix,
    expected_calibration_error,
    fit_temperature,
    log_softmax,
    negative_log_likelihood,
    per_class,
    reliability,
    top_k_hits,
)
from hybridzoo.eval.metrics.plots import save_confusion_matrix

sk = pytest.importorskip("sklearn.metrics")


def case(rows: int, classes: int, seed: int, sharp: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    labels = random.randint(0, classes, rows)
    logits = random.randn(rows, classes) * sharp
    logits[np.arange(rows), labels] += 1.0
    return logits, labels


@pytest.mark.parametrize(("rows", "classes", "seed"), [(500, 2, 0), (732, 3, 1), (300, 10, 2), (12, 6, 3)])
def test_against_scikit_learn(rows: int, classes: int, seed: int) -> None:
    logits, labels = case(rows, classes, seed)
    predicted = logits.argmax(1)
    matrix = confusion_matrix(labels, predicted, classes)
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(labels, predicted, labels=range(classes)))
    ours = averages(matrix)
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    for how in ("macro", "weighted"):
        p, r, f, _ = sk.precision_recall_fscore_support(labels, predicted, average=how, zero_division=0)
        assert [ours[f"{n}_{how}"] for n in ("precision", "recall", "f1")] == pytest.approx([p, r, f])
    p, r, f, s = sk.precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0)
    scores = per_class(matrix)
    for name, expected in (("precision", p), ("recall", r), ("f1", f), ("support", s)):
        np.testing.assert_allclose(scores[name], expected)
    nll = negative_log_likelihood(logits, labels).mean()
    assert nll == pytest.approx(sk.log_loss(labels, np.exp(log_softmax(logits)), labels=range(classes)))
    if classes > 3:
        hits = top_k_hits(logits, labels, 3).mean()
        assert hits == pytest.approx(sk.top_k_accuracy_score(labels, logits, k=3, labels=range(classes)))


def test_brier_against_scikit_learn() -> None:
    logits, labels = case(400, 2, 5)
    binary = sk.brier_score_loss(labels, np.exp(log_softmax(logits))[:, 1])
    assert brier_score(logits, labels).mean() == pytest.approx(2 * binary)  # ours sums over both classes


def test_absent_class_does_not_count_in_the_macro_mean() -> None:
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    ours = averages(confusion_matrix(labels, predicted, 5))
    assert ours["f1_macro"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))


def test_ties_go_to_the_lower_class() -> None:
    logits = np.array([[1.0, 1.0, 1.0, 0.0]])
    assert top_k_hits(logits, np.array([1]), 1).tolist() == [False]
    assert top_k_hits(logits, np.array([1]), 2).tolist() == [True]


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, False, True, True])
    # bins 0.933-1.0: accuracy 0.5, confidence 0.95; 0.533-0.6: accuracy 1, confidence 0.55
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)
    table = reliability(confidence, correct)
    assert table["count"].sum() == 4
    assert table["count"][14] == 2
    assert reliability(np.array([1 / 15, 0.0, 1.0]), np.ones(3))["count"].tolist() == [2, *[0] * 13, 1]


def test_calibrated_scores_have_a_small_error() -> None:
    random = np.random.RandomState(0)
    confidence = random.uniform(0.2, 1, 20000)
    correct = random.uniform(size=20000) < confidence
    assert expected_calibration_error(confidence, correct) < 0.02
    assert expected_calibration_error(np.minimum(confidence + 0.2, 1), correct) > 0.1


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_temperature_is_found(truth: float) -> None:
    random = np.random.RandomState(0)
    logits = random.randn(20000, 4) * 2
    chances = np.exp(log_softmax(logits))
    labels = (chances.cumsum(1) < random.uniform(size=(20000, 1))).sum(1).clip(0, 3)
    found = fit_temperature(logits * truth, labels)
    assert found == pytest.approx(truth, rel=0.04)
    best = negative_log_likelihood(logits * truth / found, labels).mean()
    for other in (found * 0.97, found * 1.03):
        assert negative_log_likelihood(logits * truth / other, labels).mean() > best


def test_temperature_stays_in_bounds() -> None:
    logits = np.array([[5.0, 0.0], [0.0, 5.0]])
    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(0.05)  # separable: as sharp as allowed
    assert fit_temperature(logits, np.array([1, 0])) == pytest.approx(20.0)  # always wrong: as flat as allowed


def test_bootstrap_matches_the_binomial_error() -> None:
    hits = np.arange(1000) < 800
    errors = bootstrap_errors(lambda rows: {"accuracy": hits[rows].mean()}, 1000, seed=0)
    assert errors["accuracy"] == pytest.approx(np.sqrt(0.8 * 0.2 / 1000), rel=0.1)
    assert errors == bootstrap_errors(lambda rows: {"accuracy": hits[rows].mean()}, 1000, seed=0)
    assert errors != bootstrap_errors(lambda rows: {"accuracy": hits[rows].mean()}, 1000, seed=1)


def test_confusion_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    path = tmp_path / "c.png"
    assert save_confusion_matrix(np.array([[5, 1], [0, 9]]), ["no", "yes"], path, title="t")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
    assert not save_confusion_matrix(np.eye(41), [str(i) for i in range(41)], tmp_path / "many.png")
    assert not (tmp_path / "many.png").exists()
