"""What `hybridzoo bench …` commands share: where they run, and how settings are measured and their rows kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer


def place(device: str | None) -> str:
    """The device that was named, or the accelerator if there is one."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def measure(
    kind: str,
    names: Sequence[str],
    settings: Sequence[Any],
    benchmark_all: Callable[..., list[dict[str, Any]]],
    *,
    device: str,
    title: str,
    out: Path | None,
) -> None:
    """Print a line a row and write all rows to `out`; exit code 1 if not one could be measured.

    Args:
        kind: of the file, see `bench.report.write_json`.
        names, settings: for `benchmark_all(names, [setting], log=)`.
        device: where it ran.
        title: heading in the report.
        out: JSON file, or None.
    """
    import torch

    from hybridzoo.bench.report import write_json

    rows: list[dict[str, Any]] = []
    for setting in settings:
        rows += benchmark_all(names, [setting], log=typer.echo)
        if out is not None:  # after each setting, so that an interruption loses little
            write_json(out, kind, rows, torch.device(device), title=title)
    if out is not None:
        typer.echo(f"wrote {out}")
    if all("error" in row for row in rows):
        raise typer.Exit(1)
