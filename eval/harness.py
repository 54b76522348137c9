"""`evaluate`: a model and a task to one result. Predictions are written first, and scores are computed from what was
written.

from hybridzoo.eval import evaluate
result = evaluate("iformer_mini", "fashion_mnist_mini", out="results")
result.metrics["top1"].value
"""

from __future__ import annotations

import hashlib
import shlex
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hybridzoo.data import DataBundle, DataWarning, load_data
from hybridzoo.errors import ConfigError, DataError
from hybridzoo.eval import record
from hybridzoo.eval.kinds import RecordFile, record_kind
from hybridzoo.eval.predictions import PredictionFile, Predictions, score
from hybridzoo.eval.predictors import BaselinePredictor, load_predictor
from hybridzoo.eval.schema import (
    DatasetRef,
    Efficiency,
    Metric,
    PredictionsRef,
    Provenance,
    Result,
    ResultError,
    Run,
    TaskRef,
    write_new,
)
from hybridzoo.eval.tasks import LOWER_IS_BETTER, Task, load_task

BASELINE = "baseline:"
DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True)
class Evaluation:
    """A result, the predictions behind it, where both were written (None: nowhere), and the data."""

    result: Result
    predictions: PredictionFile | RecordFile
    path: Path | None
    bundle: DataBundle | None = None


def evaluate(
    model: Any,
    task: str | Task,
    *,
    limit: int | None = None,
    batch_size: int | None = None,
    device: Any = None,
    root: str | Path | None = None,
    protocol: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    **options: Any,
) -> Result:
    """Evaluate a model; `run_task` says what the arguments are, and returns the predictions too."""
    return run_task(
        model,
        task,
        limit=limit,
        batch_size=batch_size,
        device=device,
        root=root,
        protocol=protocol,
        seed=seed,
        out=out,
        **options,
    ).result


def run_task(
    model: Any,
    task: str | Task,
    *,
    limit: int | None = None,
    batch_size: int | None = None,
    device: Any = None,
    root: str | Path | None = None,
    protocol: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    dtype: str = "float32",
    calibrate: bool = False,
    name: str | None = None,
    command: str | None = None,
    notes: str = "",
    progress: bool = False,
    num_workers: int = 0,
    **options: Any,
) -> Evaluation:
    """Evaluate a model on a task.

    Args:
        model: a model in memory, a registered name, a folder or hub id, or `"baseline:NAME"` (trained on the task's
            train split).
        task: a name of `list_tasks()`, or a Task.
        limit: score only so many samples (a stratified draw); the track becomes `subset`.
        batch_size: samples per forward; 32 if left out.
        device: left out: a GPU if there is one.
        root: where the data lie; embedded sets need none.
        protocol: another protocol of the task's data.
        seed: of the bootstrap.
        out: folder for result and predictions (`<out>/<task>/<model>/…`); left out, nothing is written.
        dtype: "float32" or "bfloat16".
        calibrate: also predict the validation split, fit a temperature on it, and report NLL and ECE after it.
        name: of the model in the result; `name.tag` gives it a tag.
        command: recorded in the result.
        notes: recorded in the result.
        progress: bars on stderr.
        num_workers: processes that read images.
        **options: of `TextClassifier` (`tokenizer`, `long_text`, `max_length`, `preprocess`), `ImageClassifier`, or the
            predictor of the task's kind.

    Raises:
        DataError, UnknownNameError, ConfigError, CheckpointError, ResultError: each names what was given and the fix.
    """
    if out is not None:
        _check_out(Path(out))
    started = datetime.now(UTC)
    spec = load_task(task, protocol) if isinstance(task, str) else task
    kind = record_kind(spec.kind)
    baseline = isinstance(model, str) and model.startswith(BASELINE)
    if kind is not None and (baseline or calibrate):
        raise ConfigError(
            f"{'a baseline' if baseline else '--calibrate'} needs a task of classification, not {spec.kind}"
        )
    predictor = None if baseline else load_predictor(model, spec, device, dtype, name, options)
    bundle, total = _read_data(spec, root, limit, baseline)
    if predictor is None:
        if options:
            raise ConfigError(f"a baseline takes no {', '.join(options)}")
        predictor = BaselinePredictor(str(model).removeprefix(BASELINE), bundle, seed)
    test = bundle[spec.split]
    begin = time.perf_counter()
    size = batch_size or DEFAULT_BATCH_SIZE
    if kind is not None:
        rows = predictor.records(bundle, test, size, num_workers, progress)  # type: ignore[union-attr]
        seconds = time.perf_counter() - begin
        records = RecordFile(spec.name, bundle.info.label_names, rows, kind.head(bundle, spec))
        data = records.to_bytes()
        predictions: PredictionFile | RecordFile = RecordFile.from_bytes(data)
        metrics, details = kind.score(predictions, spec, seed=seed)
    else:
        logits = predictor.logits(bundle, test, size, num_workers, progress)
        seconds = time.perf_counter() - begin
        validation = None
        if calibrate:
            held_out = bundle["validation"]
            more = predictor.logits(bundle, held_out, size, num_workers, progress)
            validation = Predictions.from_logits(held_out.ids, held_out.labels, more)
        written = PredictionFile(
            spec.name, bundle.info.label_names, Predictions.from_logits(test.ids, test.labels, logits), validation
        )
        data = written.to_bytes()
        predictions = PredictionFile.from_bytes(data)  # scored as they stand in the file, rounding included
        metrics, details = score(predictions, spec, seed=seed)
    commit, dirty = record.git_state()
    result = Result(
        model=predictor.reference,
        task=_task_ref(spec, bundle, total),
        metrics=metrics,
        track=bundle.info.track,
        details=details,
        efficiency=Efficiency(
            throughput=round(len(test) / seconds, 2),
            batch_size=batch_size or DEFAULT_BATCH_SIZE,
            peak_memory_mb=predictor.peak_memory_mb(),
        ),
        run=Run(
            date=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            command=command or _command(model, spec, limit, root, calibrate, dtype, seed, options),
            recipe=predictor.recipe.get("title"),
            training_seed=predictor.recipe.get("seed"),
            seed=seed,
            dtype=dtype,
            device=predictor.device_name,
            git_commit=commit,
            git_dirty=dirty,
            versions=record.versions(),
            wall_s=round(seconds, 3),
        ),
        provenance=Provenance(
            status="measured",
            predictions=PredictionsRef(path="predictions.jsonl.gz", sha256=hashlib.sha256(data).hexdigest()),
            notes="; ".join(n for n in (predictor.note, notes) if n),
        ),
    )
    path = None
    if out is not None:
        result, path = write_result(result, data, Path(out))
    result.validate()
    return Evaluation(result, predictions, path, bundle)


