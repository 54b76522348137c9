"""Drill, run as a program: trainings are killed with SIGKILL at random moments until 20 kills are done.

    python tests/training/kill_drill.py FOLDER [KILLS] [SEED]

The parent imports everything once and forks each training, so that a start costs milliseconds. After each kill every
checkpoint folder that has a name must be complete and the newest must not be older than before; each training that
gets to its end must have the weights of a training that was never interrupted, bit for bit. Prints a JSON line.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401  once here instead of in each fork
import timm.data  # noqa: F401
import torch
import torch._dynamo
from safetensors.torch import load_file

from hybridzoo.training import checkpoints, recipe_from_dict, train
from hybridzoo.training.build import build_recipe_model
from hybridzoo.training.finish import finish  # noqa: F401
from hybridzoo.training.trainer import ZooTrainer  # noqa: F401

RECIPE = {
    "model": {"name": "iformer_test", "config": {"drop_path_rate": 0.2}},
    "data": {"name": "fashion_mnist_mini", "options": {"limit": 20}},
    "training": {
        "max_steps": 10,
        "batch_size": 4,
        "gradient_accumulation": 2,
        "learning_rate": 1e-3,
        "warmup_epochs": 0.5,
        "weight_decay": 0.05,
        "mixup": 0.8,
        "cutmix": 1.0,
        "label_smoothing": 0.1,
        "ema_decay": 0.8,
        "clip_grad_norm": 1.0,
        "layer_decay": None,
        "select_best": True,
        "eval_every": "5 steps",
        "save_every": "2 steps",
        "augment": {"scale": [0.5, 1.0], "hflip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.25},
        "seed": 3,
    },
    "evaluation": {"metric": "loss"},
}


def fork_training(folder: Path) -> int:
    """Start a training in a child process; its exit code is 0 if it came to its end."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(folder.parent / "child.log", "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            train(recipe_from_dict(RECIPE), folder)
        code = 0
    except BaseException as error:
        with open(folder.parent / "child.log", "a") as log:
            log.write(f"\nFAILED {type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


def outcome(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors that a training leaves: final model, and the raw and averaged weights of its last checkpoint."""
    last = checkpoints.list_checkpoints(folder / "checkpoints")[-1]
    found = {}
    for name, path in (("final", folder), ("raw", last)):
        found |= {f"{name}.{k}": v for k, v in load_file(path / "model.safetensors").items()}
    found |= {f"ema.{k}": v for k, v in load_file(last / "ema.safetensors").items()}
    optimizer = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    found |= {f"adam.{i}.{k}": v for i, state in optimizer.items() for k, v in state.items()}
    return found


def main(root: Path, kills: int = 20, seed: int = 0) -> dict:
    torch.set_num_threads(1)
    build_recipe_model(recipe_from_dict(RECIPE))  # warms the imports that a fork would repeat
    rng = random.Random(seed)
    reference = root / "reference"
    started = time.monotonic()
    _, status = os.waitpid(fork_training(reference), 0)
    if status:
        raise SystemExit(f"the uninterrupted training failed:\n{(root / 'child.log').read_text()[-3000:]}")
    whole, expected = time.monotonic() - started, outcome(reference)

    report = {"kills": 0, "finished": 0, "identical": 0, "resumed_from": [], "seconds_of_one": round(whole, 2)}
    number, folder, newest = 0, root / "run-0", 0
    while report["kills"] < kills or folder.exists():
        begun, fresh = time.monotonic(), newest == 0
        pid = fork_training(folder)
        if report["kills"] < kills:
            time.sleep(rng.uniform(0.05, 0.9) * whole)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            report["kills"] += 1
        elif os.WEXITSTATUS(status):
            raise SystemExit(f"a training failed:\n{(root / 'child.log').read_text()[-3000:]}")
        found = checkpoints.list_checkpoints(folder / "checkpoints")
        for checkpoint in found:
            checkpoints.verify(checkpoint)  # raises if a named checkpoint is not complete
        steps = [checkpoints.step_of(c) for c in found]
        if max(steps, default=0) < newest:
            raise SystemExit(f"checkpoint {newest} was lost; there are {steps}")
        newest = max(steps, default=0)
        if os.WIFSIGNALED(status):
            report["resumed_from"].append(newest)
            continue
        if fresh:
            whole = min(whole, time.monotonic() - begun)  # the first one was slow: it filled the file cache
        got = outcome(folder)
        same = got.keys() == expected.keys() and all(torch.equal(got[k], expected[k]) for k in expected)
        report["finished"] += 1
        report["identical"] += same
        if report["kills"] >= kills:
            break
        number += 1
        folder, newest = root / f"run-{number}", 0
    report["seconds"] = round(time.monotonic() - started, 1)
    return report


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
