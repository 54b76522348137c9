"""Readers of ListOps: the official tab-separated files, and the short set that ships in the package."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.base import MAX_SKIPPED, Raw, Skipped, Split, check_skipped, sha256_files
from hybridzoo.data.lra.listops import CLOSE, DIGITS, END, MADE_FILE, OPERATORS, ListOpsRules, ListOpsStream, evaluate
from hybridzoo.data.lra.tokens import MadeTokenTexts, TokenTexts
from hybridzoo.errors import DataError

WORDS = (*DIGITS, *OPERATORS, CLOSE)
FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
CHECKED_ROWS = 100  # of a file whose targets are computed again
# One byte per token: the brackets' texts as letters, then a table from letter to position in WORDS; 255 is no token.
_LETTERS = {b"[MIN": b"m", b"[MAX": b"M", b"[MED": b"d", b"[SM": b"s", b"]": b"X"}
_TABLE = np.full(256, 255, np.uint8)
for _number, _letter in enumerate((*(d.encode() for d in DIGITS), b"m", b"M", b"d", b"s", b"X")):
    _TABLE[_letter[0]] = _number
MINI_RULES = ListOpsRules(max_depth=6, max_args=10, min_length=50, max_length=256)
MINI_FILE = "listops_short_mini.tsv.xz"
MINI_SEEDS = {"train": 1, "validation": 2, "test": 3}
MINI_SIZES = {"train": 50_000, "validation": 1_000, "test": 2_000}


def encode_source(source: bytes) -> np.ndarray | None:
    """Positions in WORDS of a text with or without parentheses; None where something else stands in it."""
    for word, letter in _LETTERS.items():
        source = source.replace(word, letter)
    words = source.replace(b"(", b" ").replace(b")", b" ").split()
    found = _TABLE[np.frombuffer(b"".join(words), np.uint8)]
    return found if len(found) == len(words) and not (found == 255).any() else None


def find_folder(root: Path, name: str, marker: str, what: str) -> Path:
    """The folder that holds `marker`: `root`, `root/<name>`, or those below lra_release.

    Raises:
        DataError: none of them does.
    """
    inside = [root / part for part in ("", name, f"lra_release/{name}", f"lra_release/lra_release/{name}")]
    for folder in inside:
        if (folder / marker).exists():
            return folder
    held = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "not a folder"
    raise DataError(f"{root} has no {marker} (it holds: {held or 'nothing'}). Needed: {what}")


def read_listops(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """basic_train.tsv, basic_val.tsv and basic_test.tsv: `Source<tab>Target`. Parentheses go, `]` becomes `X`."""
    from hybridzoo.data.catalog import data_spec

    folder = find_folder(root, "listops-1000", FILES["test"], data_spec("lra_listops").needs)
    splits, skipped, paths = {}, [], []
    for name, file in FILES.items():
        path = folder / file
        if not path.is_file():
            if name == "train":  # enough to evaluate
                continue
            raise DataError(f"{folder} has no {file}; {', '.join(FILES.values())} belong together")
        splits[name], broken = _read_tsv(path, options.get("max_skipped", MAX_SKIPPED))
        skipped += broken
        paths.append(path)
    return Raw(
        splits=splits,
        label_names=DIGITS,
        sha256=sha256_files(paths),
        sha256_of="the files: lines '<sha256>  <name>'",
        revision="basic_*.tsv",
        skipped=tuple(skipped),
        notes=made_notes(folder),
        subset=[len(s) for s in splits.values()] != [96_000, 2_000, 2_000],
    )


def made_notes(folder: Path) -> tuple[str, ...]:
    """What a result should say of data that were made here and are not the release's."""
    path = folder / MADE_FILE
    if not path.is_file():
        return ()
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return (f"made by `{facts['made_by']}` with seed {facts['seed']}; not the files of lra_release",)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it, or make the data again") from error


def _read_tsv(path: Path, limit: float) -> tuple[Split, list[Skipped]]:
    ids, labels, rows, skipped = [], [], [], []
    with open(path, "rb") as file:
        header = file.readline().rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf")
        if header.split(b"\t") != [b"Source", b"Target"]:
            raise DataError(
                f"{path}: the first line must be 'Source<tab>Target', it is {header[:60].decode('utf-8', 'replace')!r}"
            )
        for number, line in enumerate(file, 2):
            where = f"{path.name}:{number}"
            fields = line.rstrip(b"\r\n").split(b"\t")
            if fields == [b""]:
                continue
            tokens = encode_source(fields[0]) if len(fields) == 2 else None
            if len(fields) != 2:
                skipped.append(Skipped(where, f"{len(fields)} fields, expected Source and Target"))
            elif tokens is None or not len(tokens):
                skipped.append(
                    Skipped(where, "the source is no ListOps expression" if fields[0].strip() else "no source")
                )
            elif not (len(fields[1]) == 1 and fields[1].isdigit()):
                skipped.append(Skipped(where, f"target {fields[1][:20].decode('utf-8', 'replace')!r} is no digit"))
            elif len(rows) < CHECKED_ROWS and (wrong := _wrong_target(tokens, int(fields[1]))):
                skipped.append(Skipped(where, wrong))
            else:
                ids.append(where)
                labels.append(int(fields[1]))
                rows.append(tokens)
    check_skipped(skipped, len(rows), str(path), limit=limit)
    flat = np.concatenate(rows) if rows else np.zeros(0, np.uint8)
    return Split(ids, labels, TokenTexts(WORDS, flat, [len(r) for r in rows]), "text"), skipped


