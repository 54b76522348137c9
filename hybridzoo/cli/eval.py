"""`hybridzoo eval`: a model on a task, to a table and a result file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    app.command(name="eval")(eval_command)


def _print_tasks(asked: bool) -> None:
    if not asked:
        return
    from hybridzoo.cli._table import text_table
    from hybridzoo.data import data_spec
    from hybridzoo.eval.tasks import TASKS

    rows = [
        (t.name, t.title, t.protocol, t.primary, "--root" if data_spec(t.data).needs else "embedded")
        for t in TASKS.values()
    ]
    typer.echo(text_table(("task", "title", "protocol", "ranked by", "data"), rows))
    raise typer.Exit()


def eval_command(
    model: Annotated[str, typer.Argument(help="Registered name, name.tag, folder, hub id, or baseline:NAME.")],
    task: Annotated[str, typer.Argument(help="Task (--tasks lists them).")],
    limit: Annotated[int | None, typer.Option(help="Score only so many samples; the track becomes 'subset'.")] = None,
    root: Annotated[str | None, typer.Option(help="Where the data lie; embedded sets need none.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Another protocol of the task's data.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples per forward.")] = 32,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; a GPU if there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Fit a temperature on the validation split.")] = False,
    seed: Annotated[int, typer.Option(help="Of the bootstrap that gives the standard errors.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id, if not beside the model.")] = None,
    long_text: Annotated[str | None, typer.Option(help="truncate, head_tail or sliding_window.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="key=value of the task's predictor, e.g. cfg_scale=2. Repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the result, name or name.tag.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of results.", show_default="eval/results or results")] = None,
    errors: Annotated[int, typer.Option(help="Detection: draw so many images with the most errors.", min=0)] = 0,
    timm_csv: Annotated[Path | None, typer.Option(help="Also add a row in timm's columns to this CSV.")] = None,
    tasks: Annotated[
        bool, typer.Option("--tasks", help="List the tasks and stop.", is_eager=True, callback=_print_tasks)
    ] = False,
) -> None:
    """Evaluate a model on a task and write a result file.

    Predictions are written beside the result, and the scores are computed from them. A result is never overwritten.
    Inside a clone the default folder is eval/results, elsewhere ./results.

    \b
    hybridzoo eval iformer_mini fashion_mnist_mini
    hybridzoo eval ./runs/my_model imdb --protocol paper --root data/sentiment
    hybridzoo eval baseline:tfidf_lr vader
    hybridzoo eval hymba_1_5b.nvidia_base lm_eval:hymba_base --dtype bfloat16
    hybridzoo eval ./runs/my_lm lm_eval:hellaswag,mmlu@5 --limit 100
    """
    import inspect
    import sys

    from hybridzoo.cli._table import text_table
    from hybridzoo.cli._warnings import plain_warnings
    from hybridzoo.errors import ConfigError
    from hybridzoo.eval.harness import run_task
    from hybridzoo.eval.metrics.plots import save_confusion_matrix

    plain_warnings()
    options: dict[str, Any] = {}
    if tokenizer is not None:
        from transformers import AutoTokenizer

        try:
            options["tokenizer"] = AutoTokenizer.from_pretrained(tokenizer)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no tokenizer in {tokenizer} ({str(error).splitlines()[0]})") from error
    if long_text is not None:
        options["long_text"] = long_text
    options |= _key_values(option or ())
    for key in options.keys() & {p for p in inspect.signature(run_task).parameters if p != "options"}:
        flag = {"num_workers": "workers"}.get(key, key).replace("_", "-")
        raise ConfigError(f"--option {key}: not an option of the task; the command takes it as --{flag}")
    if task.startswith("lm_eval:"):
        for key, given in (("--root", root), ("--protocol", protocol), ("--calibrate", calibrate)):
            if given:
                raise ConfigError(f"{key} is not for lm_eval: tasks; --option include_path=FOLDER adds tasks")
        _lm_eval(model, task, out or default_out(), options, limit, batch_size, device, dtype, seed, name)
        return
    done = run_task(
        model,
        task,
        limit=limit,
        root=root,
        protocol=protocol,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        calibrate=calibrate,
        seed=seed,
        num_workers=workers,
        name=name,
        out=out or default_out(),
        progress=sys.stderr.isatty(),
        **options,
    )
    result, path = done.result, done.path
    assert path is not None
    used, total = result.task.dataset.n_used, result.task.dataset.n_total
    part = "" if used == total else f" of {total:,}"
    typer.echo(
        f"{result.model.full_name} on {result.task.name} ({result.task.protocol}, {used:,}{part} samples, track "
        f"{result.track})"
    )
    rows = [
        (
            name,
            f"{m.value:.2f}" if m.unit == "%" else f"{m.value:.4f}",
            None if m.stderr is None else f"{m.stderr:.2g}",
            m.unit,
        )
        for name, m in result.metrics.items()
    ]
    typer.echo(text_table(("metric", "value", "+-", "unit"), rows, right=(1, 2)))
    if result.efficiency is not None and result.run is not None:
        typer.echo(f"{result.efficiency.throughput:,} samples/s on {result.run.device}")
    for note in [*result.task.dataset.notes, result.provenance.notes]:
        if note:
            typer.echo(f"note: {note}")
    typer.echo(f"result: {path}")
    for picture in _pictures(done, errors):
        typer.echo(f"picture: {picture}")
    matrix = result.details.get("confusion_matrix")
    if matrix:
        picture = path.with_name(f"{path.stem}.confusion.png")
        if save_confusion_matrix(
            matrix["counts"], matrix["labels"], picture, title=f"{result.model.full_name} on {result.task.name}"
        ):
            typer.echo(f"confusion matrix: {picture}")
    if timm_csv is not None:
        from hybridzoo.eval.timm_csv import append_row

        append_row(result, timm_csv)
        typer.echo(f"timm row: {timm_csv}")


def _key_values(texts: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts, the value in YAML."""
    import yaml

    from hybridzoo.errors import ConfigError

    made: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ConfigError(f"--option {text!r} is not key=value; example: --option cfg_scale=2.0")
        try:
            made[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--option {text!r}: the value is not valid YAML") from error
    return made


def _pictures(done: Any, errors: int) -> list[Path]:
    """Of tasks that score records, what their kind draws."""
    from hybridzoo.eval.kinds import record_kind
    from hybridzoo.eval.tasks import load_task

    kind = record_kind(load_task(done.result.task.name).kind)
    if kind is None or done.path is None:
        return []
    return kind.pictures(done.predictions, done.result, done.path.with_suffix(""), done.bundle, errors)


def _lm_eval(
    model: str,
    task: str,
    out: Path,
    options: dict[str, Any],
    limit: int | None,
    batch_size: int,
    device: str | None,
    dtype: str,
    seed: int,
    name: str | None,
) -> None:
    """Tasks of lm-evaluation-harness: one table and one result file each."""
    from hybridzoo.cli._table import text_table
    from hybridzoo.errors import ConfigError, unknown
    from hybridzoo.eval.lm.results import run_lm_eval

    known = ("include_path", "num_fewshot", "max_length", "tokenizer")
    for key in options:
        if key not in known:
            raise ConfigError(unknown("option of lm_eval", key, known))
    sizes: dict[str, Any] = {"limit": limit, "batch_size": batch_size, "device": device, "dtype": dtype, "seed": seed}
    rows = []
    for result, path in run_lm_eval(model, task, out=out, name=name, **sizes, **options):
        for metric, m in result.metrics.items():
            error = None if m.stderr is None else f"{m.stderr:.2g}"
            rows.append((result.task.name.removeprefix("lm_eval_"), metric, f"{m.value:.4g}", error, m.unit))
        typer.echo(f"result: {path}")
    typer.echo(text_table(("task", "metric", "value", "+-", "unit"), rows, right=(2, 3)))


def default_out() -> Path:
    """`eval/results` of the clone that the working directory lies in, else `./results`."""
    from hybridzoo._paths import asset_root

    clone = asset_root("eval").parent
    here = Path.cwd().resolve()
    if (clone / "setup.py").is_file() and (here == clone or clone in here.parents):
        return clone / "eval" / "results"
    return Path("results")
