"""The DeepForest trees: aerial photographs with every tree boxed, cut into tiles. MIT, from the PyPI wheel deepforest
2.1.0.

Train and validation are tiles of one Yellowstone photograph (`2019_YELL_2_528000_4978000_image_crop2.png`, 574 trees;
the validation tiles are its right-most column), test are tiles of another
(`2019_YELL_2_541000_4977000_image_crop.png`, 279 trees) and a photograph from Florida (`OSBS_029.png`, 61 trees),
where other trees grow. A tree that the edge of a tile cuts is clipped
to it, and one of which less than half is left counts as a crowd region: not trained on, and neither right nor wrong.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.base import Raw, sha256_files
from hybridzoo.data.detection.coco import read_coco_document, to_coco
from hybridzoo.data.detection.images import RgbArrays, open_upright
from hybridzoo.data.detection.split import DetectionSplit, Target
from hybridzoo.data.detection.voc_csv import read_voc
from hybridzoo.errors import DataError

TRAIN = "2019_YELL_2_528000_4978000_image_crop2"
TEST = ("2019_YELL_2_541000_4977000_image_crop", "OSBS_029")
TILE = 400  # largest side of a tile in pixels
LEFT_OVER = 0.5  # share of a tree's box that a tile must hold
EMBEDDED = Path(__file__).resolve().parent.parent / "embedded" / "trees_mini.tar.gz"
MINI = {"train": 6, "validation": 2, "test": 5}  # tiles with at least 8 trees
MINI_QUALITY = 85


def read_trees(root: Any, protocol: str, seed: int, options: Mapping[str, Any]) -> Raw:
    """Tiles of the photographs in a folder (deepforest/data of the wheel)."""
    folder = Path(root)
    files = [folder / f"{name}{suffix}" for name in (TRAIN, *TEST) for suffix in (".png", ".xml")]
    missing = next((f for f in files if not f.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing} does not exist; {folder} must hold deepforest/data/*.png and *.xml of the wheel")
    side = int(options.get("tile", TILE))
    names, images, targets, columns = tiles(folder, TRAIN, side)
    held = columns == columns.max()
    everything = DetectionSplit(names, RgbArrays(images), targets)
    tested = [tiles(folder, name, side)[:3] for name in TEST]
    test = DetectionSplit(
        [n for part in tested for n in part[0]],
        RgbArrays([i for part in tested for i in part[1]]),
        [t for part in tested for t in part[2]],
    )
    return Raw(
        splits={  # type: ignore[arg-type]
            "train": everything.select(np.flatnonzero(~held).tolist()),
            "validation": everything.select(np.flatnonzero(held).tolist()),
            "test": test,
        },
        label_names=("tree",),
        sha256=sha256_files(files),
        sha256_of="sha256 lines of the three photographs and their XML files",
        revision="deepforest 2.1.0",
    )


def tiles(folder: Path, name: str, side: int) -> tuple[list[str], list[np.ndarray], list[Target], np.ndarray]:
    """(names, images, targets, column) of a photograph cut into equal tiles of at most `side` pixels, row by row."""
    read = read_voc([folder / f"{name}.xml"], folder, where=str(folder))
    whole = read.split(folder, dict.fromkeys(read.names, 0))
    array = np.asarray(open_upright(folder / f"{name}.png"))
    height, width = array.shape[:2]
    tops = np.linspace(0, height, -(-height // side) + 1).round().astype(int)
    lefts = np.linspace(0, width, -(-width // side) + 1).round().astype(int)
    names, images, targets, columns = [], [], [], []
    for row in range(len(tops) - 1):
        for column in range(len(lefts) - 1):
            window = (int(lefts[column]), int(tops[row]), int(lefts[column + 1]), int(tops[row + 1]))
            names.append(f"{name}/{row}-{column}")
            images.append(np.ascontiguousarray(array[window[1] : window[3], window[0] : window[2]]))
            targets.append(cut(whole.targets[0], window))
            columns.append(column)
    return names, images, targets, np.array(columns)


def cut(target: Target, window: tuple[int, int, int, int]) -> Target:
    """The objects inside a window (left, top, right, bottom), in its coordinates."""
    left, top, right, bottom = window
    boxes = target.boxes.clip([left, top, left, top], [right, bottom, right, bottom]) - [left, top, left, top]
    sides = boxes[:, 2:] - boxes[:, :2]
    area = sides[:, 0] * sides[:, 1]
    whole = (target.boxes[:, 2:] - target.boxes[:, :2]).prod(1)
    keep = (sides >= 1).all(1)
    crowd = target.crowd | (area < LEFT_OVER * whole)
    return Target(boxes=boxes[keep], labels=target.labels[keep], area=area[keep], crowd=crowd[keep])


def read_trees_mini(root: Any, protocol: str, seed: int, options: Mapping[str, Any]) -> Raw:
    """The embedded tiles."""
    splits: dict[str, DetectionSplit] = {}
    with tarfile.open(EMBEDDED) as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}  # type: ignore[union-attr]
    for split in ("train", "validation", "test"):
        document = json.loads(members[f"{split}.json"])
        names = [record["file_name"] for record in document["images"]]
        images = [np.asarray(open_upright(members[name], name=name)) for name in names]
        targets = read_coco_document(document, f"trees_mini/{split}.json")
        splits[split] = DetectionSplit([n.removesuffix(".jpg") for n in names], RgbArrays(images), targets)
    return Raw(
        splits=splits,  # type: ignore[arg-type]
        label_names=("tree",),
        sha256=sha256_files([EMBEDDED]),
        revision="deepforest 2.1.0",
        notes=("tiles of the DeepForest photographs, stored as JPEG",),
    )


def pack_mini(source: Path) -> Path:
    """Write the embedded archive from the folder of the photographs: 6 train, 2 validation and 5 test tiles."""
    raw = read_trees(source, "", 0, {})
    members: list[tuple[str, bytes]] = []
    for split, count in MINI.items():
        whole: Any = raw.splits[split]
        full = [i for i, t in enumerate(whole.targets) if (~t.crowd).sum() >= 8]
        chosen = [full[i] for i in np.linspace(0, len(full) - 1, count).round().astype(int)]
        part = whole.select(chosen)
        files = [name.replace("/", "_") + ".jpg" for name in part.ids]
        for file, image in zip(files, part.content):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=MINI_QUALITY)
            members.append((file, buffer.getvalue()))
        document = to_coco(part, ("tree",), files, [image.size for image in part.content])
        members.append((f"{split}.json", json.dumps(document, separators=(",", ":")).encode()))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    EMBEDDED.write_bytes(gzip.compress(buffer.getvalue(), 9, mtime=0))
    return EMBEDDED
