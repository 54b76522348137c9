"""`hybridzoo leaderboard pictures`: draw what lies beside a result from its stored predictions, without the model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from hybridzoo.data import data_spec, load_data
from hybridzoo.eval.kinds import RecordFile, record_kind
from hybridzoo.eval.schema import FILE_NAME, Result, ResultError
from hybridzoo.eval.tasks import load_task


def draw_pictures(source: str | Path, *, root: str | Path | None = None, errors: int = 0) -> list[Path]:
    """Heat maps, boxes, samples and curves of results, beside their files; existing ones are drawn anew.

    Args:
        source: a result file, or a folder of results.
        root: where the data lie; results on embedded data need none, others are left out without it.
        errors: detection: also so many images with the most errors.

    Returns:
        The pictures that were written.

    Raises:
        ResultError: no result there, or predictions that are missing or not those of the result.
    """
    source = Path(source)
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*.json") if FILE_NAME.fullmatch(p.name))
    if not files:
        raise ResultError(f"there is no result at {source}")
    written: list[Path] = []
    for path in files:
        result = Result.from_json(path)
        task = load_task(result.task.name)
        kind = record_kind(task.kind)
        reference = result.provenance.predictions
        if kind is None or reference is None or (data_spec(task.data).needs and root is None):
            continue  # a matrix is drawn by the page itself
        file = RecordFile.read(path.parent / reference.path, reference.sha256)
        written += kind.pictures(file, result, path.with_suffix(""), _bundle(task, root), errors)
    return written


def _bundle(task: Any, root: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the data; they stand in the result
        return load_data(task.data, root=root if data_spec(task.data).needs else None, protocol=task.protocol)
