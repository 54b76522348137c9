"""Accuracy, precision, recall and F1 from a confusion matrix. N samples, K classes."""

from __future__ import annotations

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) counts, row = true class, column = predicted class.

    Args:
        labels, predicted: (N,) class indices in 0 … K-1.
        classes: K.
    """
    cells = np.asarray(labels, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def per_class(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """(K,) precision, recall, F1 in 0 … 1 and support. A class never predicted has precision 0, one without samples
    recall 0.
    """
    hits = np.diagonal(matrix).astype(float)
    support, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    precision = _ratio(hits, predicted)
    recall = _ratio(hits, support)
    f1 = _ratio(2 * hits, support + predicted)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


def averages(matrix: np.ndarray) -> dict[str, float]:
    """Accuracy, and macro (over classes that occur) and support-weighted precision, recall and F1, in 0 … 1.

    "Occur" is scikit-learn's rule: a class counts in the macro mean when it is among the labels or the predictions.
    """
    scores = per_class(matrix)
    present = (matrix.sum(axis=1) + matrix.sum(axis=0)) > 0
    total = matrix.sum()
    result = {"accuracy": float(np.trace(matrix) / total)}
    for name in ("precision", "recall", "f1"):
        result[f"{name}_macro"] = float(scores[name][present].mean())
        result[f"{name}_weighted"] = float((scores[name] * scores["support"]).sum() / total)
    return result


def top_k_hits(logits: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """(N,) bool: the true class is among the k largest of (N, K) logits; of equal logits the lower class index comes
    first.
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return (order == np.asarray(labels)[:, None]).any(axis=1)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)
