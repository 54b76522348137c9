"""Inputs and outputs of `hybridzoo predict`."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridzoo._atomic_file import whole_file
from hybridzoo.cli._table import text_table
from hybridzoo.data.base import Skipped
from hybridzoo.data.images import IMAGE_SUFFIXES
from hybridzoo.data.readers.tables import csv_rows, decode, jsonl_rows, not_utf8
from hybridzoo.errors import DataError, SourceError, unknown

FORMATS = ("table", "csv", "jsonl")
SHOWN_CHARACTERS = 60


@dataclass
class Item:
    """One input, and what became of it: a prediction or an error."""

    where: str
    content: Any = None
    error: str | None = None
    prediction: Any = None


def tell_unusable(items: Sequence[Item], what: str = "inputs") -> int:
    """Name what could not be used, on stderr; how many were.

    Raises:
        DataError: there is no input, or none could be used.
    """
    bad = [item for item in items if item.error is not None]
    for item in bad:
        print(f"{item.where}: {item.error}", file=sys.stderr)
    if not items or len(bad) == len(items):
        raise DataError(f"none of the {len(items)} {what} could be used" if items else "there is no input")
    return len(items) - len(bad)


def read_texts(inputs: Sequence[str], column: str, encoding: str | None) -> list[Item]:
    """Texts of files and stdin; rows that cannot be used carry their reason.

    Raises:
        DataError: a file that is missing, of an unknown kind, or without the column.
    """
    items: list[Item] = []
    for source in inputs:
        if source == "-":
            if sys.stdin.isatty():
                print("reading texts from the keyboard, one a line; Ctrl-D ends", file=sys.stderr)
            items += _lines(sys.stdin.buffer.read(), "stdin", encoding)
            continue
        path = Path(source).expanduser()
        if not path.is_file():
            raise DataError(f"{path}: no such file. A text itself goes to stdin: echo 'the text' | hybridzoo predict …")
        suffix = path.suffix.lower()
        if suffix in (".csv", ".tsv"):
            items += [_row(where, row, column, path) for where, row in csv_rows(path, encoding=encoding)]
        elif suffix in (".jsonl", ".json", ".ndjson"):
            items += [_row(where, row, column, path) for where, row in jsonl_rows(path, encoding=encoding)]
        elif suffix in (".txt", ""):
            items += _lines(path.read_bytes(), path.name, encoding)
        else:
            raise DataError(f"{path}: texts are read from .txt, .csv, .tsv and .jsonl files, not from {suffix}")
    return items


def _lines(data: bytes, name: str, encoding: str | None) -> list[Item]:
    items = []
    for number, line in enumerate(decode(data, name, encoding).split("\n"), 1):
        line = line.rstrip("\r")
        if line.strip():  # blank lines separate, they are no texts
            items.append(Item(f"{name}:{number}", line, "not UTF-8; --encoding latin-1?" if not_utf8(line) else None))
    return items


def _row(where: str, row: dict[str, Any] | Skipped, column: str, path: Path) -> Item:
    if isinstance(row, Skipped):
        return Item(where, error=row.reason)
    if column not in row:
        if path.suffix.lower() in (".csv", ".tsv"):
            raise DataError(
                f"{path}: " + unknown("column", column, row, f"(columns: {', '.join(row)}; choose with --column)")
            )
        return Item(where, error=f"no key {column!r}; it has {', '.join(list(row)[:5]) or 'none'}")
    text = row[column]
    if not isinstance(text, str):
        return Item(where, error=f"{column!r} is no string ({str(text)[:30]})")
    return Item(where, text, None if text.strip() else "empty text")


def read_images(inputs: Sequence[str]) -> list[Item]:
    """Image files, and those of folders (sorted, sub-folders included).

    Raises:
        DataError: nothing given, or a folder without images.
    """
    if not inputs or inputs == ["-"]:
        raise DataError("this model labels images: give files or folders")
    items = []
    for source in inputs:
        path = Path(source).expanduser()
        if not path.is_dir():
            items.append(Item(str(path), path))
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not found:
            raise DataError(f"{path} holds no image files ({', '.join(IMAGE_SUFFIXES)})")
        items += [Item(str(p), p) for p in found]
    return items


def render(items: Sequence[Item], format: str, top: int, labels: Sequence[str], *, show_text: bool) -> str:
    """The output in one of `FORMATS`, newline at the end."""
    if format == "jsonl":
        return "".join(json.dumps(_record(item, top), ensure_ascii=False) + "\n" for item in items)
    if format == "csv":
        return _csv(items, labels)
    rows = []
    for item in items:
        text = " ".join(str(item.content).split()) if show_text and item.content is not None else item.where
        text = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
        if item.prediction is None:
            rows.append((text, "(unusable)", None, item.error))
            continue
        others = list(item.prediction["scores"].items())[1:top]
        rest = ", ".join(f"{name} {score:.3f}" for name, score in others)
        rows.append((text, item.prediction["label"] or "(unsure)", f"{item.prediction['score']:.3f}", rest))
    head = ("text" if show_text else "image", "label", "score", "next")
    return text_table(head, rows, right=(2,)) + "\n"


def _record(item: Item, top: int) -> dict[str, Any]:
    if item.prediction is None:
        return {"id": item.where, "label": None, "error": item.error}
    scores = dict(list(item.prediction["scores"].items())[:top])
    return {"id": item.where, "label": item.prediction["label"], "score": item.prediction["score"], "scores": scores}


def _csv(items: Sequence[Item], labels: Sequence[str]) -> str:
    """All scores have a column with up to 20 classes."""
    columns = list(labels) if len(labels) <= 20 else []
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", "label", "score", *(f"score_{c}" for c in columns), "error"])
    for item in items:
        if item.prediction is None:
            writer.writerow([item.where, "", "", *("" for _ in columns), item.error])
            continue
        p = item.prediction
        scores = [f"{p['scores'][c]:.6f}" for c in columns]
        writer.writerow([item.where, p["label"] or "", f"{p['score']:.6f}", *scores, ""])
    return buffer.getvalue()


def check_output(path: Path) -> None:
    """Refuse an output that exists or cannot be written, before anything is computed."""
    if path.exists():
        raise DataError(f"{path} exists; give another --output, or remove it first")
    if not path.resolve().parent.is_dir():
        raise DataError(f"{path.resolve().parent} does not exist; create it first")


def write(path: Path, text: str) -> None:
    """Write a file, complete or not at all."""
    try:
        with whole_file(path) as staged:
            staged.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise SourceError(f"cannot write {path}: {error.strerror or error}") from error
