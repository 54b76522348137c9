"""One split of an anomaly data set: images that are opened when asked for, with their masks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.images import open_image
from hybridzoo.errors import DataError

TASK = "anomaly-detection"
LABEL_NAMES = ("normal", "anomalous")
GOOD = "good"


@dataclass(frozen=True)
class Entry:
    """One image: the fields of ADer's meta.json.

    Attributes:
        img_path: relative to the set's root, with `/`.
        mask_path: likewise; empty where there is none.
        cls_name: the product or texture.
        specie_name: `good`, or the kind of defect; empty where the set does not tell.
        anomaly: 0 or 1.
    """

    img_path: str
    mask_path: str
    cls_name: str
    specie_name: str
    anomaly: int


class AnomalySplit(Sequence[Mapping[str, Any]]):
    """Samples `{"id", "label", "image", "mask", "class_name", "specie"}`; `mask` is a boolean array (H, W) or None.

    Args:
        entries: one per image.
        root: folder of the paths.
        arrays: in place of files: images and masks by path (embedded sets).
    """

    kind = "anomaly"

    def __init__(
        self, entries: Sequence[Entry], root: Path | None = None, arrays: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.entries, self.root, self.arrays = list(entries), root, arrays
        self.ids = [e.img_path for e in self.entries]
        self.labels = [int(e.anomaly > 0) for e in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order in which they come."""
        return list(dict.fromkeys(e.cls_name for e in self.entries))

    @property
    def has_masks(self) -> bool:
        """Whether every anomalous image has a mask."""
        return all(e.mask_path for e in self.entries if e.anomaly)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a split of {len(self)}")
        entry = self.entries[int(index)]
        image = self._open(entry.img_path)
        return {
            "id": entry.img_path,
            "label": int(entry.anomaly > 0),
            "image": image,
            "mask": self._mask(entry, image.size),
            "class_name": entry.cls_name,
            "specie": entry.specie_name,
        }

    def _open(self, path: str) -> Any:
        if self.arrays is not None:
            return open_image(self.arrays[path], path)
        assert self.root is not None
        return open_image(self.root / path)

    def _mask(self, entry: Entry, size: tuple[int, int]) -> np.ndarray | None:
        """(H, W) bool; all False for a normal image, None for an anomalous one without a mask."""
        if not entry.anomaly:
            return np.zeros(size[::-1], bool)
        if not entry.mask_path:
            return None
        mask = self._open(entry.mask_path)
        if mask.size != size:
            raise DataError(
                f"the mask {entry.mask_path} has {mask.size[0]} x {mask.size[1]} pixels, its image {entry.img_path} "
                f"has {size[0]} x {size[1]}; they must agree: is it the mask of another image?"
            )
        array = np.asarray(mask if mask.mode in ("L", "I", "I;16", "1", "P") else mask.convert("L"))
        return array > 0

    def select(self, indices: Iterable[int]) -> AnomalySplit:
        """The split with these samples, in this order."""
        return AnomalySplit([self.entries[int(i)] for i in indices], self.root, self.arrays)

    def of_class(self, name: str) -> AnomalySplit:
        """The samples of one class."""
        return self.select(i for i, e in enumerate(self.entries) if e.cls_name == name)

    def digests(self) -> list[bytes] | None:
        """A hash of each embedded image; None for files, which would all have to be read."""
        if self.arrays is None:
            return None
        return [hashlib.blake2b(self.arrays[e.img_path].tobytes(), digest_size=12).digest() for e in self.entries]

    def __repr__(self) -> str:
        counts = Counter((e.cls_name, LABEL_NAMES[int(e.anomaly > 0)]) for e in self.entries)
        return f"AnomalySplit({len(self)}: {', '.join(f'{c}/{k} {n}' for (c, k), n in counts.items())})"


def check_split(name: str, train: AnomalySplit | None, test: AnomalySplit | None) -> None:
    """Refuse a set that cannot train: no image, or a class without a normal image in the train split."""
    for which, split in (("train", train), ("test", test)):
        if split is not None and not len(split):
            raise DataError(f"{name}: the split {which!r} is empty: no image was found")
    if train is None:
        return
    normal = {e.cls_name for e in train.entries if not e.anomaly}
    without = [c for c in train.class_names if c not in normal]
    if test is not None:
        without += [c for c in test.class_names if c not in train.class_names]
    if without:
        raise DataError(
            f"{name}: the classes {', '.join(without[:5])} have no normal training image; the model learns what is "
            "normal from them. Add some, or choose the other classes with classes=[…]"
        )


def manifest(splits: Mapping[str, AnomalySplit]) -> str:
    """sha256 over the lines `<split>/<image> <bytes> <mask> <label>`."""
    total = hashlib.sha256()
    for name, split in splits.items():
        for e in split.entries:
            path = None if split.root is None else split.root / e.img_path
            size = path.stat().st_size if path is not None and path.is_file() else 0
            total.update(f"{name}/{e.img_path} {size} {e.mask_path} {e.anomaly}\n".encode())
    return total.hexdigest()
