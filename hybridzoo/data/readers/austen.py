"""Jane Austen's six novels as chapters: from the R package janeaustenr, or embedded.

The package's `Rdata.rdb` holds one R object a novel, each as four bytes of length and a zlib stream. In it the lines of
the novel are strings of R's serialisation: the bytes 00 04 00 09, a length, the text.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from hybridzoo.errors import DataError

_STRING = b"\x00\x04\x00\x09"  # an R CHARSXP in UTF-8 or ASCII
_NO_STRING = 0xFFFFFFFF  # NA
_CHAPTER = re.compile(r"(?i)\s*chapter\s+([ivxlc]+|\d+)\.?\s*")
_VOLUME = re.compile(r"(?i)\s*volume\s+[ivx]+\.?\s*")
_END = re.compile(r"(?i)\s*(the end|finis|a note on the text)\s*")
_FOOTNOTE = re.compile(r"\*(\w.*)")


def read_rdb(path: Path) -> list[list[str]]:
    """The lines of each novel in an `Rdata.rdb` of janeaustenr.

    Raises:
        DataError: another file, or a damaged one.
    """
    data, novels = path.read_bytes(), []
    try:
        while data:
            size = struct.unpack(">I", data[:4])[0]
            stream = zlib.decompressobj()
            raw, data = stream.decompress(data[4:]), stream.unused_data
            if len(raw) != size:
                raise DataError(f"{path} is cut off: {len(raw)} bytes of {size}")
            novels.append(list(_strings(raw)))
    except (struct.error, zlib.error) as error:
        raise DataError(f"{path} is not the Rdata.rdb of the R package janeaustenr ({error})") from error
    return novels


def _strings(raw: bytes) -> Iterator[str]:
    at = raw.find(_STRING)
    while at >= 0:
        size = struct.unpack(">I", raw[at + 4 : at + 8])[0]
        size = 0 if size == _NO_STRING else size
        yield raw[at + 8 : at + 8 + size].decode("utf-8")
        at = raw.find(_STRING, at + 8 + size)


def chapters(lines: list[str]) -> list[tuple[str, str]]:
    """(name, text) of each chapter of one novel: `emma/01`, paragraphs as single lines between empty lines.

    What stands before the first chapter (title, advertisement) and after the end (editors' notes) is left out, and so
    are footnotes; hard line breaks inside paragraphs become blanks.
    """
    title = re.sub(r"\W+", "_", lines[0].strip().lower())
    found: list[list[str]] = []
    for line in lines:
        if _CHAPTER.fullmatch(line):
            found.append([])
        elif found and _END.fullmatch(line):
            break
        elif found and not _VOLUME.fullmatch(line):
            found[-1].append(line)
    return [(f"{title}/{number:02d}", unwrap(chapter)) for number, chapter in enumerate(found, 1)]


def unwrap(lines: list[str]) -> str:
    """Paragraphs (separated by empty lines in `lines`) as single lines, separated by one empty line."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    joined = (" ".join(p.split()) for p in paragraphs)
    return "\n\n".join(p for p in joined if p and not _FOOTNOTE.fullmatch(p))
