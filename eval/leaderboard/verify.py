"""`hybridzoo leaderboard verify`: run a result again from its own command, and compare.

A result file is data from somebody else: its command is taken apart and only known options of `hybridzoo eval` and
`hybridzoo train` are followed. Nothing of it reaches a shell.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridzoo.errors import ConfigError
from hybridzoo.eval.harness import run_task
from hybridzoo.eval.leaderboard.history import allowed_move
from hybridzoo.eval.schema import Metric, Result, ResultError

# Options of `hybridzoo eval` that a command may hold: name -> (argument of run_task, how its text is read).
OPTIONS = {
    "--limit": ("limit", int),
    "--root": ("root", str),
    "--dtype": ("dtype", str),
    "--seed": ("seed", int),
    "--long-text": ("long_text", str),
    "--max-length": ("max_length", int),
}
FLAGS = {"--calibrate": ("calibrate", True)}


@dataclass(frozen=True)
class Comparison:
    """One metric, as stated and as measured again."""

    name: str
    stated: Metric
    again: Metric | None
    allowed: float

    @property
    def agrees(self) -> bool:
        return self.again is not None and abs(self.again.value - self.stated.value) <= self.allowed


@dataclass
class Verification:
    """What `verify` found.

    Attributes:
        result: the file that was verified.
        again: the result of the new run.
        metrics: one comparison per metric that is stated.
        problems: everything else that differs, in words: weights, data, number of samples.
    """

    result: Result
    again: Result
    metrics: list[Comparison]
    problems: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return not self.problems and all(m.agrees for m in self.metrics)


@dataclass(frozen=True)
class Command:
    """A result's command, taken apart: `program` is eval or train."""

    program: str
    words: tuple[str, ...]


