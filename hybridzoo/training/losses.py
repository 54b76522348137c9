"""Classification losses and validation metrics that recipes name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hybridzoo.errors import ConfigError


def balanced_weights(labels: Sequence[int], num_labels: int) -> torch.Tensor:
    """Weight of class c: N / (C * n_c), scikit-learn's "balanced"; a sample's mean weight is 1.

    Args:
        labels: of the train split.
        num_labels: C.

    Raises:
        ConfigError: a class without samples.
    """
    counts = np.bincount(np.asarray(labels), minlength=num_labels)
    if (counts == 0).any():
        empty = ", ".join(map(str, np.flatnonzero(counts == 0)[:8]))
        raise ConfigError(f"training.class_weights=balanced: the train split has no samples of class {empty}")
    return torch.tensor(len(labels) / (num_labels * counts), dtype=torch.float32)


def classification_loss(
    logits: torch.Tensor, target: torch.Tensor, *, smoothing: float = 0.0, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy, averaged over the samples.

    Averaged over samples and not over weights, so that the mean over micro-batches is the loss of the whole batch.

    Args:
        logits: (B, C).
        target: (B,) class indices, or (B, C) probabilities (mixup's, which are smoothed already).
        smoothing: label smoothing for class indices.
        weights: (C,) per class, or None.
    """
    logits = logits.float()
    if target.is_floating_point():
        smoothing = 0.0
    weights = None if weights is None else weights.to(logits.device)
    total = F.cross_entropy(logits, target, weight=weights, label_smoothing=smoothing, reduction="sum")
    return total / len(logits)


def validation_metrics(prediction: Any) -> dict[str, float]:
    """accuracy, f1_macro, f1_weighted and balanced_accuracy from transformers' EvalPrediction of class indices."""
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    size = int(max(predicted.max(initial=0), labels.max(initial=0))) + 1
    confusion = np.bincount(labels * size + predicted, minlength=size * size).reshape(size, size).astype(np.float64)
    hits, support, guessed = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    seen = (support + guessed) > 0  # a class that occurs in neither has no F1
    f1 = np.divide(2 * hits, support + guessed, out=np.zeros(size), where=seen)
    recall = np.divide(hits, support, out=np.zeros(size), where=support > 0)
    return {
        "accuracy": float(hits.sum() / max(support.sum(), 1)),
        "f1_macro": float(f1[seen].mean()) if seen.any() else 0.0,
        "f1_weighted": float((f1 * support).sum() / max(support.sum(), 1)),
        "balanced_accuracy": float(recall[support > 0].mean()) if (support > 0).any() else 0.0,
    }
