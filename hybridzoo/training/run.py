"""`train`: from a recipe to a run folder.

The folder holds `recipe.yaml` (complete), `environment.json`, `log.jsonl`, `loss.png`, `checkpoints/`, `run.json`
(the outcome), `results/`, and at its root the final model as `save_pretrained` writes it, so that
`build_model(folder)` works.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hybridzoo._atomic_file import whole_file
from hybridzoo.errors import ConfigError, DataError, TrainingError
from hybridzoo.training import checkpoints
from hybridzoo.training.folder_lock import folder_lock
from hybridzoo.training.objectives import Objective, objective_of
from hybridzoo.training.recipe import load_recipe, parse_every, recipe_to_dict, recipe_to_yaml
from hybridzoo.training.schema import Recipe

RECIPE_FILE, ENVIRONMENT_FILE, LOG_FILE, RUN_FILE = "recipe.yaml", "environment.json", "log.jsonl", "run.json"
# Keys that may differ between a run and its continuation: none of them changes a weight.
_FREE_KEYS = frozenset(
    [
        "title",
        "paper",
        "data.root",
        "evaluation.tasks",
        "evaluation.batch_size",
        "training.num_workers",
        "training.log_every",
        "training.report_to",
        "training.save_total_limit",
        "training.save_every",
    ]
)


@dataclass
class Run:
    """What came out of `train`.

    Attributes:
        folder: the run folder.
        status: `finished`, or `stopped` by a signal (start the same command again to go on).
        step: updates done.
        epoch: passes done.
        seconds: of training, this sitting.
        metrics: of the final model on the validation split.
        best: metric, value and step of the best evaluation, if there was one.
        temperature: fitted, if the recipe asks for it.
        results: result files of the recipe's evaluation tasks, relative to the folder.
        signal: number of the signal that stopped it.
    """

    folder: Path
    status: str
    step: int
    epoch: float
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    temperature: float | None = None
    results: list[str] = field(default_factory=list)
    signal: int | None = None


def default_run_dir(recipe: Recipe) -> Path:
    """`runs/<model>-<data>-seed<seed>` below the working folder; the same for the same recipe, so that it resumes."""
    return Path("runs") / f"{recipe.model.name}-{recipe.data.name}-seed{recipe.training.seed}"


def train(recipe: Recipe, run_dir: str | Path | None = None, resume: str | bool | Path = "auto") -> Run:
    """Train, and leave everything in one folder. Under `torchrun` or `accelerate launch` every process calls it.

    Args:
        recipe: from `load_recipe`.
        run_dir: the folder; `default_run_dir` if None.
        resume: `"auto"` goes on from the newest checkpoint if there is one; True demands one; False demands an empty
            folder; a path names the checkpoint.

    Returns:
        The outcome; on all processes.

    Raises:
        TrainingError: the folder holds another run or is in use, cannot be written, or the loss is not finite.
        CheckpointError: a damaged checkpoint.
        ConfigError, DataError, UnknownNameError: the recipe does not fit its model or data.
    """
    import torch
    from accelerate import PartialState

    processes = PartialState(cpu=not torch.cuda.is_available())
    folder = Path(run_dir) if run_dir is not None else default_run_dir(recipe)
    with folder_lock(folder) if processes.is_main_process else contextlib.nullcontext():
        return _train(recipe, folder, resume, processes)


def _train(recipe: Recipe, folder: Path, resume: str | bool | Path, processes: Any) -> Run:
    """`train` in a folder that is this process's own."""
    finished = _finished(folder, recipe, resume)
    if finished is not None:
        return finished
    objective = objective_of(recipe)
    with processes.main_process_first():  # the first one also fills the caches of downloads
        checkpoint = prepare_folder(folder, recipe, resume, main=processes.is_main_process)
        bundle = objective.load()
    trainer, tokenizer = make_trainer(recipe, bundle, folder, objective)
    if checkpoint is not None:
        _check_processes(checkpoint, trainer.args.world_size, recipe)
    if processes.is_main_process:
        from hybridzoo.training.environment import environment

        facts = environment(bundle.info, trainer.args.world_size)
        _write(folder / ENVIRONMENT_FILE, json.dumps(facts, indent=2) + "\n")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # one bar a saved file is noise beside the bar of the steps
    started = time.monotonic()
    if checkpoint is not None and checkpoints.step_of(checkpoint) >= trainer.args.max_steps:
        trainer.restore(checkpoint)  # trained to the end, killed before the final model was complete
    else:
        with trainer.signals:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    run = Run(
        folder=folder,
        status="stopped" if trainer.stopped_by_signal else "finished",
        step=trainer.state.global_step,
        epoch=float(trainer.state.epoch or 0.0),
        seconds=round(time.monotonic() - started, 3),
        best=trainer.progress["best"],
        signal=trainer.signals.received if trainer.stopped_by_signal else None,
    )
    if trainer.is_fsdp_enabled and run.status == "finished":
        from hybridzoo.training.sharded import whole_model

        trainer.model = whole_model(trainer)  # every process takes part, the first one has it
    if processes.is_main_process:
        from hybridzoo.training.plots import plot_loss

        plot_loss(folder / LOG_FILE, folder / "loss.png", metric=recipe.evaluation.metric)
        if run.status == "finished":
            from hybridzoo.training.finish import finish

            finish(run, recipe, bundle, trainer, tokenizer)
            save_run(run)
    _end_loaders(trainer)
    processes.wait_for_everyone()
    return run


