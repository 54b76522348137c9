"""The parts of a data set: samples by index, splits, and the facts that a result file needs to name what was read.

Light to import: numpy only. Images are opened when they are asked for, texts are kept as they were read.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.errors import DataError

TEXT = "text-classification"
IMAGE = "image-classification"
LANGUAGE = "text-generation"  # documents without classes
DETECTION = "object-detection"
ANOMALY = "anomaly-detection"
TRACKS = ("full", "mini", "subset")
MAX_SKIPPED = 0.05  # share of broken rows above which a file is taken to be misread rather than damaged


class DataWarning(UserWarning):
    """Broken rows or images were left out, or splits share samples."""


@dataclass(frozen=True)
class Skipped:
    """A row or image that could not be used: where it is and why."""

    where: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What was read.

    Attributes:
        name: registered name of the data set.
        title: the set in words.
        task: what a model for these data does: `"text-classification"`, `"image-classification"`,
            `"object-detection"` …
        label_names: class names in the order of the integer labels.
        license: of the data; "not stated" where the source names none.
        source: page or package that the data come from.
        track: `full`, `mini` (embedded), or `subset` (part of a set: by `limit`, or because the source holds only a
            part).
        protocol: how the splits were made.
        revision: version of the source (file kind, hub commit).
        sha256: of what was read; `sha256_of` says of what exactly.
        sizes: split -> number of samples.
        skipped: what could not be used, in reading order.
        duplicates: `"test in train"` -> number of test samples whose content also occurs in train.
        notes: what a reader of a result should know about this copy.
    """

    name: str
    title: str
    task: str
    label_names: tuple[str, ...]
    license: str
    source: str
    track: str
    protocol: str
    revision: str
    sha256: str
    sha256_of: str
    sizes: Mapping[str, int]
    seed: int
    skipped: tuple[Skipped, ...] = ()
    duplicates: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Split(Sequence[Mapping[str, Any]]):
    """Samples of one split, by index: `{"id": str, "label": int, "text": str}` or `{…, "image": PIL.Image}`.

    Args:
        ids: one name per sample, stable over runs.
        labels: class indices.
        content: texts, or a sequence that opens images by index.
        kind: `"text"` or `"image"`.
    """

    def __init__(self, ids: Sequence[str], labels: Sequence[int], content: Sequence[Any], kind: str):
        if not len(ids) == len(labels) == len(content):
            raise DataError(
                f"a split needs as many ids ({len(ids)}) as labels ({len(labels)}) as contents ({len(content)})"
            )
        self.ids = list(ids)
        self.labels = [int(label) for label in labels]
        self.content: Any = content
        self.kind = kind

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a split of {len(self)}")
        index = int(index) % len(self)
        return {"id": self.ids[index], "label": self.labels[index], self.kind: self.content[index]}

    def select(self, indices: Iterable[int]) -> Split:
        """The split with these samples, in this order."""
        indices = [int(i) for i in indices]
        content = (
            self.content.select(indices) if hasattr(self.content, "select") else [self.content[i] for i in indices]
        )
        return Split([self.ids[i] for i in indices], [self.labels[i] for i in indices], content, self.kind)

    def digests(self) -> list[bytes] | None:
        """A short hash of each sample's content, or None where that would mean reading a large set."""
        if hasattr(self.content, "digests"):
            return self.content.digests()
        if self.kind == "text":
            return [
                hashlib.blake2b(t.strip().encode("utf-8", "surrogatepass"), digest_size=12).digest()
                for t in self.content
            ]
        return None

    def classes(self) -> set[int]:
        """Labels that occur."""
        return set(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} x {self.kind}, labels {dict(sorted(Counter(self.labels).items()))})"


@dataclass(frozen=True)
class DataBundle:
    """A data set: facts, and the splits that exist among `train`, `validation` and `test`."""

    info: DataInfo
    splits: Mapping[str, Split]

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise DataError(
                f"{self.info.name} ({self.info.protocol}) has no split {split!r}; it has {', '.join(self.splits)}"
            )
        return self.splits[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)


