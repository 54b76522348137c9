"""Text for language models: documents without labels, from files of several kinds, split by document.

austen_mini   embedded: the chapters of Jane Austen's novels
corpus        your own .txt and .jsonl files (plain or .gz, .bz2, .xz)
hf_corpus     a text column of a set of the Hugging Face Hub
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from hybridzoo.data.base import Raw, Skipped, Split, check_skipped, sha256_files
from hybridzoo.errors import DataError

SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
TEXT_SUFFIXES, LINE_SUFFIXES = (".txt", ".md", ".text", ".tokens"), (".jsonl", ".ndjson")
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
EMBEDDED = Path(__file__).resolve().parent.parent / "embedded" / "austen.txt.bz2"


def kind_of(path: Path) -> str | None:
    """ "text" or "lines" by the suffix (a compression suffix aside), None for other files."""
    suffix = Path(path.stem).suffix if path.suffix in _OPENERS else path.suffix
    return "text" if suffix in TEXT_SUFFIXES else "lines" if suffix in LINE_SUFFIXES else None


def open_text(path: Path, encoding: str = "utf-8") -> IO[str]:
    """A plain or compressed text file for reading; a byte-order mark is dropped and bad bytes raise."""
    encoding = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    return _OPENERS.get(path.suffix, open)(path, "rt", encoding=encoding, newline="")


def documents(
    path: Path,
    *,
    separator: str | None = None,
    text_column: str = "text",
    encoding: str = "utf-8",
    skipped: list[Skipped] | None = None,
) -> Iterator[tuple[str, str]]:
    """(id, text) of the documents of one file, read as it goes.

    Args:
        path: a text file, which is one document or is cut at `separator`; or one JSON object a line.
        separator: regular expression between documents of a text file.
        text_column: key of the text in JSON lines; an `id` beside it is kept.
        encoding: of the file.
        skipped: takes up lines and documents that hold no text.

    Raises:
        DataError: another kind of file, bytes of another encoding, a damaged archive.
    """
    kind, skipped = kind_of(path), [] if skipped is None else skipped
    if kind is None:
        known = ", ".join((*TEXT_SUFFIXES, *LINE_SUFFIXES))
        raise DataError(f"{path}: documents come from {known} files (also .gz, .bz2, .xz), not from {path.suffix!r}")
    try:
        with open_text(path, encoding) as file:
            if kind == "lines":
                yield from _json_lines(path, file, text_column, skipped)
            else:
                parts = re.split(separator, text) if separator and (text := file.read()) else [file.read() or ""]
                for number, part in enumerate(parts):
                    if part.strip():
                        yield f"{path.name}/{number}" if separator else path.name, part.strip("\n")
                    elif not separator:
                        skipped.append(Skipped(str(path), "the file holds no text"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not {encoding} ({error.reason} at byte {error.start}); give encoding=") from error
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError)):
            raise
        raise DataError(f"{path} cannot be read to its end ({error}); is it cut off?") from error
    except re.error as error:
        raise DataError(f"separator={separator!r} is not a regular expression ({error})") from error


def _json_lines(path: Path, file: IO[str], column: str, skipped: list[Skipped]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file, 1):
        where = f"{path.name}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = row[column] if isinstance(row, dict) else None
        except ValueError:
            skipped.append(Skipped(where, "not JSON"))
        except KeyError:
            skipped.append(Skipped(where, f"no key {column!r} (keys: {', '.join(map(str, list(row)[:6]))})"))
        else:
            if isinstance(text, str) and text.strip():
                yield str(row.get("id", where)), text
            else:
                skipped.append(Skipped(where, f"{column!r} holds no text"))


def split_documents(count: int, seed: int, share: float = 0.05) -> dict[str, np.ndarray]:
    """Row numbers of a seeded draw: `share` of the documents (at least one) each for validation and test.

    Raises:
        DataError: fewer than three documents.
    """
    if count < 3:
        raise DataError(
            f"{count} document{'s' if count != 1 else ''} cannot be split into train, validation and test: give files "
            "train.txt, validation.txt and test.txt, or separator= (a regular expression between documents)"
        )
    held_out = max(round(share * count), 1)
    order = np.random.RandomState(seed).permutation(count)
    parts = {"validation": order[:held_out], "test": order[held_out : 2 * held_out], "train": order[2 * held_out :]}
    return {name: np.sort(parts[name]) for name in ("train", "validation", "test")}


def as_split(rows: Sequence[tuple[str, str]]) -> Split:
    """Documents as a Split; there are no classes, so every label is 0."""
    return Split([name for name, _ in rows], [0] * len(rows), [text for _, text in rows], "text")


def read_austen(root: None, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """269 chapters of the six novels, 4.0 MB; split 90/5/5 by chapter."""
    if not EMBEDDED.is_file():
        raise DataError(f"{EMBEDDED} is missing: it is part of hybridzoo; reinstall the package")
    parts = bz2.decompress(EMBEDDED.read_bytes()).decode("utf-8").split("\f")[1:]
    rows = [(name, text) for name, _, text in (part.partition("\n") for part in parts)]
    everything = as_split(rows)
    return Raw(
        splits={name: everything.select(chosen) for name, chosen in split_documents(len(rows), seed).items()},
        label_names=(),
        sha256=sha256_files([EMBEDDED]),
        revision="R package janeaustenr 1.0.0",
    )


def read_corpus(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """One file, or a folder: with files or folders named train, validation and test as they are, else 90/5/5."""
    max_skipped = options.pop("max_skipped", 0.05)
    skipped: list[Skipped] = []
    found = split_files(root)
    whole = [p for p in ([root] if root.is_file() else sorted(root.rglob("*"))) if p.is_file() and kind_of(p)]
    files = found or {"all": whole}
    paths = [path for group in files.values() for path in group]
    if not paths:
        raise DataError(f"{root} holds no .txt or .jsonl file (also .gz, .bz2, .xz)")
    splits = {
        name: as_split([row for path in group for row in documents(path, skipped=skipped, **options)])
        for name, group in files.items()
    }
    check_skipped(skipped, sum(map(len, splits.values())), str(root), limit=max_skipped)
    if not found:
        everything = splits["all"]
        splits = {name: everything.select(rows) for name, rows in split_documents(len(everything), seed).items()}
    return Raw(
        splits=splits,
        label_names=(),
        sha256=sha256_files(paths),
        sha256_of="file" if len(paths) == 1 else f"{len(paths)} files",
        protocol="given" if found else "90/5/5",
        skipped=tuple(skipped),
    )


def split_files(root: Path) -> dict[str, list[Path]]:
    """Split -> files, where the names say which is which; empty otherwise."""
    if root.is_file():
        return {}
    found: dict[str, list[Path]] = {}
    for split, names in SPLITS.items():
        for entry in sorted(root.iterdir()):
            stem = entry.name.split(".")[0] if entry.is_file() else entry.name
            if stem in names or any(part in names for part in entry.name.split(".")[:-1]):
                inside = [entry] if entry.is_file() else sorted(p for p in entry.rglob("*") if p.is_file())
                found.setdefault(split, []).extend(p for p in inside if kind_of(p))
    found = {name: paths for name, paths in found.items() if paths}
    return found if "train" in found or "test" in found else {}


def read_hf_corpus(root: str | Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """The text column of a hub set with its own splits; one without validation or test is split 90/5/5."""
    from hybridzoo.data.readers.hf import load_hub

    column = options.get("text_column", "text")
    loaded, revision = load_hub(root, options.get("revision"), options.get("config_name"))
    by_split: dict[str, Any] = {}
    for name, names in SPLITS.items():
        match = next((n for n in names if n in loaded), None)
        if match is not None:
            by_split[name] = loaded[match]
    if not by_split:
        raise DataError(f"{root} has the splits {', '.join(loaded)}; expected train, validation or test")
    for name, table in by_split.items():
        if column not in table.column_names:
            raise DataError(f"{root} has no column {column!r} ({', '.join(table.column_names)}); give text_column=")
        by_split[name] = as_split([(f"{name}/{i}", t) for i, t in enumerate(table[column]) if t and t.strip()])
    given = len(by_split) > 1
    if not given:
        everything = next(iter(by_split.values()))
        by_split = {name: everything.select(rows) for name, rows in split_documents(len(everything), seed).items()}
    import hashlib

    digest = hashlib.sha256()
    for name in by_split:
        for text in by_split[name].content:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return Raw(
        splits=by_split,
        label_names=(),
        sha256=digest.hexdigest(),
        sha256_of="the texts, each with a zero byte behind it",
        revision=revision,
        protocol="given" if given else "90/5/5",
    )
