"""Interruption: SIGKILL at random moments, SIGTERM, and what a folder looks like afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DRILL = Path(__file__).with_name("kill_drill.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(DRILL.parents[2])}


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_change_no_bit(tmp_path):
    done = subprocess.run(
        [sys.executable, str(DRILL), str(tmp_path), "20", "1"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["kills"] == 20
    assert report["finished"] >= 1
    assert report["identical"] == report["finished"]
    assert any(0 < step < 10 for step in report["resumed_from"]), "no kill left a checkpoint to resume from"


def test_sigterm_saves_first(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        """
model: {name: roberta_bilstm_test}
data: {name: vader, tokenizer: "train:400", options: {limit: 64}}
training: {max_steps: 400, batch_size: 4, save_every: 0, eval_every: 0, log_every: 1}
"""
    )
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "hybridzoo", "train", str(recipe), "--run-dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    log = folder / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and len(log.read_text().splitlines()) >= 3):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    saved = [p.name for p in (folder / "checkpoints").iterdir()]
    assert len(saved) == 1
    assert saved[0] in stderr
    assert not (folder / "run.json").exists()
    step = int(saved[0].removeprefix("checkpoint-"))
    assert 3 <= step < 400