def parse_command(text: str) -> Command:
    """Take the command of a result apart.

    Raises:
        ResultError: it is not `hybridzoo eval …` or `hybridzoo train …`.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ResultError(f"the result's command cannot be read ({error}): {text!r}") from error
    for program in ("eval", "train"):
        for start in (["hybridzoo", program], ["python", "-m", "hybridzoo", program]):
            if [w.rpartition("/")[2] if i == 0 else w for i, w in enumerate(words[: len(start)])] == start:
                return Command(program, tuple(words[len(start) :]))
    raise ResultError(f"the result's command is neither `hybridzoo eval` nor `hybridzoo train`: {text!r}")


def verify(
    path: str | Path,
    *,
    model: str | Path | None = None,
    root: str | Path | None = None,
    device: str | None = None,
    train: bool = False,
    progress: bool = False,
) -> Verification:
    """Run a result again and compare.

    Args:
        path: of the result file.
        model: the weights, where the result names a folder of the machine that it came from.
        root: where the data lie; embedded data need none.
        device: left out: a GPU if there is one.
        train: train anew by the result's own `hybridzoo train` command (as long as the first time), instead of scoring
            weights that are given.
        progress: bars on stderr.

    Raises:
        ResultError: a paper row, or a command that cannot be followed; the text says what to give.
        HybridzooError: the model or the data cannot be loaded.
    """
    if model is not None and train:
        raise ConfigError("--model scores weights that exist, --train makes new ones: give one of them")
    result = Result.from_json(path)
    if result.run is None:
        raise ResultError(f"{path} is a paper row: nothing was run, so there is nothing to run again")
    command = parse_command(result.run.command)
    if train:
        again, same_weights = _train_again(result, command, root), False
    else:
        again, same_weights = _score_again(result, command, model, root, device, progress), True
    return compare(result, again, same_weights=same_weights)


def compare(result: Result, again: Result, *, same_weights: bool) -> Verification:
    """Compare a result with one of a new run; weights trained anew may differ by more than the same ones."""
    problems = []
    if same_weights and _sha(result) != _sha(again):
        stated, found = (sha[:12] if sha else "none" for sha in (_sha(result), _sha(again)))
        problems.append(f"other weights: the result states sha256 {stated}, these have {found}")
    then, now = result.task.dataset, again.task.dataset
    if then.sha256 and now.sha256 and then.sha256 != now.sha256:
        problems.append(f"other data: the result states sha256 {then.sha256[:12]}, these have {now.sha256[:12]}")
    if then.n_used != now.n_used:
        problems.append(f"other samples: the result used {then.n_used:,}, this run {now.n_used:,}")
    metrics = []
    for name, stated in result.metrics.items():
        found = again.metrics.get(name)
        limit = allowed_move(stated, found or stated, same_weights=same_weights)
        metrics.append(Comparison(name, stated, found, limit))
    return Verification(result, again, metrics, problems)


def _sha(result: Result) -> str | None:
    return result.model.weights.sha256 if result.model.weights else None


def _score_again(result: Result, command: Command, model: Any, root: Any, device: str | None, progress: bool) -> Result:
    run = result.run
    assert run is not None
    options: dict[str, Any] = {"seed": run.seed, "dtype": run.dtype}
    if command.program == "eval":
        options |= _eval_options(command.words)
    if options.get("root") is not None or root is not None:
        if root is None:
            raise ResultError(f"this result needs data from disk: give --root, the folder of {result.task.dataset.id}")
        options["root"] = root
    if result.task.dataset.n_used < result.task.dataset.n_total:
        options["limit"] = result.task.dataset.n_used
    source = model if model is not None else _source(result, command)
    baseline = isinstance(source, str) and source.startswith("baseline:")
    if result.efficiency is not None and result.efficiency.batch_size:
        options["batch_size"] = result.efficiency.batch_size
    named = {} if baseline else {"name": result.model.full_name}
    return run_task(source, result.task.name, device=device, progress=progress, **named, **options).result


def _source(result: Result, command: Command) -> str:
    """What the command evaluated, if it can be found here."""
    from hybridzoo import registry

    uri = result.model.weights.uri if result.model.weights else ""
    name = command.words[0] if command.program == "eval" and command.words else ""
    if name.startswith("baseline:"):
        return name
    if registry.is_model(result.model.full_name) and not uri.startswith(("local-dir:", "in memory")):
        return result.model.full_name
    if uri.startswith("hf-hub:"):
        return uri
    hint = "" if command.program == "eval" else ", or --train to train again by the result's command"
    raise ResultError(
        f"the weights of this result are {uri or 'not stated'}, which is not on this machine: give --model FOLDER{hint}"
    )


def _eval_options(words: tuple[str, ...]) -> dict[str, Any]:
    """Options of `hybridzoo eval MODEL TASK …`; one that is not known raises ResultError."""
    found: dict[str, Any] = {}
    rest = list(words[2:])
    while rest:
        word = rest.pop(0)
        if word in FLAGS:
            name, value = FLAGS[word]
            found[name] = value
        elif word in OPTIONS and rest:
            name, read = OPTIONS[word]
            try:
                found[name] = read(rest.pop(0))
            except ValueError as error:
                raise ResultError(f"the result's command holds {word} with a value that is none ({error})") from error
        elif word == "--option" and rest and "=" in rest[0]:
            import yaml

            key, _, text = rest.pop(0).partition("=")
            found[key] = yaml.safe_load(text)
        else:
            raise ResultError(f"the result's command holds {word!r}, which `leaderboard verify` does not follow")
    return found


def _train_again(result: Result, command: Command, root: Any) -> Result:
    """Train by the result's command in a folder of its own; returns the new result of the same task."""
    if command.program != "train":
        raise ResultError("this result came from `hybridzoo eval`, not from a training: leave --train out")
    words = list(command.words)
    if not words or words[0].startswith("-"):
        raise ResultError("the result's training command names no recipe")
    overrides = [w for w in words[1:] if "=" in w and not w.startswith("-") and not w.startswith("data.root=")]
    if root is not None:
        overrides.append(f"data.root={root}")
    with tempfile.TemporaryDirectory(prefix="hybridzoo-verify-") as folder:
        line = [sys.executable, "-m", "hybridzoo", "train", words[0], *overrides, "--run-dir", f"{folder}/run"]
        done = subprocess.run(line, check=False)
        if done.returncode:
            raise ResultError(f"the training ended with exit code {done.returncode}: {shlex.join(line[1:])}")
        for path in sorted((Path(folder) / "run" / "results").rglob("*.json")):
            again = Result.from_json(path)
            if again.task.name == result.task.name:
                return again
        options = {} if root is None else {"root": root}
        return run_task(f"{folder}/run", result.task.name, **options).result


def report(found: Verification) -> list[tuple[str, str, str, str, str]]:
    """Rows of a table: metric, stated, measured again, allowed difference, verdict."""

    def number(metric: Metric | None) -> str:
        return "-" if metric is None else f"{metric.value:.4f}".rstrip("0").rstrip(".")

    return [
        (m.name, number(m.stated), number(m.again), f"{m.allowed:.2g}", "agrees" if m.agrees else "DIFFERS")
        for m in found.metrics
    ]
