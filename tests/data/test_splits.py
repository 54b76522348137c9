"""Splits: the draws of scikit-learn, no overlap, groups kept together."""

from __future__ import annotations

import numpy as np
import pytest

from hybridzoo.data.splits import split_90_5_5, split_grouped, stratified_subset, train_test_indices
from hybridzoo.errors import DataError

sklearn = pytest.importorskip("sklearn.model_selection")


@pytest.mark.parametrize(
    ("rows", "classes", "size", "seed"),
    [(14640, 3, 0.1, 42), (1000, 2, 0.5, 0), (733, 5, 0.5, 1), (101, 7, 0.25, 3), (6000, 10, 500, 42)],
)
def test_same_draws_as_scikit_learn(rows: int, classes: int, size: float | int, seed: int) -> None:
    labels = np.random.RandomState(seed).randint(0, classes, rows)
    ours = train_test_indices(labels, size, seed)
    theirs = sklearn.train_test_split(np.arange(rows), test_size=size, stratify=labels, random_state=seed)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_90_5_5_is_two_scikit_learn_steps() -> None:
    labels = np.repeat([0, 1, 2], [9178, 3099, 2363])
    parts = split_90_5_5(labels, 42)
    rows = np.arange(len(labels))
    train, rest = sklearn.train_test_split(rows, test_size=0.1, stratify=labels, random_state=42)
    validation, test = sklearn.train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=42)
    for name, expected in (("train", train), ("validation", validation), ("test", test)):
        np.testing.assert_array_equal(parts[name], expected)
    assert [len(parts[n]) for n in ("train", "validation", "test")] == [13176, 732, 732]


def test_groups_never_cross_splits() -> None:
    random = np.random.RandomState(0)
    groups = random.randint(0, 400, 1000).tolist()
    labels = random.randint(0, 3, 1000)
    parts = split_grouped(labels, groups, seed=1)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1000))
    homes = [{groups[i] for i in part} for part in parts.values()]
    assert len(homes[0] | homes[1] | homes[2]) == sum(map(len, homes)) == len(set(groups))


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [0, 1, 2] * 2])
def test_too_few_rows_are_refused(labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"at least 2 samples|cannot hold all"):
        train_test_indices(labels, 0.1, 0)


@pytest.mark.parametrize("size", [1, 3, 10, 57, 999, 5000])
def test_subset_of_sorted_labels_holds_every_class(size: int) -> None:
    labels = [0] * 600 + [1] * 390 + [2] * 10
    rows = stratified_subset(labels, size, seed=0)
    assert len(rows) == len(set(rows.tolist())) == min(size, 1000)
    assert (np.diff(rows) > 0).all()
    if size >= 3:
        assert {labels[i] for i in rows} == {0, 1, 2}
    np.testing.assert_array_equal(rows, stratified_subset(labels, size, seed=0))