def _wrong_target(tokens: np.ndarray, target: int) -> str | None:
    try:
        value = evaluate(tuple(WORDS[t] for t in tokens))
    except DataError:
        return "the source is no complete ListOps expression"
    return None if value == target else f"the target is {target}, the expression's value is {value}"


# The short set -------------------------------------------------------------------------------------------------------


def read_listops_short_mini(root: None, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """Short expressions. Validation and test are embedded; the train split is made when it is first used."""
    from hybridzoo.data.readers.embedded import embedded_file

    path = embedded_file(MINI_FILE)
    splits, known = {}, []
    parts: dict[str, list[tuple[np.ndarray, int]]] = {"validation": [], "test": []}
    for line in lzma.decompress(path.read_bytes()).splitlines():
        name, target, source = line.decode().split("\t")
        tokens = encode_source(source.encode())
        assert tokens is not None
        parts[name].append((tokens, int(target)))
        known.append(tokens.tobytes())
    size = int(options.get("train_size", MINI_SIZES["train"]))
    if size < 1:
        raise DataError(f"train_size must be at least 1, got {size}")
    made = _Made(size, frozenset(known))
    train = MadeTokenTexts(WORDS, size, made.texts)
    splits["train"] = MadeSplit([f"made-{i}" for i in range(size)], made, train)
    for name, rows in parts.items():
        texts = TokenTexts(WORDS, np.concatenate([t for t, _ in rows]), [len(t) for t, _ in rows])
        splits[name] = Split([f"{name}-{i}" for i in range(len(rows))], [v for _, v in rows], texts, "text")
    return Raw(
        splits=splits,
        label_names=DIGITS,
        sha256=sha256_files([path]),
        sha256_of="the embedded file (validation and test)",
        revision=f"seeds {MINI_SEEDS}, {size} train samples",
    )


class _Made:
    """The train split of the short set, made once."""

    def __init__(self, size: int, known: frozenset[bytes]) -> None:
        self.size, self.known = size, known
        self._done: tuple[np.ndarray, np.ndarray, list[int]] | None = None

    def _make(self) -> tuple[np.ndarray, np.ndarray, list[int]]:
        if self._done is None:
            rows, labels = made_rows(MINI_SEEDS["train"], self.size, self.known)
            self._done = np.concatenate(rows), np.array([len(r) for r in rows]), labels
        return self._done

    def texts(self) -> tuple[np.ndarray, np.ndarray]:
        """(flat, lengths)"""
        return self._make()[:2]

    def labels(self) -> list[int]:
        """Values of the expressions."""
        return self._make()[2]


class MadeSplit(Split):
    """A split whose labels are known once its texts are made."""

    def __init__(self, ids: list[str], made: _Made, content: MadeTokenTexts) -> None:
        self.ids, self._made, self.content, self.kind = ids, made, content, "text"

    @property
    def labels(self) -> list[int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Made at the first look."""
        return self._made.labels()

    def __len__(self) -> int:
        return len(self.ids)

    def classes(self) -> set[int]:
        """All ten; known without making them."""
        return set(range(len(DIGITS)))


def made_rows(seed: int, count: int, known: Iterable[bytes] = ()) -> tuple[list[np.ndarray], list[int]]:
    """The first `count` different short expressions of a seed that are not among `known`, as tokens and values."""
    number = {word: i for i, word in enumerate(WORDS)} | {END: WORDS.index(CLOSE)}
    seen, rows, labels = set(known), [], []
    for sample in ListOpsStream(seed, MINI_RULES).accepted():
        tokens = np.array([number[t] for t in sample.tokens], np.uint8)
        if (key := tokens.tobytes()) not in seen:
            seen.add(key)
            rows.append(tokens)
            labels.append(sample.value)
        if len(rows) == count:
            return rows, labels
    raise AssertionError("the stream has no end")


def make_mini() -> bytes:
    """The embedded file: the same bytes each time."""
    lines, known = [], set()
    for name in ("test", "validation"):
        rows, labels = made_rows(MINI_SEEDS[name], MINI_SIZES[name], known)
        known |= {r.tobytes() for r in rows}
        for row, label in zip(rows, labels):
            source = " ".join(END if WORDS[t] == CLOSE else WORDS[t] for t in row)
            lines.append(f"{name}\t{label}\t{source}\n")
    return lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)
