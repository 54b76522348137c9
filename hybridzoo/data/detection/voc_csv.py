"""Pascal-VOC XML files and CSV tables of boxes."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hybridzoo.data.base import MAX_SKIPPED, Skipped
from hybridzoo.data.detection.images import UprightFiles, header_size
from hybridzoo.data.detection.rules import BoxLog
from hybridzoo.data.detection.split import DetectionSplit, Target
from hybridzoo.data.images import IMAGE_SUFFIXES
from hybridzoo.errors import DataError, unknown

CSV_COLUMNS = ("image_path", "xmin", "ymin", "xmax", "ymax", "label")
Row = tuple[np.ndarray, str, bool]  # box, class name, crowd


class Collected:
    """Boxes by image while files are read, then a split with class indices.

    Args:
        where: what is read, for errors.
        outside: rule for boxes that reach out of their image (`rules.py`).
    """

    def __init__(self, where: str, outside: str):
        self.log = BoxLog(where, outside)
        self.rows: dict[Path, list[Row]] = {}
        self.sizes: dict[Path, tuple[int, int]] = {}
        self.missing: list[Skipped] = []

    def image(self, path: Path) -> tuple[int, int] | None:
        """The size of an image that is to be in the split; None (and noted once) when it cannot be read."""
        if path in self.sizes:
            return self.sizes[path]
        if any(s.where == path.name for s in self.missing):
            return None
        try:
            self.sizes[path] = header_size(path)
        except DataError as error:
            self.missing.append(Skipped(path.name, str(error)))
            return None
        self.rows[path] = []
        return self.sizes[path]

    def add(self, path: Path, corners: Sequence[object], label: str, where: str, crowd: bool = False) -> None:
        """One object of an image that `image` accepted."""
        box = self.log.take(corners, self.sizes[path], where)
        if box is not None:
            self.rows[path].append((box, label, crowd))

    @property
    def names(self) -> set[str]:
        """Class names that occur."""
        return {label for rows in self.rows.values() for _, label, _ in rows}

    def finish(self, max_skipped: float) -> None:
        """Refuse what is mostly unusable."""
        self.log.check(max_skipped)
        total = len(self.missing) + len(self.rows)
        if not self.rows or (len(self.missing) > 1 and len(self.missing) > max_skipped * total):
            first = f": {self.missing[0].where}: {self.missing[0].reason}" if self.missing else ""
            raise DataError(f"{self.log.where}: {len(self.missing)} of {total} images cannot be read{first}")

    def split(self, root: Path, index_of: Mapping[str, int]) -> DetectionSplit:
        """The images in the order of their names."""
        paths = sorted(self.rows)
        targets = []
        for path in paths:
            boxes = np.array([r[0] for r in self.rows[path]], np.float64).reshape(-1, 4)
            targets.append(
                Target(
                    boxes=boxes,
                    labels=np.array([index_of[r[1]] for r in self.rows[path]], np.int64),
                    area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
                    crowd=np.array([r[2] for r in self.rows[path]], bool),
                )
            )
        ids = [(p.relative_to(root) if p.is_relative_to(root) else p).as_posix() for p in paths]
        return DetectionSplit(ids, UprightFiles(paths, [self.sizes[p] for p in paths]), targets)


def class_indices(
    parts: Sequence[Collected], label_names: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names in order, and the index of each.

    Args:
        parts: what was read.
        label_names: the classes, where the caller fixes them; else all that occur, sorted.

    Raises:
        DataError: a class occurs that is not among `label_names`.
    """
    found = set().union(*(p.names for p in parts)) if parts else set()
    names = tuple(label_names) if label_names else tuple(sorted(found))
    for extra in sorted(found - set(names)):
        raise DataError(unknown(f"class in {parts[0].log.where}", extra, names, "(label_names lists the classes)"))
    return names, {name: i for i, name in enumerate(names)}


