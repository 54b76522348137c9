"""The drills at the smallest scale: nothing may end in a way that it must not, and all ends are counted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import run as drills  # pyright: ignore[reportMissingImports]
from tally import Tally, outcome  # pyright: ignore[reportMissingImports]

from hybridzoo.errors import ConfigError

COUNTS = {"hostile": 1000, "configs": 80, "checkpoints": 27, "hub": 4}


@pytest.mark.parametrize("name", COUNTS)
def test_nothing_ends_wrongly(name):
    tally = drills.perform(name, COUNTS[name], seed=1)
    assert tally.examples == []
    assert tally.bad == 0
    assert tally.tried >= min(COUNTS[name], 50)
    assert len(tally.ends) >= (1 if name in ("hostile", "hub") else 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two-downloads", "shared-folder", "full-disk"])
def test_processes_in_each_others_way(name):
    tally = drills.perform(name, 1, seed=1)
    assert tally.examples == []
    assert tally.tried == 1


def test_a_wrong_end_is_counted_and_shown():
    tally = Tally("a drill", "something is tried", {"clear error": "good"})
    tally.add("clear error")
    tally.add("KeyError", "what was given")
    assert tally.bad == 1
    assert tally.examples == ["KeyError: what was given"]
    text = drills.page([tally], 0)
    assert "| a drill | 2 | 1 clear error, 1 KeyError | 1 |" in text
    assert "**KeyError**: wrong" in text


def test_only_the_packages_own_errors_are_clear():
    def fails(error: Exception):
        raise error

    assert outcome(lambda: fails(ConfigError("depth must be 1 or more, it is 0")))[0] == "clear error"
    assert outcome(lambda: fails(ConfigError("bad")))[0] == "error without a text"
    assert outcome(lambda: fails(KeyError("depth")))[0] == "KeyError"
    assert outcome(lambda: 3) == ("made", 3)


def test_a_drill_that_ends_wrongly_fails_the_command(monkeypatch, capsys, tmp_path):
    def bad(count: int, folder: Path, seed: int) -> Tally:
        tally = Tally("x", "y", {})
        tally.add("made", "an example")
        return tally

    monkeypatch.setitem(drills.DRILLS, "hostile", drills.Drill(bad, 1, 1))
    monkeypatch.setattr(drills, "KEPT", tmp_path)
    assert drills.main(["--only", "hostile"]) == 1
    assert "WRONG made: an example" in capsys.readouterr().out
    (again,) = drills.kept()
    assert (again.tried, again.bad, again.examples) == (1, 1, ["made: an example"])
