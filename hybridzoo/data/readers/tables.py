"""Texts in CSV, TSV and JSON Lines files.

A row that cannot be used (not UTF-8, wrong number of fields, no text, unknown label, a quote that is never closed) is
named with its line; when more than `max_skipped` of a file is unusable the file itself is refused, because then the
delimiter, the encoding or the column is most likely wrong.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.base import MAX_SKIPPED, Raw, Skipped, Split, check_skipped, sha256_files
from hybridzoo.data.splits import split_90_5_5
from hybridzoo.errors import DataError, unknown

MAX_ROW_LINES = 2000  # a quoted field over more lines than this is a quote that was never closed
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class Row:
    """One usable text row and where it stood."""

    where: str
    text: str
    label: str


def decode(data: bytes, where: str, encoding: str | None = None) -> str:
    """Text of a file. Without `encoding`: UTF-8 (with or without byte-order mark) or marked UTF-16; bytes that are
    not UTF-8
    become lone surrogates, so that only their rows are left out."""
    if encoding is not None:
        try:
            return data.decode(encoding)
        except LookupError as error:
            raise DataError(
                f"unknown encoding {encoding!r}; Python's names are meant, e.g. 'utf-8' or 'latin-1'"
            ) from error
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise DataError(f"{where}, line {line}: the bytes are not {encoding} ({error.reason})") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig", errors="surrogateescape")


def not_utf8(text: str) -> bool:
    """Whether `decode` met bytes in this piece that are not UTF-8."""
    return any("\udc80" <= c <= "\udcff" for c in text) if not text.isascii() else False


def csv_rows(
    path: Path, *, encoding: str | None = None, delimiter: str | None = None, header: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, str] | Skipped]]:
    """Rows of a CSV file as (where, {column: field}), or (where, Skipped) for a broken row.

    Args:
        path: the file.
        encoding: see `decode`.
        delimiter: a tab for `.tsv`, else a comma, if left out.
        header: column names when the file has no header line.

    Raises:
        DataError: empty file, or no header.
    """
    csv.field_size_limit(2**31 - 1)  # reviews of megabytes are legal; Python's default is 131,072 characters
    content = decode(path.read_bytes(), str(path), encoding)
    reader = csv.reader(
        io.StringIO(content, newline=""), delimiter=delimiter or ("\t" if path.suffix == ".tsv" else ",")
    )
    names = list(header) if header is not None else [name.strip() for name in next(reader, [])]
    if not any(names):
        raise DataError(f"{path} is empty: expected a header line with column names")
    previous = reader.line_num
    for fields in reader:
        first, previous = previous + 1, reader.line_num
        where = f"{path.name}:{first}"
        if not fields:
            continue  # a blank line
        if previous - first > MAX_ROW_LINES:
            yield where, Skipped(where, f"a quote is opened and not closed within {previous - first:,} lines")
        elif len(fields) != len(names):
            yield where, Skipped(where, f"{len(fields)} fields, the header has {len(names)}")
        elif any(map(not_utf8, fields)):
            yield where, Skipped(where, "not UTF-8")
        else:
            yield where, dict(zip(names, fields))


def csv_header(path: Path) -> list[str]:
    """Column names in the first line of a comma-separated file."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader(file), [])


def jsonl_rows(path: Path, *, encoding: str | None = None) -> Iterator[tuple[str, dict[str, Any] | Skipped]]:
    """Objects of a JSON Lines file as (where, object), or (where, Skipped) for a broken line."""
    for number, line in enumerate(decode(path.read_bytes(), str(path), encoding).split("\n"), 1):
        where = f"{path.name}:{number}"
        if not line.strip():
            continue
        if not_utf8(line):
            yield where, Skipped(where, "not UTF-8")
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield where, Skipped(where, f"not JSON ({error})")
            continue
        yield (
            where,
            value if isinstance(value, dict) else Skipped(where, f"a JSON {type(value).__name__}, not an object"),
        )


def collect(
    rows: Iterator[tuple[str, dict[str, Any] | Skipped]], path: Path, text_column: str, label_column: str
) -> tuple[list[Row], list[Skipped]]:
    """Rows with a text and a label; what lacks one is named.

    Raises:
        DataError: no row has one of the columns.
    """
    kept: list[Row] = []
    skipped: list[Skipped] = []
    for where, row in rows:
        if isinstance(row, Skipped):
            skipped.append(row)
            continue
        missing = [c for c in (text_column, label_column) if c not in row]
        if missing and not kept and path.suffix != ".jsonl":
            hint = f"(columns: {', '.join(row)}; name them with text_column= and label_column=)"
            raise DataError(f"{path}: " + unknown("column", missing[0], row, hint))
        if missing:
            skipped.append(Skipped(where, f"no {missing[0]!r}"))
            continue
        text, label = row[text_column], row[label_column]
        if not isinstance(text, str) or not text.strip():
            skipped.append(
                Skipped(where, "empty text" if text in ("", None) or isinstance(text, str) else "text is no string")
            )
        elif isinstance(label, (dict, list, float)) or label is None or not str(label).strip():
            skipped.append(
                Skipped(where, "no label" if label is None or label == "" else f"label {label!r} is no class")
            )
        else:
            kept.append(Row(where, text, str(label).strip()))
    return kept, skipped


