"""Multi-query associative recall (MQAR): a synthetic task that measures recall, made on the fly.

A sequence lists key-value pairs, then asks for them: at the place of a key the model must give its value as the next
token (which does not stand in the sequence). Gaps between the list and a question follow a power law, so that most are
short and some long. Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient Language Models", section
4 and appendix E; the setting that the DeltaNet paper uses is 512 tokens and 64 pairs. The numbers are drawn here by a
generator of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hybridzoo.data.text_stream import IGNORED
from hybridzoo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MqarOptions:
    """The task.

    Attributes:
        vocab_size: V; token 0 is never a key or value, keys are 1 to V/2 - 1, values V/2 to V - 1.
        sequence_length: T, even.
        pairs: key-value pairs of a sequence, at most T / 4.
        power: exponent a of the power law; the gap g has probability proportional to a * g ** (a - 1).
        noise: fill the places between questions with random tokens, as the authors do; else with 0.
    """

    vocab_size: int = 8192
    sequence_length: int = 256
    pairs: int = 32
    power: float = 0.01
    noise: bool = True

    def __post_init__(self) -> None:
        if self.sequence_length % 2 or not 1 <= self.pairs <= self.sequence_length // 4:
            raise ConfigError(
                f"MQAR needs an even sequence_length ({self.sequence_length}) and 1 to sequence_length / 4 pairs "
                f"({self.pairs}): each pair takes two tokens in the list and two where it is asked for"
            )
        if self.vocab_size // 2 - 1 < self.pairs:
            raise ConfigError(
                f"vocab_size={self.vocab_size} has {self.vocab_size // 2 - 1} keys, too few for {self.pairs} pairs"
            )
        if not 0 < self.power <= 1:
            raise ConfigError(f"power={self.power} must lie in (0, 1]")


def make_mqar(options: MqarOptions, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One sequence.

    Args:
        options: the task.
        rng: where the numbers come from.

    Returns:
        input_ids (T,) and labels (T,) int64. labels[t] is the answer where token t - 1 asks (a causal model shifts them
        by one), -100 elsewhere.
    """
    half, listed = options.vocab_size // 2, 2 * options.pairs
    keys = 1 + rng.choice(half - 1, options.pairs, replace=False)
    values = half + rng.choice(options.vocab_size - half, options.pairs, replace=False)
    slots = (options.sequence_length - listed) // 2  # a question takes its token and the answer after it
    weights = options.power * np.arange(1, slots + 1, dtype=np.float64) ** (options.power - 1)
    gaps = rng.choice(slots, options.pairs, replace=False, p=weights / weights.sum())
    ids = np.zeros(options.sequence_length, dtype=np.int64)
    ids[0:listed:2], ids[1:listed:2] = keys, values
    asked = listed + 2 * gaps
    if options.noise:
        ids[listed:] = rng.integers(1, options.vocab_size, options.sequence_length - listed)
    ids[asked] = keys
    labels = np.full(options.sequence_length, IGNORED, dtype=np.int64)
    labels[asked + 1] = values
    return ids, labels


class Mqar(Dataset):
    """`size` sequences, each a function of (seed, epoch, index): nothing is stored, and no epoch repeats another.

    Args:
        options: the task.
        size: sequences of an epoch.
        seed: of all numbers. Train, validation and test differ in `part`.
        part: number of the split.
    """

    def __init__(self, options: MqarOptions, size: int, *, seed: int = 0, part: int = 0):
        self.options, self.size, self.seed, self.part = options, size, seed, part

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: Any) -> dict[str, torch.Tensor]:
        return {k: v[0] for k, v in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Batch of keys (with `epoch` and `index`) or plain indices: input_ids and labels (B, T) int64."""
        made = [
            make_mqar(
                self.options,
                np.random.default_rng([self.seed, self.part, int(getattr(k, "epoch", 0)), int(getattr(k, "index", k))]),
            )
            for k in keys
        ]
        return {
            "input_ids": torch.from_numpy(np.stack([ids for ids, _ in made])),
            "labels": torch.from_numpy(np.stack([labels for _, labels in made])),
        }
