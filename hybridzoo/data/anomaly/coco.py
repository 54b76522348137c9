"""COCO-AD: COCO 2017 with 20 of its 80 categories as anomalies, four splits.

Training images hold none of the split's 20 categories; every annotated validation image is a test image, anomalous if
it holds one of them, and its mask is the union of their polygons and run-length masks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.anomaly.split import Entry
from hybridzoo.errors import DataError

PER_SPLIT, SPLITS = 20, 4
CLASS = "coco"


def coco_ad(root: Path, classes: Sequence[str] | None = None, *, split: int = 0) -> dict[str, dict[str, list[Entry]]]:
    """Entries from `annotations/instances_{train,val}2017.json`; masks are drawn into `val2017_mask_ad_20_<split>`.

    Args:
        root: with `annotations/`, `train2017/` and `val2017/`.
        classes: unused; there is one class, `coco`.
        split: 0 to 3: categories 20 split to 20 split + 19, in the order of their ids, are anomalous.

    Raises:
        DataError: files are missing, or no such split.
    """
    if not 0 <= split < SPLITS:
        raise DataError(f"COCO-AD has the splits 0 to {SPLITS - 1}, got {split}")
    parts: dict[str, dict[str, list[Entry]]] = {}
    folder = f"val2017_mask_ad_{PER_SPLIT}_{split}"
    for part, name in (("train", "train2017"), ("test", "val2017")):
        file = root / "annotations" / f"instances_{name}.json"
        if not file.is_file():
            raise DataError(f"{file} is missing; COCO-AD needs COCO 2017: annotations/, train2017/ and val2017/")
        coco = json.loads(file.read_text(encoding="utf-8"))
        ordered = sorted(c["id"] for c in coco["categories"])
        wanted = set(ordered[PER_SPLIT * split : PER_SPLIT * (split + 1)])
        of_image: dict[int, list[dict[str, Any]]] = {}
        for annotation in coco["annotations"]:
            of_image.setdefault(annotation["image_id"], []).append(annotation)
        entries = []
        for image in coco["images"]:
            if image["id"] not in of_image:
                continue
            found = [a for a in of_image[image["id"]] if a["category_id"] in wanted]
            if part == "train":
                if not found:
                    entries.append(Entry(f"{name}/{image['file_name']}", "", CLASS, "", 0))
                continue
            mask = f"{folder}/{Path(image['file_name']).stem}.png" if found else ""
            if found:
                _write_mask(root / mask, found, image["height"], image["width"])
            entries.append(Entry(f"{name}/{image['file_name']}", mask, CLASS, "", int(bool(found))))
        parts[part] = {CLASS: entries}
    return parts


def _write_mask(path: Path, annotations: Sequence[dict[str, Any]], height: int, width: int) -> None:
    from PIL import Image

    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((height, width), bool)
    for annotation in annotations:
        mask |= segmentation_mask(annotation["segmentation"], height, width)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def segmentation_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(H, W) bool of COCO's polygons, or of its uncompressed run lengths."""
    from PIL import Image, ImageDraw

    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if not isinstance(counts, list):
            raise DataError("a compressed run-length mask; COCO's own annotation files hold lists of counts")
        values = np.arange(len(counts)) % 2 == 1  # runs of 0 and 1 in turn, down the columns
        return np.repeat(values, counts).reshape(width, height).T
    canvas = Image.new("1", (width, height))
    for polygon in segmentation:
        ImageDraw.Draw(canvas).polygon([(x, y) for x, y in zip(polygon[::2], polygon[1::2])], fill=1, outline=1)
    return np.asarray(canvas)
