"""Which samples a step sees, and the random numbers of each sample: functions of (seed, epoch, index) alone.

Nothing here keeps a state that a checkpoint would have to carry: a run that was interrupted, moved to other worker
processes or resumed in the middle of an epoch draws the same batches and the same augmentations.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MEGABATCH = 50  # steps whose samples are sorted by length together


class Key(NamedTuple):
    """Names one drawing of one sample; `draw` counts the repetitions of repeated augmentation."""

    epoch: int
    index: int
    draw: int


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's output function (Steele et al. 2014), on uint64 arrays."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample_seeds(seed: int, keys: Sequence[Key]) -> np.ndarray:
    """One uint64 per key, (B,), equal for equal (seed, key)."""
    columns = np.asarray(keys, dtype=np.uint64).reshape(-1, 3)
    with np.errstate(over="ignore"):
        state = _mix(np.full(len(columns), seed, dtype=np.uint64) + _GOLDEN)
        for column in columns.T:
            state = _mix(state ^ (column + np.uint64(1)) * _GOLDEN)
    return state


def uniforms(seeds: np.ndarray, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) per seed, (B, count) float64: a counter-based generator, vectorised over samples."""
    with np.errstate(over="ignore"):
        bits = _mix(seeds[:, None] + np.arange(1, count + 1, dtype=np.uint64)[None] * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@contextmanager
def global_rng_kept() -> Iterator[None]:
    """Give back the states of the random, numpy and torch (CPU) generators that the block uses."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_globals(seed: int) -> None:
    """Seed the random, numpy and torch (CPU) generators; torchvision's and timm's transforms draw from these."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)


class EpochBatchSampler(Sampler[list[Key]]):
    """Shuffled batches of one process; the order is a function of the seed and `epoch`, which the trainer sets.

    An epoch has `size // (batch_size * world)` steps: as in timm, samples that do not fill the last one are left out,
    others in each epoch. A smaller data set gives one step (filled up by repetition for several processes).

    Args:
        size: samples of the train split.
        batch_size: per process.
        seed: of the shuffling.
        rank: this process, of `world`.
        world: number of processes.
        lengths: tokens per sample; batches then hold samples of similar length (in random order of batches).
        repeats: draw each image so many times in a row, one for each process in turn, and stop after `size` drawings
            (repeated augmentation, Hoffer et al. 2020, as in timm). 0 and 1: off.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        lengths: Sequence[int] | None = None,
        repeats: int = 0,
    ):
        self.size, self.batch_size, self.seed, self.rank, self.world = size, batch_size, seed, rank, world
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.repeats = max(repeats, 1)
        self.epoch = 0
        self.drop_last = True

    def __len__(self) -> int:
        return max(self.size // (self.batch_size * self.world), 1)

    def steps(self) -> list[np.ndarray]:
        """The epoch's steps, all processes together: arrays of columns (index, draw), process after process."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.size)
        draws = np.zeros(self.size, dtype=np.int64)
        if self.repeats > 1:
            order = np.repeat(order[: -(-self.size // self.repeats)], self.repeats)[: self.size]
            draws = np.arange(self.size) % self.repeats
        per_step = self.batch_size * self.world
        if self.size < per_step and self.world > 1:
            order, draws = np.resize(order, per_step), np.resize(draws, per_step)
        pairs = np.stack([order, draws], axis=1)[: max(len(self) * per_step, 0)]
        if self.lengths is not None:
            pairs = self._bucket(pairs, per_step, rng)
        steps = [pairs[i : i + per_step] for i in range(0, len(pairs), per_step)]
        if self.lengths is not None:
            steps = [steps[i] for i in rng.permutation(len(steps))]
        if self.repeats > 1:  # the repetitions of one image go to different processes
            steps = [s.reshape(-1, self.world, 2).swapaxes(0, 1).reshape(-1, 2) if self.world > 1 else s for s in steps]
        return steps

    def _bucket(self, pairs: np.ndarray, per_step: int, rng: np.random.Generator) -> np.ndarray:
        assert self.lengths is not None
        block = per_step * MEGABATCH
        parts = []
        for start in range(0, len(pairs), block):
            part = pairs[start : start + block]
            parts.append(part[np.argsort(-self.lengths[part[:, 0]], kind="stable")])
        return np.concatenate(parts)

    def __iter__(self) -> Iterator[list[Key]]:
        for step in self.steps():
            mine = step[self.rank * self.batch_size : (self.rank + 1) * self.batch_size] if self.world > 1 else step
            yield [Key(self.epoch, int(i), int(d)) for i, d in mine]
