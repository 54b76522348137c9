"""Folder layouts of the field's data sets, as lists of entries: {"train": {class: [Entry]}, "test": {…}}.

Layouts as https://github.com/zhangzjn/ADer reads them. Folders that the authors of the sets call differently are named
in each function.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from hybridzoo.data.anomaly.split import GOOD, Entry
from hybridzoo.data.images import IMAGE_SUFFIXES
from hybridzoo.errors import DataError

Parts = dict[str, dict[str, list[Entry]]]
NORMAL_FOLDERS = ("good", "ok", "normal")
REALIAD_NORMAL = "OK"


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder and its sub-folders, in name order."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def pair_masks(images: Sequence[Path], masks: Sequence[Path], where: str) -> list[Path]:
    """The mask of each image: by name (`000.png` and `000.png` or `000_mask.png`), else by sorted order as ADer does.

    Raises:
        DataError: neither names nor numbers agree.
    """
    by_name = {m.stem.removesuffix("_mask").removesuffix("_gt"): m for m in masks}
    if all(i.stem in by_name for i in images):
        return [by_name[i.stem] for i in images]
    if len(images) != len(masks):
        missing = next(i.name for i in images if i.stem not in by_name)
        raise DataError(
            f"{where}: {len(images)} anomalous images, {len(masks)} masks, and none is called like {missing}; give "
            "each image a mask of its name, or remove the folder of masks to score images only"
        )
    return sorted(masks)


def mvtec(root: Path, classes: Sequence[str] | None = None) -> Parts:
    """`<class>/train/good`, `<class>/test/<good or defect>`, `<class>/ground_truth/<defect>`: MVTec-AD, MPDD, medical.

    BTAD calls the normal folder `ok`. A set to test on may be without train folders.
    """
    parts: Parts = {"train": {}, "test": {}}
    for folder in _class_folders(root, classes, lambda p: (p / "train").is_dir() or (p / "test").is_dir()):
        name = folder.name
        for split in parts:
            if not (folder / split).is_dir():
                continue
            entries: list[Entry] = []
            for kind in _folders(folder / split):
                found, good = images_in(kind), kind.name.lower() in NORMAL_FOLDERS
                truth = images_in(folder / "ground_truth" / kind.name)
                masks = pair_masks(found, truth, f"{name}/{split}/{kind.name}") if truth and not good else None
                for i, image in enumerate(found):
                    mask = _relative(masks[i], root) if masks else ""
                    entries.append(
                        Entry(_relative(image, root), mask, name, GOOD if good else kind.name, int(not good))
                    )
            parts[split][name] = entries
    return parts


def mvtec_3d(root: Path, classes: Sequence[str] | None = None) -> Parts:
    """`<class>/<train|validation|test>/<good or defect>/rgb` and `…/gt`; validation images are added to train."""
    parts: Parts = {"train": {}, "test": {}}
    for folder in _class_folders(root, classes, lambda p: (p / "train").is_dir()):
        for source, split in (("train", "train"), ("validation", "train"), ("test", "test")):
            entries = parts[split].setdefault(folder.name, [])
            for kind in _folders(folder / source) if (folder / source).is_dir() else ():
                good, found = kind.name.lower() in NORMAL_FOLDERS, images_in(kind / "rgb")
                truth = images_in(kind / "gt")
                masks = pair_masks(found, truth, f"{folder.name}/{source}/{kind.name}") if truth and not good else None
                for i, image in enumerate(found):
                    mask = _relative(masks[i], root) if masks else ""
                    specie = GOOD if good else kind.name
                    entries.append(Entry(_relative(image, root), mask, folder.name, specie, int(not good)))
    return parts


def visa(root: Path, classes: Sequence[str] | None = None) -> Parts:
    """`split_csv/1cls.csv` with the columns object, split, label, image and mask."""
    table = root / "split_csv" / "1cls.csv"
    if not table.is_file():
        raise DataError(f"{root} has no split_csv/1cls.csv; it comes with the VisA archive")
    parts: Parts = {"train": {}, "test": {}}
    with open(table, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"object", "split", "label", "image", "mask"} - set(reader.fieldnames or ())
        if missing:
            raise DataError(f"{table} has no column {', '.join(sorted(missing))}")
        for row in reader:
            if classes is not None and row["object"] not in classes:
                continue
            if row["split"] not in parts:
                raise DataError(f"{table}, line {reader.line_num}: split {row['split']!r} is neither train nor test")
            anomaly = int(row["label"] != "normal")
            entry = Entry(row["image"], (row["mask"] or "") if anomaly else "", row["object"], "", anomaly)
            parts[row["split"]].setdefault(row["object"], []).append(entry)
    _check_classes(root, classes, parts["train"])
    return parts


def real_iad(root: Path, classes: Sequence[str] | None = None) -> Parts:
    """`<class>.json` beside `<class>/`: lists train and test of {anomaly_class, image_path, mask_path}; all views."""
    files = sorted(root.glob("*.json"))
    if not files:
        raise DataError(f"{root} has no <class>.json; Real-IAD's lists of train and test images belong there")
    parts: Parts = {"train": {}, "test": {}}
    for file in files:
        name = file.stem
        if classes is not None and name not in classes:
            continue
        for split, rows in _json(file).items():
            if split not in parts:
                continue
            parts[split][name] = [
                Entry(
                    f"{name}/{row['image_path']}",
                    f"{name}/{row['mask_path']}" if row.get("mask_path") else "",
                    name,
                    GOOD if row["anomaly_class"] == REALIAD_NORMAL else row["anomaly_class"],
                    int(row["anomaly_class"] != REALIAD_NORMAL),
                )
                for row in rows
            ]
    _check_classes(root, classes, parts["train"])
    return parts


def _json(path: Path) -> dict:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{path} holds a {type(loaded).__name__}, expected an object with train and test")
    return loaded


def _class_folders(root: Path, classes: Sequence[str] | None, valid: Callable[[Path], bool]) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root} is no folder")
    found = [p for p in _folders(root) if valid(p)]
    if not found:
        inside = ", ".join(sorted(p.name for p in root.iterdir())[:5])
        raise DataError(
            f"{root} has no class folders with train/ inside (it holds: {inside or 'nothing'}); expected "
            "<class>/train/good/*.png, <class>/test/<good or defect>/*.png, <class>/ground_truth/<defect>/*.png"
        )
    _check_classes(root, classes, [p.name for p in found])
    return [p for p in found if classes is None or p.name in classes]


def _check_classes(root: Path, classes: Sequence[str] | None, found: Sequence[str] | dict[str, list[Entry]]) -> None:
    missing = [c for c in classes or () if c not in found]
    if missing:
        raise DataError(f"{root} has no class {', '.join(missing)}; it has {', '.join(found)}")
