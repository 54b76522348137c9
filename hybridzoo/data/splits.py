"""Seeded, stratified splits. No scikit-learn at run time; the draws are the same as scikit-learn's.

`train_test_indices(labels, size, seed)` gives the rows that `sklearn.model_selection.train_test_split(…,
stratify=labels,
test_size=size, random_state=seed)` gives (a test compares them): published splits made with it can be had again.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from hybridzoo.errors import DataError

Labels = Sequence[int] | np.ndarray


def train_test_indices(labels: Labels, test_size: float | int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled row numbers of a stratified split in two.

    Args:
        labels: one class index per row.
        test_size: share (float) or number (int) of rows in the second part; a share is rounded up.
        seed: of numpy's RandomState.

    Returns:
        (train, test), int64 arrays without overlap that cover all rows.

    Raises:
        DataError: a class with one row, or a part smaller than the number of classes.
    """
    values = np.asarray(labels)
    classes, of_row, counts = np.unique(values, return_inverse=True, return_counts=True)
    total = len(values)
    n_test = math.ceil(test_size * total) if isinstance(test_size, float) else int(test_size)
    n_train = total - n_test
    if total == 0 or counts.min() < 2:
        rare = classes[counts.argmin()] if total else "?"
        raise DataError(
            f"a stratified split needs at least 2 samples of each class; class {rare} of {total} samples has fewer"
        )
    if min(n_train, n_test) < len(classes):
        raise DataError(
            f"a stratified split of {total} samples into {n_train} and {n_test} cannot hold all {len(classes)} "
            f"classes in both; "
            "give more data"
        )
    random = np.random.RandomState(seed)
    train_per_class = _share_out(counts, n_train, random)
    test_per_class = _share_out(counts - train_per_class, n_test, random)
    rows_by_class = np.split(np.argsort(of_row, kind="stable"), np.cumsum(counts)[:-1])
    train, test = [], []
    for rows, n_first, n_second in zip(rows_by_class, train_per_class, test_per_class):
        shuffled = rows[random.permutation(len(rows))]
        train.append(shuffled[:n_first])
        test.append(shuffled[n_first : n_first + n_second])
    return random.permutation(np.concatenate(train)), random.permutation(np.concatenate(test))


def _share_out(counts: np.ndarray, draws: int, random: np.random.RandomState) -> np.ndarray:
    """How many of `draws` each class gets: proportional, the left-over ones to the largest remainders, ties at
    random.
    """
    exact = counts / counts.sum() * draws
    given = np.floor(exact)
    left = int(draws - given.sum())
    remainder = exact - given
    for value in np.unique(remainder)[::-1]:
        if left <= 0:
            break
        tied = np.flatnonzero(remainder == value)
        chosen = random.choice(tied, size=min(len(tied), left), replace=False)
        given[chosen] += 1
        left -= len(chosen)
    return given.astype(int)


def split_90_5_5(labels: Labels, seed: int = 42) -> dict[str, np.ndarray]:
    """The paper protocol of the sentiment sets: 10 % held out, halved into validation and test, both steps
    stratified.
    """
    train, held_out = train_test_indices(labels, 0.1, seed)
    validation, test = train_test_indices(np.asarray(labels)[held_out], 0.5, seed)
    return {"train": train, "validation": held_out[validation], "test": held_out[test]}


def split_grouped(
    labels: Labels, groups: Sequence[Hashable], *, shares: tuple[float, float] = (0.1, 0.1), seed: int = 42
) -> dict[str, np.ndarray]:
    """Train, validation and test where rows of one group (equal texts) stay together; stratified by each group's
    first label.

    Args:
        labels: class index per row.
        groups: group key per row.
        shares: of validation and test.
        seed: of the draws.
    """
    number: dict[Hashable, int] = {}
    of_row = np.array([number.setdefault(g, len(number)) for g in groups])
    first = np.unique(of_row, return_index=True)[1]
    group_labels = np.asarray(labels)[first]
    train, held_out = train_test_indices(group_labels, sum(shares), seed)
    validation, test = train_test_indices(group_labels[held_out], shares[1] / sum(shares), seed)
    parts = {"train": train, "validation": held_out[validation], "test": held_out[test]}
    return {name: np.flatnonzero(np.isin(of_row, part)) for name, part in parts.items()}


def stratified_subset(labels: Labels, size: int, seed: int) -> np.ndarray:
    """`size` row numbers in ascending order: proportional per class where `size` allows it, seeded. Files are often
    sorted by
    label, so the first rows alone would hold one class."""
    values = np.asarray(labels)
    if size >= len(values):
        return np.arange(len(values))
    classes, counts = np.unique(values, return_counts=True)
    random = np.random.RandomState(seed)
    if size < len(classes):
        return np.sort(random.permutation(len(values))[:size])
    per_class = np.maximum(_share_out(counts, size, random), 1)
    while per_class.sum() > size:  # rare classes got one row each: take them from the largest
        per_class[per_class.argmax()] -= 1
    parts = [random.permutation(np.flatnonzero(values == c))[:n] for c, n in zip(classes, per_class)]
    return np.sort(np.concatenate(parts))
