"""ImageNet results in the columns of timm's `results-imagenet.csv`, for comparison with its tables."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from hybridzoo._atomic_file import whole_file
from hybridzoo.errors import DataError
from hybridzoo.eval.schema import Result

COLUMNS = ("model", "img_size", "top1", "top1_err", "top5", "top5_err", "param_count", "crop_pct", "interpolation")


def timm_row(result: Result) -> dict[str, Any]:
    """One row: top-1 and top-5 in % with three decimals, parameters in millions.

    Raises:
        DataError: the result has no top-1 and top-5.
    """
    if not {"top1", "top5"} <= set(result.metrics):
        raise DataError(f"timm's columns need top1 and top5; {result.task.name} has {', '.join(result.metrics)}")
    top1, top5, settings = result.metrics["top1"].value, result.metrics["top5"].value, result.model.settings
    return {
        "model": result.model.full_name,
        "img_size": settings.get("image_size", ""),
        "top1": f"{top1:.3f}",
        "top1_err": f"{100 - top1:.3f}",
        "top5": f"{top5:.3f}",
        "top5_err": f"{100 - top5:.3f}",
        "param_count": "" if result.model.params is None else f"{result.model.params / 1e6:.2f}",
        "crop_pct": settings.get("crop_pct", ""),
        "interpolation": settings.get("interpolation", ""),
    }


def append_row(result: Result, path: Path) -> None:
    """Add a row to a CSV file, which is made with a header if it does not exist.

    Raises:
        DataError: the file has other columns.
    """
    row = timm_row(result)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if before and tuple(next(csv.reader([before.splitlines()[0]]))) != COLUMNS:
        raise DataError(f"{path} has other columns than timm's ({', '.join(COLUMNS)}); give another file")
    buffer = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(buffer, list(COLUMNS), lineterminator="\n")
    if not before:
        writer.writeheader()
    writer.writerow(row)
    if before and not before.endswith("\n"):
        before += "\n"
    with whole_file(path) as staged:
        staged.write_text(before + buffer.getvalue(), encoding="utf-8")
