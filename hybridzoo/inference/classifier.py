"""What text and image classification share: device, precision, and logits to labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from hybridzoo.errors import ConfigError, InputError, unknown

DTYPES = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}


class Prediction(TypedDict):
    """`label` is None when the best score is below the abstain threshold; `scores` are probabilities, best first."""

    label: str | None
    score: float
    scores: dict[str, float]


class Classifier:
    """A model in eval mode on a device.

    Args:
        model: a classification model whose output has `logits` (B, K).
        device: left out: a GPU if there is one, else the CPU.
        dtype: "float32", or "bfloat16" for autocast (weights stay as they are).
        abstain: give no label when the best probability is below this.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        abstain: float | None = None,
    ):
        if dtype not in DTYPES:
            raise ConfigError(unknown("dtype", str(dtype), DTYPES))
        if abstain is not None and not 0 <= abstain <= 1:
            raise ConfigError(f"abstain is a probability from 0 to 1, got {abstain}")
        self.device = pick_device(device)
        self.dtype = DTYPES[dtype]
        self.abstain = abstain
        self.model = model.to(self.device).eval()
        names: Mapping[int, str] = model.config.id2label
        self.label_names = tuple(str(names[i]) for i in range(len(names)))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _forward(self, inputs: Mapping[str, torch.Tensor]) -> np.ndarray:
        """(B, K) float32 logits."""
        inputs = {k: v.to(self.device, non_blocking=True) for k, v in inputs.items() if k != "labels"}
        with torch.inference_mode(), self._autocast():
            return self.model(**inputs).logits.float().cpu().numpy()

    def predictions(self, logits: np.ndarray) -> list[Prediction]:
        """Labels and scores of (N, K) logits; probabilities by softmax, by sigmoid for multi-label models."""
        logits = np.asarray(logits, np.float64)
        if getattr(self.model.config, "problem_type", None) == "multi_label_classification":
            scores = 1 / (1 + np.exp(-logits))
        else:
            scores = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        made: list[Prediction] = []
        for row in scores:
            order = np.argsort(-row, kind="stable")
            best = float(row[order[0]])
            sure = self.abstain is None or best >= self.abstain
            made.append(
                {
                    "label": self.label_names[order[0]] if sure else None,
                    "score": best,
                    "scores": {self.label_names[i]: float(row[i]) for i in order},
                }
            )
        return made


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        ConfigError: no device of that name, or CUDA without a usable GPU.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {str(device)!r}; e.g. 'cpu', 'cuda', 'cuda:1', 'mps'") from error
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {str(device)!r} was asked for, but this torch ({torch.__version__}) sees no CUDA GPU"
        )
    return picked


def check_items(items: Any, what: str) -> Sequence[Any]:
    """A sequence of items; a single one is the most frequent mistake and is named."""
    if isinstance(items, (str, bytes, Path)) or not isinstance(items, Sequence):
        raise InputError(f"expected a list of {what}, got {type(items).__name__}; put a single one into a list")
    return items


def load_classifier(model: Any, **options: Any) -> Any:
    """A `TextClassifier`, `TextPairClassifier` or `ImageClassifier`, by what the model takes.

    Args:
        model: a ZooModel.
        **options: of the class.

    Raises:
        ConfigError: the model does not classify texts or images.
    """
    from hybridzoo.inference.image import ImageClassifier
    from hybridzoo.inference.text import TextClassifier
    from hybridzoo.inference.text_pair import TextPairClassifier

    classes = {
        "text-classification": TextClassifier,
        "text-pair-classification": TextPairClassifier,
        "image-classification": ImageClassifier,
    }
    task = getattr(model, "task", None)
    if task not in classes:
        raise ConfigError(
            f"{type(model).__name__} does {task or 'no known task'}; predict needs {' or '.join(classes)}"
        )
    return classes[task](model, **options)
