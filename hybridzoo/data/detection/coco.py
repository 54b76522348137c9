"""COCO and LVIS annotation files, strictly: what is unusable is counted and named, what is ambiguous is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hybridzoo.data.base import MAX_SKIPPED, Skipped, sha256_files
from hybridzoo.data.detection.images import UprightFiles
from hybridzoo.data.detection.rules import BoxLog, polygon_area
from hybridzoo.data.detection.split import DetectionSplit, Target
from hybridzoo.errors import DataError

VERIFY = ("files", "none")


@dataclass(frozen=True)
class CocoFile:
    """One annotation file, read.

    Attributes:
        split: images and targets; images without objects are kept.
        label_names: of the categories, in the order of their ids.
        frequency: LVIS: "r", "c" or "f" per class; empty elsewhere.
        skipped: annotations and images that were left out.
        notes: what the box rules changed.
        sha256: of the file.
    """

    split: DetectionSplit
    label_names: tuple[str, ...]
    frequency: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    sha256: str


def read_coco(
    path: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    outside: str = "clip",
    verify: str = "files",
    max_skipped: float = MAX_SKIPPED,
    outlines: bool = False,
) -> CocoFile:
    """Read an annotation file in COCO's (or LVIS's) format.

    Left out, counted and named: annotations whose image or category does not exist, broken boxes (`rules.py`), images
    whose file is missing. Refused: two images or two categories of one id, categories of one name, fields that are
    missing. Crowd regions are kept and marked. Without `area`, the outline's or the box's is taken; without `bbox`,
    the outline's extent. Label i is the category of the i-th smallest id.

    Args:
        path: the JSON file.
        images: folder (or folders, tried in order) that `file_name` is relative to.
        outside: "clip", "keep" (as official scorers read COCO) or "refuse" boxes that reach out of their image.
        verify: "files" leaves out images without a file; "none" does not look.
        max_skipped: share of unusable annotations from which on the file is refused.
        outlines: keep polygons, for copy-paste.

    Raises:
        DataError: the file is missing, no such JSON, ambiguous, or mostly unusable.
    """
    path = Path(path)
    if verify not in VERIFY:
        raise DataError(f"verify={verify!r}: choose one of {', '.join(VERIFY)}")
    document = _load(path)
    names, index_of, ids, frequency = _categories(document["categories"], path)
    folders = [Path(f) for f in ([images] if isinstance(images, (str, Path)) else images)]
    records = _image_records(document["images"], path)
    log = BoxLog(str(path), outside)
    missing: list[Skipped] = []
    found: dict[Any, Path] = {}
    for key, record in records.items():
        file = _find(record, folders)
        if verify == "files" and not file.is_file():
            missing.append(Skipped(f"image {key}", f"{file} does not exist"))
            continue
        found[key] = file
    if missing and len(missing) > max(max_skipped * len(records), 1 if found else 0):
        raise DataError(
            f"{path}: {len(missing)} of {len(records)} images have no file ({missing[0].reason}); images= names the "
            "folder that file_name is relative to"
        )
    rows: dict[Any, list[Any]] = {key: [] for key in found}
    left_out = {s.where.removeprefix("image ") for s in missing}
    seen: set[Any] = set()
    repeated = 0
    for number, annotation in enumerate(document["annotations"]):
        if not isinstance(annotation, Mapping):
            raise DataError(f"{path}: annotations[{number}] is no object but {str(annotation)[:40]!r}")
        name = f"annotation {annotation.get('id', f'[{number}]')}"
        repeated += annotation.get("id") in seen and annotation.get("id") is not None
        seen.add(_key(annotation.get("id")))
        image, category = _key(annotation.get("image_id")), _key(annotation.get("category_id"))
        if image not in records:
            log.skip(name, f"image_id {annotation.get('image_id')!r} is not among the images")
        elif category not in index_of:
            log.skip(name, f"category_id {annotation.get('category_id')!r} is not among the categories")
        elif str(image) not in left_out:
            row = _annotation(annotation, records[image], f"{name} (image {image})", log, outlines)
            if row is not None:
                rows[image].append((row[0], index_of[category], *row[1:]))
    log.check(max_skipped)
    targets = [_target(rows[key], records[key], index_of, outlines) for key in found]
    sizes = [_size(records[key]) for key in found]
    frequency = frequency if all(f in ("r", "c", "f") for f in frequency) else ()
    content = UprightFiles(list(found.values()), sizes)
    split = DetectionSplit([str(key) for key in found], content, targets, ids, frequency)
    notes = log.notes()
    if repeated:
        notes.append(f"{repeated} annotations of {path.name} repeat an id; ids of annotations are not used")
    return CocoFile(split, names, frequency, (*missing, *log.skipped), tuple(notes), sha256_files([path]))


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(document, dict):
        hint = "; a list of detections is a results file, not annotations" if isinstance(document, list) else ""
        raise DataError(f"{path}: expected an object with images, annotations and categories{hint}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            have = ", ".join(list(document)[:8]) or "nothing"
            raise DataError(f"{path}: the list {key!r} is missing (it has {have}); is this COCO's instances format?")
    if not document["images"]:
        raise DataError(f"{path} lists no images")
    if not document["categories"]:
        raise DataError(f"{path} lists no categories")
    return document


def _key(value: Any) -> Any:
    """An id as it can stand in a dictionary; a list or object is no id."""
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _categories(
    rows: list[Any], path: Path
) -> tuple[tuple[str, ...], dict[Any, int], tuple[int, ...], tuple[str, ...]]:
    by_id: dict[Any, Mapping[str, Any]] = {}
    for row in rows:
        if (
            not isinstance(row, Mapping)
            or not isinstance(_key(row.get("id")), int)
            or not isinstance(row.get("name"), str)
        ):
            raise DataError(f"{path}: a category needs an integer id and a name, got {str(row)[:80]}")
        if row["id"] in by_id:
            raise DataError(
                f"{path}: two categories have the id {row['id']} ({by_id[row['id']]['name']!r} and {row['name']!r}); "
                "give each its own"
            )
        by_id[row["id"]] = row
    ids = tuple(sorted(by_id))
    names = tuple(by_id[i]["name"] for i in ids)
    doubled = next((n for n in names if names.count(n) > 1), None) if len(set(names)) < len(names) else None
    if doubled is not None:
        raise DataError(f"{path}: two categories are called {doubled!r}; give each its own name, or merge them")
    frequency = tuple(str(by_id[i].get("frequency", "")) for i in ids)
    return names, {key: i for i, key in enumerate(ids)}, ids, frequency if all(frequency) else ()


def _image_records(rows: list[Any], path: Path) -> dict[Any, Mapping[str, Any]]:
    records: dict[Any, Mapping[str, Any]] = {}
    for row in rows:
        if not isinstance(row, Mapping) or _key(row.get("id")) is None:
            raise DataError(f"{path}: an image needs an id, got {str(row)[:80]}")
        if not isinstance(row.get("file_name"), str) and not isinstance(row.get("coco_url"), str):
            raise DataError(f"{path}: image {row['id']} has no file_name")
        if row["id"] in records:
            raise DataError(f"{path}: two images have the id {row['id']}; their annotations cannot be told apart")
        for key in ("width", "height"):
            value = row.get(key)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise DataError(
                    f"{path}: image {row['id']} has {key}={value!r}; it must be a number of pixels, 1 or more"
                )
        records[row["id"]] = row
    return records


def _size(record: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = record.get("width"), record.get("height")
    return None if width is None or height is None else (width, height)


def _find(record: Mapping[str, Any], folders: Sequence[Path]) -> Path:
    """The image's file; LVIS names it by the last two parts of `coco_url` (train2017/000000000009.jpg)."""
    name = record.get("file_name")
    relative = str(name) if name is not None else "/".join(PurePosixPath(record["coco_url"]).parts[-2:])
    pure = PurePosixPath(relative.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts:
        raise DataError(f"image {record['id']}: file_name {relative!r} points out of the image folder")
    candidates = [folder / pure for folder in folders]
    return next((c for c in candidates if c.is_file()), candidates[0])


def _annotation(
    annotation: Mapping[str, Any], record: Mapping[str, Any], name: str, log: BoxLog, outlines: bool
) -> tuple[np.ndarray, float, bool, list[np.ndarray]] | None:
    """(box, area, crowd, polygons), or None when it is left out."""
    segmentation = annotation.get("segmentation")
    polygons = []
    if isinstance(segmentation, list):
        for polygon in segmentation:
            try:
                flat = np.asarray(polygon, np.float64)
            except (TypeError, ValueError):
                continue
            if flat.ndim == 1 and len(flat) >= 6 and len(flat) % 2 == 0 and np.isfinite(flat).all():
                polygons.append(flat)
    given = annotation.get("bbox")
    if given is None and polygons:
        points = np.concatenate(polygons).reshape(-1, 2)
        corners: Any = [*points.min(0), *points.max(0)]
        log.derived_box += 1
    elif isinstance(given, (list, tuple)) and len(given) == 4 and all(isinstance(v, (int, float)) for v in given):
        corners = [given[0], given[1], given[0] + given[2], given[1] + given[3]]
    else:
        corners = given
    box = log.take(corners, _size(record), name)
    if box is None:
        return None
    area = annotation.get("area")
    if not isinstance(area, (int, float)) or isinstance(area, bool) or not np.isfinite(area) or area <= 0:
        outline = sum(polygon_area(p) for p in polygons)
        area = outline if outline > 0 else float((box[2] - box[0]) * (box[3] - box[1]))
        log.derived_area += 1
    return box, float(area), bool(annotation.get("iscrowd", 0)), polygons if outlines else []


def _target(
    rows: list[tuple[np.ndarray, int, float, bool, list[np.ndarray]]],
    record: Mapping[str, Any],
    index_of: Mapping[Any, int],
    outlines: bool,
) -> Target:
    negative = record.get("neg_category_ids")
    not_exhaustive = record.get("not_exhaustive_category_ids") or ()
    return Target(
        boxes=np.array([r[0] for r in rows], np.float64).reshape(-1, 4),
        labels=np.array([r[1] for r in rows], np.int64),
        area=np.array([r[2] for r in rows], np.float64),
        crowd=np.array([r[3] for r in rows], bool),
        polygons=[r[4] for r in rows] if outlines else None,
        negative=None if negative is None else frozenset(index_of[c] for c in negative if c in index_of),
        not_exhaustive=frozenset(index_of[c] for c in not_exhaustive if c in index_of),
    )


def read_coco_document(document: Mapping[str, Any], where: str) -> list[Target]:
    """The targets of a document in memory, one per image in its order; rules and errors as in `read_coco`."""
    path = Path(where)
    _, index_of, _, _ = _categories(document["categories"], path)
    records = _image_records(document["images"], path)
    log = BoxLog(where)
    rows: dict[Any, list[Any]] = {key: [] for key in records}
    for annotation in document["annotations"]:
        image = annotation["image_id"]
        row = _annotation(annotation, records[image], f"annotation {annotation.get('id')}", log, False)
        if row is not None:
            rows[image].append((row[0], index_of[annotation["category_id"]], *row[1:]))
    log.check()
    return [_target(rows[key], records[key], index_of, False) for key in records]


def to_coco(
    split: DetectionSplit, label_names: Sequence[str], files: Sequence[str], sizes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """A COCO annotation document of a split; `read_coco` reads it back to the same boxes.

    Args:
        split: what to write.
        label_names: of its classes.
        files: `file_name` of each image.
        sizes: (width, height) of each image.
    """
    ids = split.category_ids or tuple(range(1, len(label_names) + 1))
    annotations = []
    for i, target in enumerate(split.targets):
        for box, label, area, crowd in zip(target.boxes, target.labels, target.area, target.crowd):
            x1, y1, x2, y2 = (float(v) for v in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": ids[int(label)],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
    images = [
        {"id": i + 1, "file_name": name, "width": w, "height": h} for i, (name, (w, h)) in enumerate(zip(files, sizes))
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": key, "name": name} for key, name in zip(ids, label_names)],
    }