def _end_loaders(trainer: Any) -> None:
    """End the processes that read data. Left to the garbage collector, which closes their queues first, each is waited
    for five seconds.
    """
    handler = trainer.callback_handler
    for loader in (handler.train_dataloader, handler.eval_dataloader):
        inner = getattr(loader, "base_dataloader", loader)  # accelerate's shards hold the DataLoader
        if inner is not None:
            inner._iterator = None


def make_trainer(recipe: Recipe, bundle: Any, folder: Path, objective: Objective | None = None) -> tuple[Any, Any]:
    """The ZooTrainer of a run, ready for `train()`, and the tokenizer (None for images)."""
    from transformers import set_seed

    from hybridzoo.training.callbacks import Flow, JsonLog, Progress
    from hybridzoo.training.trainer import ZooTrainer

    _check_splits(recipe, bundle)
    _check_trackers(recipe)
    objective = objective_of(recipe) if objective is None else objective
    tokenizer = objective.tokenizer(bundle)
    set_seed(recipe.training.seed)
    model = objective.model(bundle)
    if recipe.training.calibrate_temperature and not hasattr(model.config, "temperature"):
        raise ConfigError(f"training.calibrate_temperature: {type(model.config).__name__} has no field temperature")
    train_set, validation_set = objective.datasets(bundle, model, tokenizer)
    with _tensorboard_folder(folder):
        trainer = ZooTrainer(
            recipe,
            model,
            train_set,
            validation_set,
            folder / "checkpoints",
            objective=objective,
            processing_class=tokenizer,
            callbacks=[JsonLog(folder / LOG_FILE), Progress(recipe.model.name)],
        )
    t, updates = recipe.training, trainer.updates_per_epoch
    eval_steps = None if validation_set is None else in_steps(t.eval_every, updates, "training.eval_every")
    trainer.add_callback(Flow(eval_steps, in_steps(t.save_every, updates, "training.save_every")))
    return trainer, tokenizer


def in_steps(every: int | float | str, updates_per_epoch: int, key: str) -> int:
    """`eval_every` or `save_every` in updates; 0 = only at the end."""
    number, unit = parse_every(every, key)
    if not number:
        return 0
    return max(round(number * (updates_per_epoch if unit == "epochs" else 1)), 1)


def save_run(run: Run) -> None:
    """Write `run.json`; its presence says that the run is finished."""
    values = asdict(run) | {"folder": run.folder.name}
    _write(run.folder / RUN_FILE, json.dumps(values, indent=2) + "\n")


def load_run(folder: Path) -> Run:
    """Read `run.json` back."""
    values = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    return Run(**(values | {"folder": folder}))


# The folder --------------------------------------------------------------------------------------------------------


def prepare_folder(folder: Path, recipe: Recipe, resume: str | bool | Path, *, main: bool = True) -> Path | None:
    """Check that the run may live in `folder`, write its recipe there, and find the checkpoint to go on from.

    Args:
        folder: the run folder.
        recipe: of the run.
        resume: see `train`.
        main: this process writes; the others only look.

    Raises:
        TrainingError: something else lies there, or it cannot be written.
        CheckpointError: the checkpoint is damaged, or resume=True finds none.
    """
    store = folder / "checkpoints"
    known = (folder / RECIPE_FILE).is_file()
    if folder.is_dir() and any(folder.iterdir()) and not known:
        raise TrainingError(
            f"{folder} is not empty and no run folder (it has no {RECIPE_FILE}); give another --run-dir"
        )
    if main:
        with _folder_errors(folder):
            checkpoints.tidy(store)
    explicit = not isinstance(resume, bool) and str(resume) != "auto"
    newest = next(reversed(checkpoints.list_checkpoints(store)), None)
    chosen = Path(resume) if explicit else newest  # type: ignore[arg-type]
    if explicit and chosen is not None and not chosen.is_dir():
        have = ", ".join(p.name for p in checkpoints.list_checkpoints(store)) or "none"
        raise TrainingError(f"no checkpoint folder at {chosen}; {store} holds: {have}")
    if resume is False and chosen is not None:
        raise TrainingError(f"{folder} already holds {chosen.name}; leave out --no-resume, or give another --run-dir")
    if resume is True and chosen is None:
        raise TrainingError(f"there is no checkpoint in {store} to resume from; leave out --resume to start anew")
    if chosen is not None:
        if known:
            _check_same_recipe(folder, recipe)
        checkpoints.verify(chosen)
    if main:
        with _folder_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / RECIPE_FILE, recipe_to_yaml(recipe))
            store.mkdir(exist_ok=True)
            if explicit and chosen is not None and chosen.parent.resolve() == store.resolve():
                _set_aside_later(store, chosen)
    return chosen


