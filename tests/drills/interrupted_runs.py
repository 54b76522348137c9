"""Trainings that are killed, share a folder, or meet a full disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tally import Tally

TESTS = Path(__file__).resolve().parent.parent
RECIPE = {
    "title": "drill",
    "paper": "ours",
    "model": {"name": "iformer_test"},
    "data": {"name": "fashion_mnist_mini", "options": {"limit": 40}},
    "training": {
        "max_steps": 6,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "seed": 0,
        "save_every": "2 steps",
        "eval_every": "3 steps",
    },
    "evaluation": {"tasks": [], "batch_size": 20, "metric": "loss"},
}


def kills(count: int, folder: Path, seed: int) -> Tally:
    """kill -9 at random moments, until `count` kills are done (tests/training/kill_drill.py)."""
    tally = Tally(
        "kill -9 storm",
        "a training is killed at random moments and started again by the same command, over and over",
        {
            "killed": "every checkpoint with a name is complete, and none is lost",
            "finished bit-identical": "the weights of a training that was never interrupted",
        },
    )
    script = TESTS / "training" / "kill_drill.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(count), str(seed)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        tally.add("the drill failed", (done.stdout + done.stderr)[-500:])
        return tally
    report = json.loads(done.stdout.strip().splitlines()[-1])
    for _ in range(report["kills"]):
        tally.add("killed")
    for number in range(report["finished"]):
        tally.add("finished bit-identical" if number < report["identical"] else "finished with other weights")
    return tally


def _recipe(folder: Path) -> Path:
    path = folder / "drill.yaml"
    path.write_text(json.dumps(RECIPE))  # JSON is YAML
    return path


def _train(recipe: Path, run: Path, prelude: str = "") -> list[str]:
    words = ["train", str(recipe), "--run-dir", str(run)]
    code = f"{prelude}\nimport sys\nfrom hybridzoo.cli import main\nsys.argv[1:] = {words!r}\nmain()"
    return [sys.executable, "-c", code]


def shared_folder(count: int, folder: Path, seed: int) -> Tally:
    """`count` times, two trainings start in one folder at once."""
    tally = Tally(
        "Two trainings, one folder",
        "two processes run the same training into the same folder at the same moment",
        {
            "one trains, one is refused": "one clear error that names the folder; the other's model is complete",
            "both end well": "one waited or came later, and found a finished run; the model is complete",
        },
    )
    recipe = _recipe(folder)
    for number in range(count):
        run = folder / f"shared-{number}"
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        running = [subprocess.Popen(_train(recipe, run), **options) for _ in range(2)]
        said = [process.communicate(timeout=900)[0] for process in running]
        codes = sorted(process.returncode for process in running)
        end = {(0, 0): "both end well", (0, 2): "one trains, one is refused"}.get(
            (codes[0], codes[1]), f"codes {codes}"
        )
        if end in tally.allowed:
            end = end if _whole(run) else "the model is not complete"
        tally.add(end, " | ".join(text[-400:] for text in said))
    return tally


def _whole(run: Path) -> bool:
    from hybridzoo import build_model
    from hybridzoo.errors import HybridzooError

    try:
        build_model(run)
    except HybridzooError:
        return False
    return not [p for p in run.rglob(".*") if p.is_file() and p.suffix == ".safetensors"]


def full_disk(count: int, folder: Path, seed: int) -> Tally:
    """`count` trainings whose files may only grow so large: a disk that is full at another place each time."""
    tally = Tally(
        "Full disk",
        "no file of a training may grow beyond a limit that moves from bytes to megabytes, as on a disk without space",
        {
            "clear error": "exit code 2 and one line; no named checkpoint is broken; with space it goes on to its end",
            "finished": "the limit was large enough",
        },
    )
    if os.name != "posix":
        return tally
    recipe = _recipe(folder)
    for number in range(count):
        limit = int(2_000 * 1.9 ** (number % 12))
        run = folder / f"disk-{number}"
        prelude = (
            "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
        )
        done = subprocess.run(_train(recipe, run, prelude), capture_output=True, text=True, timeout=900, check=False)
        end = {0: "finished", 2: "clear error"}.get(done.returncode, f"exit code {done.returncode}")
        if end == "clear error":
            again = subprocess.run(_train(recipe, run), capture_output=True, text=True, timeout=900, check=False)
            if again.returncode or not _whole(run):
                end = "with space it does not go on"
                done = again
        tally.add(end, f"limit {limit}: {done.stderr[-600:]}")
    return tally
