"""Plain text tables and numbers for the commands; no colours, so that output can be piped and compared."""

from __future__ import annotations

from collections.abc import Sequence

import typer


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()) -> str:
    """Columns aligned with two spaces between them.

    Args:
        header: column titles.
        rows: cells; `None` prints as `-`.
        right: indices of the columns to align to the right (numbers).
    """
    cells = [list(header), *[["-" if c is None else str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = [c.rjust(widths[i]) if i in right else c.ljust(widths[i]) for i, c in enumerate(row)]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def si(value: float | None, unit: str = "") -> str:
    """1234567 -> `1.23M`; `-` for None."""
    if value is None:
        return "-"
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return (
                f"{value / limit:.3g}{suffix}{unit}"
                if abs(value) < limit * 100
                else f"{value / limit:.0f}{suffix}{unit}"
            )
    return f"{value:g}{unit}"


def echo_json(value: object) -> None:
    """Print a value as indented JSON."""
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