def _set_aside_later(store: Path, chosen: Path) -> None:
    """Checkpoints after the chosen one (damaged, or not wanted) must not be the newest any more."""
    for later in checkpoints.list_checkpoints(store):
        if checkpoints.step_of(later) > checkpoints.step_of(chosen):
            aside = later.with_name(f"superseded-{later.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(later, aside)


@contextlib.contextmanager
def _folder_errors(folder: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"the run folder {folder} cannot be written ({error.strerror or error}); give another --run-dir"
        ) from error


def _write(path: Path, text: str) -> None:
    """Replace a small file in one step."""
    with whole_file(path) as staged:
        staged.write_text(text, encoding="utf-8")


def _finished(folder: Path, recipe: Recipe, resume: str | bool | Path) -> Run | None:
    """The outcome of an earlier call, if this very run is complete."""
    if resume is False or not (isinstance(resume, bool) or str(resume) == "auto"):
        return None
    if not (folder / RUN_FILE).is_file() or not (folder / "config.json").is_file():
        return None
    _check_same_recipe(folder, recipe)
    return load_run(folder)


def _check_same_recipe(folder: Path, recipe: Recipe) -> None:
    there = _flat(recipe_to_dict(load_recipe(folder / RECIPE_FILE)))
    ours = _flat(recipe_to_dict(recipe))
    changed = [k for k in sorted(there.keys() | ours.keys()) if k not in _FREE_KEYS and there.get(k) != ours.get(k)]
    if changed:
        shown = "; ".join(f"{k} was {there.get(k)!r}, is {ours.get(k)!r}" for k in changed[:5])
        raise TrainingError(
            f"{folder} holds a run of another recipe ({shown}). Give another --run-dir, or the recipe of that run: "
            f"hybridzoo train {folder / RECIPE_FILE} --run-dir {folder}"
        )


def _flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


# What a recipe needs -----------------------------------------------------------------------------------------------


def _check_splits(recipe: Recipe, bundle: Any) -> None:
    t = recipe.training
    if "train" not in bundle.splits or not len(bundle["train"]):
        raise DataError(f"{bundle.info.name} ({bundle.info.protocol}) has no train split to learn from")
    if "validation" in bundle.splits:
        return
    for key, wanted in (
        ("early_stopping_patience", t.early_stopping_patience),
        ("select_best", t.select_best),
        ("calibrate_temperature", t.calibrate_temperature),
    ):
        if wanted:
            raise ConfigError(
                f"training.{key} needs a validation split; {bundle.info.name} ({bundle.info.protocol}) has "
                f"{', '.join(bundle.splits)}. The test split is never used for it"
            )


@contextlib.contextmanager
def _tensorboard_folder(folder: Path) -> Any:
    """transformers' callback asks the environment where to write, when it is made; a value of the user's stays."""
    key = "TENSORBOARD_LOGGING_DIR"
    if key in os.environ:
        yield
        return
    os.environ[key] = str(folder / "tensorboard")
    try:
        yield
    finally:
        del os.environ[key]


def _check_trackers(recipe: Recipe) -> None:
    from importlib.util import find_spec

    for name in recipe.training.report_to:
        if find_spec(name) is None:
            raise ConfigError(f"training.report_to: {name} is not installed; pip install {name}")


def _check_processes(checkpoint: Path, world_size: int, recipe: Recipe) -> None:
    """The steps of an epoch follow from the number of processes: another number would lose the place in it."""
    before = len(list(checkpoint.glob("rng_state*.pth")))
    if before and before != world_size:
        raise TrainingError(
            f"{checkpoint} was written by {before} processes, this run has {world_size}; start it with {before}"
        )
