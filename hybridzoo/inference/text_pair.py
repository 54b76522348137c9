"""Classification of pairs of texts, each text encoded by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from hybridzoo.data.batching import length_batches
from hybridzoo.errors import InputError
from hybridzoo.inference.classifier import Prediction, check_items
from hybridzoo.inference.text import TextClassifier


class TextPairClassifier(TextClassifier):
    """As `TextClassifier`, for a model that takes two texts: `input_ids` and `pair_input_ids`.

    A text of more than `max_length` tokens keeps its beginning; the arguments are those of `TextClassifier`.
    """

    def logits(self, pairs: Sequence[Any], batch_size: int = 32, *, progress: bool = False) -> np.ndarray:
        """(N, K) float32 logits, in the order of the pairs.

        Args:
            pairs: two strings each.
            batch_size: pairs per forward.
            progress: show a bar on stderr.

        Raises:
            InputError: an item that is no pair of strings.
        """
        pairs = check_items(pairs, "pairs of texts")
        total = np.zeros((len(pairs), len(self.label_names)), np.float32)
        with tqdm(total=len(pairs), unit="pair", desc="predict", disable=not progress, leave=False) as bar:
            span = 32 * batch_size  # tokens of so many pairs are held at a time: papers are long
            for start in range(0, len(pairs), span):
                part = [_checked(pairs[i]) for i in range(start, min(start + span, len(pairs)))]
                first, second = (self.collator.encode([pair[side] for pair in part]) for side in (0, 1))
                lengths = [max(len(a), len(b)) for a, b in zip(first, second)]
                for batch in length_batches(lengths, batch_size):
                    inputs = self.collator.pad([first[i] for i in batch])
                    other = self.collator.pad([second[i] for i in batch])
                    inputs |= {f"pair_{name}": value for name, value in other.items()}
                    total[[start + i for i in batch]] = self._forward(inputs)
                    bar.update(len(batch))
        return total

    def __call__(self, pairs: Sequence[Any], batch_size: int = 32, *, progress: bool = False) -> list[Prediction]:
        """One prediction per pair, in order."""
        return self.predictions(self.logits(pairs, batch_size, progress=progress))


def _checked(pair: Any) -> tuple[str, str]:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise InputError(f"expected a pair of texts, got {type(pair).__name__} ({str(pair)[:40]!r})")
    return pair[0], pair[1]
