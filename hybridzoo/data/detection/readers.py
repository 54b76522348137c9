"""Readers of the named detection sets: from a root to splits. `hybridzoo.data.catalog` names them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.base import MAX_SKIPPED, Raw, Skipped, sha256_files
from hybridzoo.data.detection.coco import CocoFile, read_coco
from hybridzoo.data.detection.split import DetectionSplit
from hybridzoo.data.detection.voc_csv import Collected, class_indices, read_boxes_csv, read_voc
from hybridzoo.errors import DataError

_SPLIT_FILES = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
PARTS = (0.8, 0.1, 0.1)


def read_coco2017(root: Any, protocol: str, seed: int, options: Mapping[str, Any]) -> Raw:
    """COCO 2017: `annotations/instances_{train,val}2017.json`, images in `train2017/` and `val2017/`. Scored on
    val2017.
    """
    folder = _folder(root)
    files = {"train": "instances_train2017.json", "test": "instances_val2017.json"}
    return _official(folder, files, ("train2017", "val2017"), options)


def read_lvis(root: Any, protocol: str, seed: int, options: Mapping[str, Any]) -> Raw:
    """LVIS v1: `lvis_v1_{train,val}.json` (in the root or `annotations/`), images in COCO's folders."""
    folder = _folder(root)
    return _official(folder, {"train": "lvis_v1_train.json", "test": "lvis_v1_val.json"}, ("",), options)


def _official(folder: Path, files: Mapping[str, str], places: Sequence[str], options: Mapping[str, Any]) -> Raw:
    read: dict[str, CocoFile] = {}
    paths = []
    for split, name in files.items():
        path = next((p for p in (folder / "annotations" / name, folder / name) if p.is_file()), None)
        if path is None:
            continue
        images = [folder / sub / place for sub in ("", "images") for place in places]
        # Official scorers take the boxes as they stand in the file, so nothing is clipped here; training clips.
        read[split] = read_coco(
            path,
            images,
            outside="keep",
            verify=str(options.get("verify", "files")),
            outlines=bool(options.get("outlines", False)),
        )
        paths.append(path)
    if "test" not in read:
        raise DataError(f"{folder} holds no {files['test']} (looked in it and in annotations/)")
    return _coco_raw(read, paths, missing_train="train" not in read)


def _coco_raw(read: Mapping[str, CocoFile], paths: Sequence[Path], *, missing_train: bool = False) -> Raw:
    first = next(iter(read.values()))
    for split, part in read.items():
        if part.label_names != first.label_names:
            facts = [f"{len(p.label_names)} ({', '.join(p.label_names[:5])} …)" for p in (part, first)]
            raise DataError(
                f"the categories of the splits differ: {split} has {facts[0]}, {next(iter(read))} has {facts[1]}"
            )
    notes = [f"{name}: {note}" for name, part in read.items() for note in part.notes]
    if missing_train:
        notes.append("without the train split")
    return Raw(
        splits={name: part.split for name, part in read.items()},  # type: ignore[arg-type]
        label_names=first.label_names,
        sha256=sha256_files(paths),
        sha256_of="annotation file" if len(paths) == 1 else "sha256 lines of the annotation files",
        skipped=tuple(Skipped(f"{n}: {s.where}", s.reason) for n, part in read.items() for s in part.skipped),
        notes=tuple(notes),
    )


def read_coco_json(root: Any, protocol: str, seed: int, options: Mapping[str, Any]) -> Raw:
    """Your own COCO files: a folder with train.json, validation.json, test.json (or
    annotations/instances_<split>*.json), or one file, which is split 80/10/10 by images.
    """
    path = Path(root)
    reading = _reading(options)
    outlines = bool(options.get("outlines", False))
    if path.is_file():
        one = read_coco(path, options.get("images") or _image_folders(path.parent, ""), outlines=outlines, **reading)
        raw = _coco_raw({"all": one}, [path])
        return _divided(raw, one.split, seed)
    files = _find_splits(path)
    if not files:
        raise DataError(f"{path} holds no train.json, validation.json or test.json (nor annotations/instances_*.json)")
    read = {
        name: read_coco(
            file, options.get("images") or _image_folders(path, file.stem, name), outlines=outlines, **reading
        )
        for name, file in files.items()
    }
    return _given(_coco_raw(read, list(files.values())))


def _find_splits(folder: Path) -> dict[str, Path]:
    found = {}
    for split, names in _SPLIT_FILES.items():
        for name in names:
            candidates = [folder / f"{name}.json", folder / "annotations" / f"{name}.json"]
            candidates += sorted((folder / "annotations").glob(f"instances_{name}*.json"))
            candidates += [folder / name / "_annotations.coco.json"]
            path = next((c for c in candidates if c.is_file()), None)
            if path is not None and split not in found:
                found[split] = path
    return found


def _image_folders(folder: Path, stem: str, split: str = "") -> list[Path]:
    names = [stem.removeprefix("instances_"), split, *_SPLIT_FILES.get(split, ())]
    subs = ["images", "", *[n for n in names if n], *[f"images/{n}" for n in names if n]]
    return [folder / sub for sub in dict.fromkeys(subs)]


