"""Batches of similar length, so that little is padded. No torch needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hybridzoo.errors import ConfigError


def length_batches(lengths: Sequence[int], batch_size: int, max_tokens: int | None = None) -> list[list[int]]:
    """Index batches sorted by length, longest first (a batch that does not fit into memory fails at once).

    Args:
        lengths: of each sample, in tokens.
        batch_size: most samples of a batch.
        max_tokens: most tokens of a padded batch (longest row times rows); one sample always forms a batch.

    Returns:
        Every index once. `restore_order` undoes the sorting.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    batches: list[list[int]] = []
    for index in order.tolist():
        width = lengths[batches[-1][0]] if batches else 0
        full = not batches or len(batches[-1]) >= batch_size
        if full or (max_tokens is not None and width * (len(batches[-1]) + 1) > max_tokens):
            batches.append([])
        batches[-1].append(index)
    return batches


def restore_order(batches: Sequence[Sequence[int]]) -> np.ndarray:
    """Positions that bring results, concatenated batch by batch, back into the samples' order."""
    flat = np.concatenate([np.asarray(b, dtype=np.int64) for b in batches]) if batches else np.empty(0, np.int64)
    inverse = np.empty(len(flat), np.int64)
    inverse[flat] = np.arange(len(flat))
    return inverse


class LengthBucketSampler:
    """Shuffled batches for training: samples are drawn at random, and sorted by length within a window of batches.

    Args:
        lengths: of each sample.
        batch_size: samples of a batch.
        seed: the order depends on it and on the epoch only.
        window: batches that are sorted together; larger pads less and shuffles less.
        drop_last: leave out the batch that is not full.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, seed: int = 0, window: int = 50, drop_last: bool = False
    ):
        if batch_size < 1 or window < 1:
            raise ConfigError(f"batch_size and window must be at least 1, got {batch_size} and {window}")
        self.lengths = np.asarray(lengths)
        self.batch_size, self.seed, self.window, self.drop_last = batch_size, seed, window, drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Give each epoch another order; a resumed run sets the epoch that it stopped in."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(len(self.lengths), self.batch_size)
        return full + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths))
        span = self.batch_size * self.window
        batches = []
        for start in range(0, len(order), span):
            part = order[start : start + span]
            part = part[np.argsort(-self.lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size].tolist() for i in range(0, len(part), self.batch_size)]
        if self.drop_last:
            batches = [b for b in batches if len(b) == self.batch_size]
        return iter([batches[i] for i in random.permutation(len(batches))])
