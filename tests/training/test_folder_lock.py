"""One training a folder: the second is refused, and the lock goes with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hybridzoo.errors import TrainingError
from hybridzoo.training.folder_lock import folder_lock

HOLD = "import sys, time; from pathlib import Path; from hybridzoo.training.folder_lock import folder_lock\n"
HOLD += "with folder_lock(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)"


def test_a_folder_is_one_processs_own_until_that_ends(tmp_path):
    folder = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(TrainingError, match="another process trains in"), folder_lock(folder):
        pass
    assert list(folder.iterdir()) == []  # nothing is left in it
    other.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    other.wait()
    with folder_lock(folder):
        (folder / "file").touch()
    assert (folder / "file").exists()


def test_a_folder_that_stays_empty_is_taken_away_and_one_that_cannot_be_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="x"), folder_lock(tmp_path / "a" / "b"):
        raise ValueError("x")
    assert not (tmp_path / "a" / "b").exists()
    (tmp_path / "old").mkdir()
    with folder_lock(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot be written"), folder_lock(Path(tmp_path / "file" / "x")):
        pass


WORKER = """import os, sys, time; from pathlib import Path; from hybridzoo.training.folder_lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_worker_that_outlives_a_killed_training_does_not_hold_its_folder(tmp_path):
    training = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert training.stdout is not None
    worker = int(training.stdout.readline())
    try:
        training.kill()
        training.wait()
        os.kill(worker, 0)  # it lives
        with folder_lock(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