def read_voc(
    annotations: Sequence[Path],
    images: Path,
    *,
    where: str,
    outside: str = "clip",
    one_based: bool = False,
    max_skipped: float = MAX_SKIPPED,
) -> Collected:
    """Read VOC XML files.

    `difficult` objects are marked as crowd: not trained on, and neither right nor wrong when detected, as VOC's scorer
    has it. The image's own size counts, not the one that the XML claims.

    Args:
        annotations: the XML files.
        images: folder of the images; the file is `<filename>`, or the XML's name with an image suffix.
        where: for errors.
        outside: rule for boxes that reach out of their image.
        one_based: the first pixel is 1, as in the original VOC sets; most tools write 0.
        max_skipped: share of unusable objects from which on the files are refused.

    Raises:
        DataError: broken XML, or mostly unusable.
    """
    part = Collected(where, outside)
    shift = 1.0 if one_based else 0.0
    for file in annotations:
        try:
            tree = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, OSError, UnicodeDecodeError, ValueError) as error:
            raise DataError(f"{file} is not XML that can be read ({error})") from error
        path = _voc_image(tree.findtext("filename"), file, images)
        if part.image(path) is None:
            continue
        for number, item in enumerate(tree.iter("object"), 1):
            name = (item.findtext("name") or "").strip()
            box = item.find("bndbox")
            place = f"{file.name} object {number}"
            if not name or box is None:
                part.log.skip(place, "no name" if not name else "no bndbox")
                continue
            texts = [box.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")]
            try:
                corners = [float(t or "nan") for t in texts]
            except ValueError:
                part.log.skip(place, f"bndbox {texts} is not four numbers")
                continue
            corners = [corners[0] - shift, corners[1] - shift, corners[2], corners[3]]
            part.add(path, corners, name, place, (item.findtext("difficult") or "0").strip() == "1")
    part.finish(max_skipped)
    return part


def _voc_image(filename: str | None, xml: Path, images: Path) -> Path:
    if filename and (images / Path(filename).name).is_file():
        return images / Path(filename).name
    for suffix in IMAGE_SUFFIXES:
        if (images / f"{xml.stem}{suffix}").is_file():
            return images / f"{xml.stem}{suffix}"
    return images / Path(filename or f"{xml.stem}.jpg").name


def read_boxes_csv(
    table: Path,
    images: Path,
    *,
    columns: Mapping[str, str] | None = None,
    delimiter: str = ",",
    outside: str = "clip",
    max_skipped: float = MAX_SKIPPED,
) -> Collected:
    """Read a table with one box a row: `image_path,xmin,ymin,xmax,ymax,label`.

    A row whose four coordinates are empty stands for an image without objects.

    Args:
        table: the file, with a header.
        images: folder that `image_path` is relative to.
        columns: names of the columns where they are others, e.g. `{"image_path": "file", "label": "class"}`.
        delimiter: between fields.
        outside: rule for boxes that reach out of their image.
        max_skipped: share of unusable rows from which on the file is refused.

    Raises:
        DataError: a column is missing, or mostly unusable.
    """
    part = Collected(str(table), outside)
    named = {key: (columns or {}).get(key, key) for key in CSV_COLUMNS}
    for key in columns or {}:
        if key not in CSV_COLUMNS:
            raise DataError(unknown("column role", key, CSV_COLUMNS))
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            for column in named.values():
                if column not in (reader.fieldnames or ()):
                    have = f"(the header has {', '.join(reader.fieldnames or ()) or 'nothing'}; columns= maps names)"
                    raise DataError(f"{table}: " + unknown("column", column, reader.fieldnames or (), have))
            for row in reader:
                _csv_row(row, named, images, part, f"{table.name}:{reader.line_num}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is not a UTF-8 table that can be read ({error})") from error
    part.finish(max_skipped)
    return part


def _csv_row(row: dict[str, str], named: Mapping[str, str], images: Path, part: Collected, where: str) -> None:
    name = (row[named["image_path"]] or "").strip()
    if not name:
        return part.log.skip(where, "no image_path")
    path = images / name
    if part.image(path) is None:
        return None
    texts = [(row[named[key]] or "").strip() for key in CSV_COLUMNS[1:5]]
    if not any(texts):
        return None
    label = (row[named["label"]] or "").strip()
    if not label:
        return part.log.skip(where, "no label")
    try:
        corners = [float(t) for t in texts]
    except ValueError:
        return part.log.skip(where, f"coordinates {', '.join(texts)} are not four numbers")
    return part.add(path, corners, label, where)
