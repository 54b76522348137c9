"""Texts cut short in the first steps of a training.

Where one token among thousands decides a label, its share of the pooled states, and of the gradient, falls with the
length. In short rows it is found sooner, and what was learned there holds when the rows grow.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from hybridzoo.errors import ConfigError
from hybridzoo.training.schema import TrainingSection

_TOKENS = ("input_ids", "attention_mask", "pair_input_ids", "pair_attention_mask")


def check_length_warmup(t: TrainingSection, lengths: Any, classes: bool) -> None:
    """Raise ConfigError for values without a meaning, and for data that are no texts with a class each."""
    if not 0 <= t.length_warmup_ratio <= 1:
        raise ConfigError(f"training.length_warmup_ratio={t.length_warmup_ratio}: a share of the steps, 0 to 1")
    if t.length_warmup_start < 1:
        raise ConfigError(f"training.length_warmup_start={t.length_warmup_start}: at least 1 token")
    if t.length_warmup_ratio and (lengths is None or not classes):
        raise ConfigError("training.length_warmup_ratio cuts texts that have a class each; this run's data are others")


def length_at(step: int, total: int, longest: int, t: TrainingSection) -> int | None:
    """Tokens to which rows are cut at a step (from 0), None once they are whole.

    The first `length_warmup_ratio` of all steps fall into equal parts, in each of which rows are twice as long as in
    the one before.

    Args:
        step: about to be taken.
        total: steps of the whole training.
        longest: row of the train split, in tokens.
        t: of the recipe.
    """
    steps = t.length_warmup_ratio * total
    parts = math.ceil(math.log2(longest / t.length_warmup_start)) if longest > t.length_warmup_start else 0
    if step >= steps or not parts:
        return None
    return t.length_warmup_start * 2 ** int(parts * step / steps)


def cut(inputs: dict[str, Any], length: int | None) -> dict[str, Any]:
    """The first `length` positions of token batches (B, T), which are padded on the right; others as they are."""
    if length is None:
        return inputs
    return {
        name: x[:, :length] if name in _TOKENS and isinstance(x, Tensor) and x.dim() == 2 else x
        for name, x in inputs.items()
    }