def _check_out(out: Path) -> None:
    """Refuse a folder that cannot be written before anything is computed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ResultError(f"cannot write into {out}: {error.strerror or error}; give another folder") from error


def write_result(result: Result, predictions: bytes, out: Path) -> tuple[Result, Path]:
    """Write predictions, then the result that names them; each file complete or not at all, and never over another."""
    path = result.path_in(out)
    number = 1
    while path.exists() or path.with_name(f"{path.stem}.predictions.jsonl.gz").exists():
        number += 1
        base = result.path_in(out)
        path = base.with_name(f"{base.stem}-{number}.json")
    file = path.with_name(f"{path.stem}.predictions.jsonl.gz")
    assert result.provenance.predictions is not None
    reference = replace(result.provenance.predictions, path=file.name)
    result = replace(result, provenance=replace(result.provenance, predictions=reference))
    result.validate()
    write_new(file, predictions)
    try:
        result.to_json(path)
    except ResultError:
        file.unlink(missing_ok=True)
        raise
    return result, path


def rescore(path: str | Path) -> dict[str, Metric]:
    """The metrics of a result file, computed again from the predictions beside it.

    Raises:
        ResultError: a paper row, or predictions that are missing or not the ones that were scored.
    """
    path = Path(path)
    result = Result.from_json(path)
    reference = result.provenance.predictions
    if reference is None or result.run is None:
        raise ResultError(f"{path} is a paper row: there are no predictions to score")
    task = load_task(result.task.name)
    kind = record_kind(task.kind)
    if kind is not None:
        records = RecordFile.read(path.parent / reference.path, reference.sha256)
        return kind.score(records, task, seed=result.run.seed)[0]
    file = PredictionFile.read(path.parent / reference.path, reference.sha256)
    return score(file, task, seed=result.run.seed)[0]


def _read_data(spec: Task, root: Any, limit: int | None, baseline: bool) -> tuple[DataBundle, int]:
    """The bundle, and how many samples the scored split has without `limit`. A baseline trains on the whole train
    split.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*splits share samples", category=DataWarning
        )  # stands in the result
        full = load_data(spec.data, root=root, protocol=spec.protocol)
    total = len(full[spec.split])
    if limit is None or limit >= total:
        if limit is not None and limit < 1:
            raise DataError(f"limit must be at least 1, got {limit}")
        return full, total
    from hybridzoo.data.catalog import draw_subset

    if limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}")
    test = full[spec.split]
    splits = {**full.splits, spec.split: draw_subset(full.info.task, test, limit, full.info.seed)}
    return DataBundle(replace(full.info, track="subset"), splits), total


def _task_ref(spec: Task, bundle: DataBundle, total: int) -> TaskRef:
    info = bundle.info
    shared = [f"{count} samples of {pair}" for pair, count in info.duplicates.items() if spec.split in pair]
    return TaskRef(
        name=spec.name,
        version=spec.version,
        protocol=info.protocol,
        primary=spec.primary,
        higher_is_better=spec.primary not in LOWER_IS_BETTER,
        dataset=DatasetRef(
            id=info.name,
            split=spec.split,
            n_total=total,
            n_used=len(bundle[spec.split]),
            revision=info.revision or None,
            sha256=info.sha256,
            sha256_of=info.sha256_of,
            skipped=len(info.skipped),
            notes=[*info.notes, *shared],
        ),
    )


def _command(
    model: Any,
    spec: Task,
    limit: int | None,
    root: Any,
    calibrate: bool,
    dtype: str,
    seed: int,
    options: Mapping[str, Any],
) -> str:
    """The command that repeats the run; local paths are replaced by ROOT and by the folder's name."""
    shown = Path(model).name if isinstance(model, Path) or (isinstance(model, str) and Path(model).is_dir()) else model
    words = ["hybridzoo", "eval", shown if isinstance(shown, str) else type(model).__name__, spec.name]
    words += ["--limit", str(limit)] if limit is not None else []
    words += ["--root", "ROOT"] if root is not None else []
    words += ["--calibrate"] if calibrate else []
    words += ["--dtype", dtype] if dtype != "float32" else []
    words += ["--seed", str(seed)] if seed else []
    for key, value in options.items():
        if key == "long_text":
            words += ["--long-text", str(value)]
        elif isinstance(value, str | int | float | bool):  # a tokenizer in memory has no text
            local = isinstance(value, str) and value.startswith(("/", ".", "~"))
            value = Path(str(value)).name if local else value
            words += ["--option", f"{key}={value}"]
    return shlex.join(words)
