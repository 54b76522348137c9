"""How far the scores can be taken as probabilities. N samples, K classes; logits (N, K), labels (N,)."""

from __future__ import annotations

import numpy as np

BINS = 15


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(N, K) log-probabilities in float64."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) -log p(label), in nats."""
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def brier_score(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) squared distance of the probabilities from the one-hot label, summed over classes: 0 … 2 (Brier 1950)."""
    probabilities = np.exp(log_softmax(logits))
    probabilities[np.arange(len(labels)), labels] -= 1
    return (probabilities**2).sum(axis=1)


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> dict[str, np.ndarray]:
    """Samples by confidence in equal-width bins (lower border open): count, mean confidence and accuracy of each."""
    which = np.clip(np.ceil(np.asarray(confidence) * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    filled = np.maximum(count, 1)
    return {
        "count": count,
        "confidence": np.bincount(which, weights=confidence, minlength=bins) / filled,
        "accuracy": np.bincount(which, weights=np.asarray(correct, float), minlength=bins) / filled,
    }


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Mean distance of accuracy and confidence over bins, weighted by their size, in 0 … 1 (Guo et al. 2017, Eq. 3)."""
    table = reliability(confidence, correct, bins)
    gap = np.abs(table["accuracy"] - table["confidence"])
    return float((gap * table["count"]).sum() / max(table["count"].sum(), 1))


def fit_temperature(logits: np.ndarray, labels: np.ndarray, bounds: tuple[float, float] = (0.05, 20.0)) -> float:
    """The T that minimises the mean negative log-likelihood of logits / T (Guo et al. 2017, section 4.2).

    The loss is convex in 1/T, so bisection on its derivative finds the minimum. Fit it on validation data.

    Args:
        logits: (N, K).
        labels: (N,).
        bounds: T is kept inside; perfectly separable data would send it to 0.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    of_label = logits[np.arange(len(labels)), labels]

    def slope(scale: float) -> float:
        probabilities = np.exp(log_softmax(logits * scale))
        return float(((probabilities * logits).sum(axis=1) - of_label).mean())

    low, high = 1 / bounds[1], 1 / bounds[0]
    if slope(low) >= 0:
        return float(bounds[1])
    if slope(high) <= 0:
        return float(bounds[0])
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)