@dataclass(frozen=True, kw_only=True)
class Raw:
    """What a reader hands to `load_data`, before the common checks."""

    splits: Mapping[str, Split]
    label_names: tuple[str, ...]
    sha256: str
    sha256_of: str = "file"
    revision: str = ""
    protocol: str | None = None
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    subset: bool = False  # the source holds only a part of the named set
    title: str | None = None


class ArrayImages(Sequence[Any]):
    """Images of a uint8 array (N, H, W) grey or (N, H, W, 3) colour, as PIL images."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Any:
        from PIL import Image

        return Image.fromarray(self.array[index])

    def select(self, indices: Sequence[int]) -> ArrayImages:
        return ArrayImages(self.array[np.asarray(indices, dtype=np.int64)])

    def digests(self) -> list[bytes]:
        return [hashlib.blake2b(np.ascontiguousarray(a).tobytes(), digest_size=12).digest() for a in self.array]


def sha256_files(paths: Iterable[Path]) -> str:
    """Hex sha256 of a file, or of several: then of the lines `<sha256>  <name>` in the given order."""
    digests = []
    for path in paths:
        with open(path, "rb") as file:
            digests.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
    if len(digests) == 1:
        return digests[0][1]
    return hashlib.sha256("".join(f"{d}  {n}\n" for n, d in digests).encode()).hexdigest()


def check_skipped(
    skipped: Sequence[Skipped], kept: int, where: str, *, limit: float = MAX_SKIPPED, fix: str = ""
) -> None:
    """Raise DataError when so much had to be left out that the file was probably misread."""
    total = kept + len(skipped)
    if kept == 0 and not skipped:
        raise DataError(f"{where} is empty: no samples were found. {fix}".rstrip())
    if len(skipped) > max(limit * total, 0) and (kept == 0 or len(skipped) > 1 or limit == 0):
        shown = "; ".join(f"{s.where}: {s.reason}" for s in skipped[:3])
        raise DataError(
            f"{where}: {len(skipped)} of {total} samples are unusable ({shown}), more than the {limit:.0%} that is "
            f"tolerated. "
            f"{fix} max_skipped=1.0 reads what is left.".replace("  ", " ")
        )


def warn_skipped(name: str, skipped: Sequence[Skipped]) -> None:
    """One warning that counts what was left out and names the first few."""
    if skipped:
        shown = "; ".join(f"{s.where}: {s.reason}" for s in skipped[:3])
        more = f"; and {len(skipped) - 3} more (DataInfo.skipped lists all)" if len(skipped) > 3 else ""
        warnings.warn(f"{name}: left out {len(skipped)} unusable samples: {shown}{more}", DataWarning, stacklevel=3)


def check_classes(name: str, splits: Mapping[str, Split], label_names: Sequence[str]) -> None:
    """Raise DataError for an empty split, a label out of range, or samples of one class only."""
    if not splits:
        raise DataError(f"{name}: no split was found")
    for split_name, split in splits.items():
        if not len(split):
            raise DataError(f"{name}: the split {split_name!r} is empty")
        low, high = min(split.classes()), max(split.classes())
        if low < 0 or high >= len(label_names):
            raise DataError(
                f"{name}: split {split_name!r} has the label {low if low < 0 else high}, but {len(label_names)} "
                f"classes are named "
                f"({', '.join(map(str, label_names[:8]))}), so labels run from 0 to {len(label_names) - 1}"
            )
    seen = set().union(*(split.classes() for split in splits.values()))
    if len(seen) < 2:
        only = label_names[next(iter(seen))]
        raise DataError(f"{name}: every sample has the label {only!r}; classification needs at least two classes")


def count_duplicates(splits: Mapping[str, Any]) -> dict[str, int]:
    """For each later split, how many of its samples also occur in an earlier one (by content)."""
    digests = {name: split.digests() for name, split in splits.items()}
    found: dict[str, int] = {}
    names = [n for n in ("train", "validation", "test") if digests.get(n) is not None]
    for i, earlier in enumerate(names):
        known = set(digests[earlier] or ())
        for later in names[i + 1 :]:
            count = sum(d in known for d in digests[later] or ())
            if count:
                found[f"{later} in {earlier}"] = count
    return found
