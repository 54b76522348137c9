"""Two processes on the CPU (gloo) through torchrun and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hybridzoo.training.callbacks import read_log

ROOT = Path(__file__).parents[2]
RECIPE = """
model: {name: roberta_bilstm_test}
data: {name: vader, tokenizer: "train:400", options: {limit: 400}}
training:
  max_steps: 30
  batch_size: 16
  learning_rate: 3e-3
  warmup_ratio: 0.1
  clip_grad_norm: 1.0
  ema_decay: 0.8
  eval_every: 15 steps
  save_every: 10 steps
  log_every: 5
evaluation: {batch_size: 64}
"""


def launch(folder, recipe, *more):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "hybridzoo", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(recipe), "--run-dir", str(folder), *more], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.mark.slow
def test_two_processes_train_one_model_in_one_folder(tmp_path):
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    done = launch(folder, recipe)
    assert done.stdout.count("30 steps") == 1  # one process speaks
    records = read_log(folder / "log.jsonl")
    losses = [r["loss"] for r in records if "loss" in r]
    assert [r["step"] for r in records if "loss" in r] == [5, 10, 15, 20, 25, 30]
    assert losses[-1] < losses[0] - 0.02
    assert [r["step"] for r in records if "eval_loss" in r] == [15, 30]
    assert json.loads((folder / "environment.json").read_text())["machine"]["processes"] == 2
    checkpoints = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert checkpoints == ["checkpoint-20", "checkpoint-30"]
    last = folder / "checkpoints" / "checkpoint-30"
    assert {p.name for p in last.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert list(load_file(last / "ema.safetensors")) == list(load_file(folder / "model.safetensors"))
    assert records[-1]["epoch"] == 2.5  # 400 samples, 2 x 16 a step: 12 steps an epoch
