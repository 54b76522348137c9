"""`hybridzoo leaderboard export`: results in the two formats of the Hugging Face Hub.

    <model>/README.md                   card whose metadata hold a `model-index`, with every measured result
    <model>/.eval_results/<task>.yaml   entries for data sets that have a page on the Hub; the Hub shows them where the
                                        data set is a registered benchmark

Only measured rows are exported. The mini track goes into the card alone: an embedded part is not the Hub's data set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from hybridzoo.errors import ConfigError
from hybridzoo.eval.leaderboard.rows import Row, Table, load_tables, metric_label
from hybridzoo.eval.schema import ResultError, write_new
from hybridzoo.eval.tasks import load_task

# Task -> (data set on the Hub, its configuration); only where our data are the whole official split of it.
HUB_DATA = {
    "imagenet1k": ("ILSVRC/imagenet-1k", "default"),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", "fashion_mnist"),
    "imdb": ("stanfordnlp/imdb", "plain_text"),
    "sentiment140_manual": ("stanfordnlp/sentiment140", "sentiment140"),
    "coco": ("detection-datasets/coco", "default"),
}


def export(
    results: Path, out: str | Path, *, repository: str | None = None, datasets: Mapping[str, str] | None = None
) -> list[Path]:
    """Write one folder per model.

    Args:
        results: folder of result files.
        out: a new folder.
        repository: address of the repository on the web: where the entries' source is.
        datasets: task -> hub id, added to HUB_DATA.

    Returns:
        The files that were written.

    Raises:
        ConfigError: `out` is not empty, or a hub id that is none.
        ResultError: a result is invalid, or nothing was measured.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} exists and is not empty; give a new folder")
    hub = dict(HUB_DATA)
    for task, repo in (datasets or {}).items():
        load_task(task)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            raise ConfigError(f"{repo!r} is no hub id; expected org/name")
        hub[task] = (repo, "default")
    models: dict[str, list[tuple[Table, Row]]] = {}
    for table in load_tables(results):
        for cohort, row in table.rows:
            if cohort.kind != "paper" and row.family != "baseline":
                models.setdefault(row.label.partition(" (")[0], []).append((table, row))
    if not models:
        raise ResultError(f"there is no measured result of a model below {results}")
    written = []
    for model, rows in sorted(models.items()):
        folder = out / model
        written.append(_write(folder / "README.md", card(model, rows)))
        for task, entries in _entries(rows, hub, repository).items():
            text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
            written.append(_write(folder / ".eval_results" / f"{task}.yaml", text))
    return written


def _write(path: Path, text: str) -> Path:
    write_new(path, text.encode("utf-8"))
    return path


def card(model: str, rows: Iterable[tuple[Table, Row]]) -> str:
    """A model card with the results as `model-index`; the mean of a row's seeds is its value."""
    from huggingface_hub import EvalResult, ModelCardData

    found, lines = [], []
    for table, row in rows:
        data = row.first.task.dataset
        task = load_task(table.name)
        for name, score in row.scores.items():
            found.append(
                EvalResult(
                    task_type=task.kind,
                    dataset_type=data.id,
                    dataset_name=f"{table.title} ({row.first.track})",
                    dataset_split=data.split,
                    dataset_revision=data.revision or data.sha256,
                    metric_type=name,
                    metric_name=metric_label(name),
                    metric_value=round(score.value, 4),
                )
            )
        best = row.scores.get(table.primary)
        if best is not None:
            error = "" if best.error is None else f" ± {best.error:.2f}"
            lines.append(f"- {table.title}: {metric_label(table.primary)} {best.value:.2f}{error}")
    facts = ModelCardData(
        model_name=model, eval_results=found, library_name="hybridzoo", tags=["hybridzoo"], license="apache-2.0"
    )
    text = "\n".join(lines)
    return f"---\n{facts.to_yaml()}\n---\n\n# {model}\n\nMeasured by hybridzoo's harness:\n\n{text}\n"


def _entries(
    rows: Iterable[tuple[Table, Row]], hub: Mapping[str, tuple[str, str]], repository: str | None
) -> dict[str, list[dict[str, Any]]]:
    """Task -> entries of `.eval_results`: the metric that ranks, on a whole official split."""
    made: dict[str, list[dict[str, Any]]] = {}
    for table, row in rows:
        if table.name not in hub or row.first.track != "full" or table.primary not in row.scores:
            continue
        run = row.first.run
        assert run is not None
        score = row.scores[table.primary]
        repo, task = hub[table.name]
        kind = "standard deviation over seeds" if score.kind == "sd" else "bootstrap standard error"
        spread = "" if score.error is None else f", ± {score.error:.2f} ({kind})"
        entry: dict[str, Any] = {
            "dataset": {"id": repo, "task_id": task},
            "value": round(score.value, 4),
            "date": run.date[:10],
            "notes": f"{metric_label(table.primary)}, {len(row.entries)} seed(s){spread}; `{run.command}`",
        }
        if repository:
            entry["source"] = {"url": repository, "name": "hybridzoo results"}
        made.setdefault(table.name, []).append(entry)
    return made
