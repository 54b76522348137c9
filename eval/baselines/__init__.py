"""Baselines without a network, fitted in the run that scores them: `hybridzoo eval baseline:tfidf_lr TASK`.

They read the same splits as every model and are scored by the same harness.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from hybridzoo.data import Split
from hybridzoo.errors import ConfigError, UnknownNameError, unknown

# name -> (task of the data, "module:Class")
BASELINES = {"tfidf_lr": ("text-classification", "hybridzoo.eval.baselines.tfidf:TfidfLogisticRegression")}


class Baseline(Protocol):
    """What the harness asks of a baseline."""

    settings: dict[str, Any]  # stand in the result

    def fit(self, train: Split, *, seed: int = 0) -> None: ...

    def logits(self, split: Split) -> np.ndarray: ...


def list_baselines() -> list[str]:
    """Names for `baseline:NAME`."""
    return sorted(BASELINES)


def load_baseline(name: str, *, task: str) -> Baseline:
    """An unfitted baseline.

    Args:
        name: one of `list_baselines()`.
        task: of the data: `"text-classification"` or `"image-classification"`.

    Raises:
        UnknownNameError: no such baseline.
        ConfigError: a baseline for another task.
    """
    from hybridzoo.registry import resolve

    if name not in BASELINES:
        raise UnknownNameError(unknown("baseline", name, BASELINES))
    fits, target = BASELINES[name]
    if fits != task:
        raise ConfigError(f"baseline {name!r} does {fits}, but the data are for {task}")
    return resolve(target)()
