"""MQAR: what a sequence holds, and that it is a function of its index alone."""

from __future__ import annotations

import numpy as np
import pytest

from hybridzoo.data.mqar import Mqar, MqarOptions, make_mqar
from hybridzoo.data.text_stream import IGNORED
from hybridzoo.errors import ConfigError


@pytest.mark.parametrize("noise", [True, False])
def test_each_listed_key_is_asked_once_and_its_value_is_the_answer(noise):
    options = MqarOptions(vocab_size=128, sequence_length=64, pairs=12, noise=noise)
    for seed in range(20):
        ids, labels = make_mqar(options, np.random.default_rng(seed))
        listed = dict(zip(ids[0:24:2].tolist(), ids[1:24:2].tolist()))
        assert len(listed) == 12
        assert all(1 <= k < 64 <= v < 128 for k, v in listed.items())
        answers = np.flatnonzero(labels != IGNORED)
        assert len(answers) == 12
        assert {int(ids[t - 1]): int(labels[t]) for t in answers} == listed
        assert (answers > 24).all()
        rest = np.delete(ids[24:], answers - 1 - 24)
        assert (rest != 0).all() if noise else (rest == 0).all()


def test_questions_follow_the_list_closely_by_the_power_law():
    options = MqarOptions(vocab_size=512, sequence_length=256, pairs=4)
    at = np.concatenate([np.flatnonzero(make_mqar(options, np.random.default_rng(i))[1] >= 0) for i in range(300)])
    gaps = (at - 9) // 2
    assert gaps.min() == 0
    assert gaps.max() > 100
    assert np.median(gaps) < 20  # evenly spread they would have a median of 62


def test_sequences_are_functions_of_their_index():
    class Key:
        epoch, index = 1, 7

    options = MqarOptions(vocab_size=64, sequence_length=32, pairs=4)
    data = Mqar(options, 100, seed=3)
    batch = data.__getitems__(range(5, 10))
    assert batch["input_ids"].shape == batch["labels"].shape == (5, 32)
    assert data.__getitems__([7])["input_ids"].equal(batch["input_ids"][2:3])
    assert not data.__getitems__([Key])["input_ids"].equal(batch["input_ids"][2:3])
    assert not Mqar(options, 100, seed=3, part=1)[7]["input_ids"].equal(batch["input_ids"][2])


def test_the_graded_protocol_trains_on_fewer_pairs_than_it_tests():
    from hybridzoo.data.mqar import read_mqar

    raw = read_mqar(None, "graded", 0, {"size": 300})
    asked = {name: (split.__getitems__(range(200))["labels"] != IGNORED).sum(1) for name, split in raw.splits.items()}
    assert asked["train"].min() < 4
    assert asked["train"].max() == 16
    assert (asked["validation"] == 16).all()
    assert (asked["test"] == 16).all()
    assert raw.sha256 != read_mqar(None, "generated", 0, {}).sha256


@pytest.mark.parametrize(
    "options",
    [
        {"sequence_length": 63},
        {"min_pairs": 0},
        {"min_pairs": 9},
        {"pairs": 20},
        {"pairs": 0},
        {"vocab_size": 16},
        {"power": 0.0},
    ],
)
def test_impossible_tasks_are_refused(options):
    with pytest.raises(ConfigError):
        MqarOptions(**{"vocab_size": 128, "sequence_length": 64, "pairs": 8, **options})