def read_stamp_scenes(root: Any, protocol: str, seed: int, options: Mapping[str, Any]) -> Raw:
    """A folder that `make_stamp_scenes scenes` wrote."""
    folder = _folder(root)
    try:
        facts = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        archive, scene_seed, size = facts["archive_sha256"], facts["seed"], facts["size"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{folder} holds no provenance.json of stamp scenes ({error}); make the scenes with `python -m "
            "hybridzoo.data.detection.make_stamp_scenes scenes`"
        ) from error
    files = {split: folder / f"{split}.json" for split in _SPLIT_FILES if (folder / f"{split}.json").is_file()}
    read = {split: read_coco(file, folder / split) for split, file in files.items()}
    raw = _coco_raw(read, list(files.values()))
    note = f"scenes of {size} x {size} drawn with seed {scene_seed} from an archive of sha256 {archive[:16]}…"
    return _replace(raw, protocol="made", notes=(note, *raw.notes))


def read_voc_xml(root: Any, protocol: str, seed: int, options: Mapping[str, Any]) -> Raw:
    """Pascal-VOC XML: Annotations/, JPEGImages/ and ImageSets/Main/{train,val,test}.txt; or XML files beside the
    images.
    """
    folder = _folder(root)
    annotations = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    images = next((folder / n for n in ("JPEGImages", "images") if (folder / n).is_dir()), folder)
    every = {p.stem: p for p in sorted(annotations.glob("*.xml"))}
    if not every:
        raise DataError(f"{annotations} holds no .xml files")
    lists = {}
    for split, names in _SPLIT_FILES.items():
        path = next((p for n in names if (p := folder / "ImageSets" / "Main" / f"{n}.txt").is_file()), None)
        if path is not None:
            lists[split] = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for split, stems in lists.items():
        lost = [s for s in stems if s not in every]
        if lost:
            raise DataError(f"ImageSets names {lost[0]!r} for {split}, but {annotations / lost[0]}.xml does not exist")
    reading = {"one_based": bool(options.get("one_based", False)), **_reading(options)}
    reading.pop("verify", None)
    files = {name: [every[s] for s in stems] for name, stems in lists.items()} or {"all": list(every.values())}
    read = {name: read_voc(chosen, images, where=f"{folder} ({name})", **reading) for name, chosen in files.items()}
    return _named(read, folder, list(every.values()), options, seed)


def read_detection_csv(root: Any, protocol: str, seed: int, options: Mapping[str, Any]) -> Raw:
    """A CSV file with a box a row (split 80/10/10 by images), or a folder with train.csv, validation.csv and
    test.csv.
    """
    path = Path(root)
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        files = {
            split: file
            for split, names in _SPLIT_FILES.items()
            if (file := next((p for n in names if (p := path / f"{n}.csv").is_file()), None)) is not None
        }
        if not files:
            raise DataError(f"{path} holds no train.csv, validation.csv or test.csv")
    else:
        files = {"all": path}
    reading: dict[str, Any] = {k: options[k] for k in ("columns", "delimiter") if k in options} | _reading(options)
    reading.pop("verify", None)
    images = Path(options["images"]).expanduser() if options.get("images") else folder
    read = {name: read_boxes_csv(file, images, **reading) for name, file in files.items()}
    return _named(read, images, list(files.values()), options, seed)


def _named(
    read: Mapping[str, Collected], root: Path, files: Sequence[Path], options: Mapping[str, Any], seed: int
) -> Raw:
    names, index_of = class_indices(list(read.values()), options.get("label_names"))
    splits = {name: part.split(root, index_of) for name, part in read.items()}
    raw = Raw(
        splits=splits,  # type: ignore[arg-type]
        label_names=names,
        sha256=sha256_files(files),
        sha256_of="annotation file" if len(files) == 1 else "sha256 lines of the annotation files",
        skipped=tuple(s for part in read.values() for s in (*part.missing, *part.log.skipped)),
        notes=tuple(note for part in read.values() for note in part.log.notes()),
    )
    return _divided(raw, splits["all"], seed) if "all" in splits else _given(raw)


def _given(raw: Raw) -> Raw:
    return _replace(raw, protocol="given")


def _divided(raw: Raw, split: DetectionSplit, seed: int) -> Raw:
    """80/10/10 by images, each part with at least one."""
    if len(split) < 3:
        raise DataError(f"80/10/10 needs at least 3 images, there are {len(split)}; or give the splits as files")
    order = np.random.default_rng(seed).permutation(len(split))
    held = max(round(PARTS[1] * len(split)), 1)
    parts = {"train": order[2 * held :], "validation": order[:held], "test": order[held : 2 * held]}
    splits = {name: split.select(np.sort(rows).tolist()) for name, rows in parts.items()}
    return _replace(raw, splits=splits, protocol="80/10/10")


def _replace(raw: Raw, **changes: Any) -> Raw:
    import dataclasses

    return dataclasses.replace(raw, **changes)


def _reading(options: Mapping[str, Any]) -> dict[str, Any]:
    """The common options with their defaults."""
    return {
        "outside": str(options.get("outside", "clip")),
        "max_skipped": float(options.get("max_skipped", MAX_SKIPPED)),
    }


def _folder(root: Any) -> Path:
    path = Path(root)
    if not path.is_dir():
        raise DataError(f"{path} is not a folder")
    return path
