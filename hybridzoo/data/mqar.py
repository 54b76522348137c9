"""Multi-query associative recall (MQAR): a synthetic task that measures recall, made on the fly.

A sequence lists key-value pairs, then asks for them: at the place of a key the model must give its value as the next
token (which does not stand in the sequence). Gaps between the list and a question follow a power law, so that most are
short and some long. Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient Language Models", section
4 and appendix E; the setting that the DeltaNet paper uses is 512 tokens and 64 pairs. The numbers are drawn here by a
generator of our own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hybridzoo.data.base import Raw
from hybridzoo.data.text_stream import IGNORED
from hybridzoo.errors import ConfigError

HELD_OUT = 1000
PROTOCOLS: dict[str, dict[str, Any]] = {
    "generated": {},  # the defaults of MqarOptions
    "graded": {"vocab_size": 128, "sequence_length": 64, "pairs": 16, "min_pairs": 1},  # learned in few steps
}


@dataclass(frozen=True, kw_only=True)
class MqarOptions:
    """The task.

    Attributes:
        vocab_size: V; token 0 is never a key or value, keys are 1 to V/2 - 1, values V/2 to V - 1.
        sequence_length: T, even.
        pairs: key-value pairs of a sequence, at most T / 4.
        power: exponent a of the power law; the gap g has probability proportional to a * g ** (a - 1).
        noise: fill the places between questions with random tokens, as the authors do; else with 0.
        min_pairs: sequences to train on hold so many to `pairs` pairs, evenly drawn, as the authors train on several
            difficulties at once; those to validate and to test always hold `pairs`. None: all hold `pairs`.
    """

    vocab_size: int = 1024
    sequence_length: int = 256
    pairs: int = 32
    power: float = 0.01
    noise: bool = True
    min_pairs: int | None = None

    def __post_init__(self) -> None:
        if self.min_pairs is not None and not 1 <= self.min_pairs <= self.pairs:
            raise ConfigError(f"min_pairs={self.min_pairs} must lie between 1 and pairs={self.pairs}")
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
    pairs = options.pairs if options.min_pairs is None else int(rng.integers(options.min_pairs, options.pairs + 1))
    half, listed = options.vocab_size // 2, 2 * pairs
    keys = 1 + rng.choice(half - 1, pairs, replace=False)
    values = half + rng.choice(options.vocab_size - half, pairs, replace=False)
    slots = (options.sequence_length - listed) // 2  # a question takes its token and the answer after it
    weights = options.power * np.arange(1, slots + 1, dtype=np.float64) ** (options.power - 1)
    gaps = rng.choice(slots, pairs, replace=False, p=weights / weights.sum())
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
        indices: sequences of this split, if not all.
    """

    kind = "tokens"

    def __init__(
        self,
        options: MqarOptions,
        size: int,
        *,
        seed: int = 0,
        part: int = 0,
        indices: Sequence[int] | None = None,
    ):
        self.options, self.seed, self.part = options, seed, part
        self.indices = range(size) if indices is None else list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def ids(self) -> list[str]:
        """Names of the sequences."""
        return [f"{self.part}/{i}" for i in self.indices]

    def digests(self) -> None:
        """Sequences are random; splits are not compared."""

    def select(self, indices: Iterable[int]) -> Mqar:
        """The split with these sequences."""
        chosen = [self.indices[int(i)] for i in indices]
        return Mqar(self.options, len(chosen), seed=self.seed, part=self.part, indices=chosen)

    def __getitem__(self, key: Any) -> dict[str, torch.Tensor]:
        return {k: v[0] for k, v in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Batch of keys (with `epoch` and `index`) or plain indices: input_ids and labels (B, T) int64."""
        made = [make_mqar(self.options, np.random.default_rng(self._seed(key))) for key in keys]
        return {
            "input_ids": torch.from_numpy(np.stack([ids for ids, _ in made])),
            "labels": torch.from_numpy(np.stack([labels for _, labels in made])),
        }

    def _seed(self, key: Any) -> list[int]:
        # a Key is a tuple, whose own `index` is a method: ask for the epoch first
        epoch = int(key.epoch) if hasattr(key, "epoch") else 0
        index = int(key.index) if hasattr(key, "epoch") else int(key)
        return [self.seed, self.part, epoch, self.indices[index]]


def read_mqar(root: None, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """The splits of the protocol's task with the given options; 1,000 sequences each to validate and to test."""
    size = options.pop("size", 100_000)
    task = MqarOptions(**{**PROTOCOLS[protocol], **options})
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"size={size!r} must be a number of sequences, at least 1")
    held_out = dataclasses.replace(task, min_pairs=None)
    described = json.dumps({**dataclasses.asdict(held_out), "seed": seed, "generator": 1}, sort_keys=True)
    sizes = {"train": (task, size), "validation": (held_out, HELD_OUT), "test": (held_out, HELD_OUT)}
    splits: Any = {
        name: Mqar(options, count, seed=seed, part=i) for i, (name, (options, count)) in enumerate(sizes.items())
    }
    return Raw(
        splits=splits,
        label_names=(),
        sha256=hashlib.sha256(described.encode()).hexdigest(),
        sha256_of="the options and the seed",
        revision=f"{task.pairs} pairs in {task.sequence_length} tokens, vocabulary {task.vocab_size}",
    )
