"""Annotated images by index. Light to import: numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hybridzoo.errors import DataError

KIND = "detection"


def _empty_boxes() -> np.ndarray:
    return np.zeros((0, 4), np.float64)


def _empty_integers() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Target:
    """What is annotated in one image of n objects.

    Attributes:
        boxes: (n, 4) float64 corners x1, y1, x2, y2 in pixels of the (upright) image.
        labels: (n,) int64 class indices.
        area: (n,) float64 in pixels; of the segmentation where the source has one, else of the box.
        crowd: (n,) bool: a region that is not one object. Never trained on; a detection inside it is neither right nor
            wrong.
        polygons: n lists of polygons, each a flat (x1, y1, x2, y2, …) array, empty where there is no outline; None
            where the source has none at all. Copy-paste uses them.
        negative: classes that were looked for in this image and are not there (LVIS); None: all others.
        not_exhaustive: classes of which not every object is annotated (LVIS).
    """

    boxes: np.ndarray = field(default_factory=_empty_boxes)
    labels: np.ndarray = field(default_factory=_empty_integers)
    area: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float64))
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    polygons: Sequence[Sequence[np.ndarray]] | None = None
    negative: frozenset[int] | None = None
    not_exhaustive: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.boxes.shape != (n, 4) or self.area.shape != (n,) or self.crowd.shape != (n,):
            raise DataError(
                f"a target of {n} labels needs boxes ({n}, 4), area and crowd ({n},); got {self.boxes.shape}, "
                f"{self.area.shape}, {self.crowd.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> Target:
        """The objects of these rows (indices or a mask)."""
        chosen = np.flatnonzero(rows) if rows.dtype == bool else rows
        polygons = None if self.polygons is None else [self.polygons[int(i)] for i in chosen]
        return replace(
            self,
            boxes=self.boxes[chosen],
            labels=self.labels[chosen],
            area=self.area[chosen],
            crowd=self.crowd[chosen],
            polygons=polygons,
        )


class DetectionSplit(Sequence[Mapping[str, Any]]):
    """Samples of one split, by index: `{"id": str, "image": PIL.Image, "target": Target}`.

    Args:
        ids: one name per image, stable over runs; of COCO files the image id.
        content: a sequence that opens images by index.
        targets: one per image.
        category_ids: the source's id of each class, in the order of the labels; what a COCO results file must hold.
        frequency: LVIS: "r", "c" or "f" (rare, common, frequent) of each class.
    """

    kind = KIND

    def __init__(
        self,
        ids: Sequence[str],
        content: Sequence[Any],
        targets: Sequence[Target],
        category_ids: Sequence[int] | None = None,
        frequency: Sequence[str] = (),
    ):
        if not len(ids) == len(content) == len(targets):
            raise DataError(
                f"a split needs as many ids ({len(ids)}) as images ({len(content)}) as targets ({len(targets)})"
            )
        self.ids = list(ids)
        self.content: Any = content
        self.targets = list(targets)
        self.category_ids = None if category_ids is None else tuple(category_ids)
        self.frequency = tuple(frequency)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a split of {len(self)}")
        index = int(index) % len(self)
        return {"id": self.ids[index], "image": self.content[index], "target": self.targets[index]}

    def select(self, indices: Iterable[int]) -> DetectionSplit:
        """The split with these images, in this order."""
        chosen = [int(i) for i in indices]
        content = self.content.select(chosen) if hasattr(self.content, "select") else [self.content[i] for i in chosen]
        return DetectionSplit(
            [self.ids[i] for i in chosen], content, [self.targets[i] for i in chosen], self.category_ids, self.frequency
        )

    def digests(self) -> list[bytes] | None:
        """A short hash of each image, or None where that would mean reading a large set."""
        return self.content.digests() if hasattr(self.content, "digests") else None

    @property
    def num_objects(self) -> int:
        """Annotated objects, crowd regions included."""
        return sum(len(t) for t in self.targets)

    def annotations_sha256(self) -> str:
        """Of all ids, boxes, labels, areas and crowd marks, in order."""
        total = hashlib.sha256()
        for name, target in zip(self.ids, self.targets):
            total.update(f"{name}\n".encode())
            for part in (target.boxes, target.labels, target.area, target.crowd):
                total.update(np.ascontiguousarray(part).tobytes())
        return total.hexdigest()

    def __repr__(self) -> str:
        return f"DetectionSplit({len(self)} images, {self.num_objects} objects)"


def check_splits(name: str, splits: Mapping[str, DetectionSplit], label_names: Sequence[str]) -> None:
    """Raise DataError for no or an empty split, no object at all, or a label that no class has."""
    if not splits:
        raise DataError(f"{name}: no split was found")
    for split_name, split in splits.items():
        if not len(split):
            raise DataError(f"{name}: the split {split_name!r} has no images")
        for image, target in zip(split.ids, split.targets):
            bad = target.labels[(target.labels < 0) | (target.labels >= len(label_names))]
            if len(bad):
                raise DataError(
                    f"{name}: split {split_name!r}, image {image}: label {int(bad[0])}, but {len(label_names)} classes "
                    f"are named ({', '.join(map(str, label_names[:8]))}), so labels run from 0 to "
                    f"{len(label_names) - 1}"
                )
    if not any(split.num_objects for split in splits.values()):
        raise DataError(f"{name}: no image has an annotated object; detection needs at least one")


def draw(split: DetectionSplit, limit: int, seed: int) -> DetectionSplit:
    """A seeded draw of `limit` images, in the order of the split."""
    chosen = np.random.default_rng(seed).permutation(len(split))[:limit]
    return split.select(np.sort(chosen).tolist())
