"""Metrics of a ranking of N samples by score, two classes: as scikit-learn defines them, in numpy."""

from __future__ import annotations

import numpy as np


def trapezoid(y: np.ndarray, x: np.ndarray) -> float:
    """Area under straight pieces between the points (x, y)."""
    return float(((y[1:] + y[:-1]) * np.diff(x)).sum() / 2)


def _counts(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At each distinct score as the threshold, largest first: true and false positives."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels) > 0
    order = scores.argsort(kind="stable")[::-1]
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # the last sample of each group of ties
    true = labels[order].cumsum()[last]
    return true, last + 1 - true


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve; NaN with samples of one class only."""
    true, false = _counts(scores, labels)
    if not true[-1] or not false[-1]:
        return float("nan")
    return trapezoid(np.append(0, true) / true[-1], np.append(0, false) / false[-1])


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Sum of precision times the gain in recall; 0 without a positive."""
    true, false = _counts(scores, labels)
    if not true[-1]:
        return 0.0
    return float((np.diff(true, prepend=0) * (true / (true + false))).sum() / true[-1])


def f1_max(scores: np.ndarray, labels: np.ndarray) -> float:
    """Largest F1 over all thresholds; NaN without a positive."""
    true, false = _counts(scores, labels)
    if not true[-1]:
        return float("nan")
    return float((2 * true / (true + false + true[-1])).max())