def encode_labels(
    rows: Sequence[Row], names: Sequence[str] | None, skipped: list[Skipped]
) -> tuple[list[Row], list[int], tuple[str, ...]]:
    """Class indices. Without names: the labels found, sorted (numbers by value). A label may be a class name or its
    index.
    """
    if names is None:
        found = {r.label for r in rows}
        numeric = all(f.lstrip("-").isdigit() for f in found)
        names = sorted(found, key=lambda f: (int(f), "") if numeric else (0, f))
        if len(names) > 1000 or (len(rows) > 20 and len(names) > len(rows) / 2):
            raise DataError(
                f"{len(names)} different labels in {len(rows)} rows (e.g. {', '.join(map(repr, names[:3]))}): that "
                f"is no class "
                "column; name the right one with label_column="
            )
    names = tuple(str(n) for n in names)
    index = {name: i for i, name in enumerate(names)}
    if not set(index) & {r.label for r in rows}:
        index = {str(i): i for i in range(len(names))}
    kept, labels = [], []
    for row in rows:
        if row.label in index:
            kept.append(row)
            labels.append(index[row.label])
        else:
            skipped.append(Skipped(row.where, f"label {row.label[:40]!r} is not one of {', '.join(names[:8])}"))
    return kept, labels, names


def read_text_csv(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """A CSV or TSV file with a header, or a folder with one file per split."""
    encoding, delimiter = options.get("encoding"), options.get("delimiter")
    return _read(root, seed, options, (".csv", ".tsv"), lambda p: csv_rows(p, encoding=encoding, delimiter=delimiter))


def read_text_jsonl(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """A JSON Lines file, or a folder with one file per split."""
    return _read(root, seed, options, (".jsonl", ".json"), lambda p: jsonl_rows(p, encoding=options.get("encoding")))


def split_files(root: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """`{"all": file}` for a file; split -> file for a folder."""
    if root.is_file():
        return {"all": root}
    found = {}
    for split, stems in SPLIT_NAMES.items():
        candidates = [root / f"{stem}{suffix}" for stem in stems for suffix in suffixes]
        file = next((c for c in candidates if c.is_file()), None)
        if file is not None:
            found[split] = file
    if not found:
        inside = ", ".join(sorted(p.name for p in root.iterdir())[:8])
        raise DataError(
            f"{root} holds no train/validation/test file with {' or '.join(suffixes)} (it holds: {inside or 'nothing'})"
        )
    return found


def _read(root: Path, seed: int, options: dict[str, Any], suffixes: Sequence[str], reader: Any) -> Raw:
    files = split_files(root, suffixes)
    text_column, label_column = options.get("text_column", "text"), options.get("label_column", "label")
    limit = options.get("max_skipped", MAX_SKIPPED)
    skipped: list[Skipped] = []
    rows: dict[str, list[Row]] = {}
    for split, path in files.items():
        rows[split], broken = collect(reader(path), path, text_column, label_column)
        check_skipped(
            broken,
            len(rows[split]),
            str(path),
            limit=limit,
            fix=f"Expected columns {text_column!r} and {label_column!r}.",
        )
        skipped += broken
    kept, labels, names = encode_labels(
        [r for part in rows.values() for r in part], options.get("label_names"), skipped
    )
    check_skipped(skipped, len(kept), str(root), limit=limit, fix="Check label_names=.")
    everything = Split([r.where for r in kept], labels, [r.text for r in kept], "text")
    if "all" in files:
        parts = split_90_5_5(labels, seed)
    else:
        of_split = {r.where: split for split, part in rows.items() for r in part}  # file names differ, so ids do
        split_of_row = np.array([of_split[i] for i in everything.ids])
        parts = {split: np.flatnonzero(split_of_row == split) for split in files}
    return Raw(
        splits={name: everything.select(part) for name, part in parts.items()},
        label_names=names,
        sha256=sha256_files(files.values()),
        sha256_of="file" if len(files) == 1 else "the split files: lines '<sha256>  <name>'",
        revision=", ".join(p.name for p in files.values()),
        protocol="90/5/5" if "all" in files else "given",
        skipped=tuple(skipped),
    )
