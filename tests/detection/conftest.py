"""Small annotated image folders in the formats that are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


class CocoFolder:
    """`images/*.png` of given sizes and `train.json`; annotations and fields are changed by the tests."""

    def __init__(self, root: Path):
        self.root = root
        (root / "images").mkdir(parents=True)
        self.document: dict[str, Any] = {"images": [], "annotations": [], "categories": [dict(c) for c in CATEGORIES]}

    def image(self, number: int, size: tuple[int, int] = (64, 48), **fields: Any) -> None:
        name = f"{number}.png"
        Image.fromarray(np.full((size[1], size[0], 3), 40 * (number % 6), np.uint8)).save(self.root / "images" / name)
        record = {"id": number, "file_name": name, "width": size[0], "height": size[1], **fields}
        self.document["images"].append({k: v for k, v in record.items() if v is not None})

    def box(self, image: int, bbox: Any = (10, 10, 20, 20), category: Any = 3, **fields: Any) -> None:
        number = len(self.document["annotations"]) + 1
        row = {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "area": 400.0, "iscrowd": 0}
        row |= fields
        self.document["annotations"].append({k: v for k, v in row.items() if v is not None})

    def write(self, name: str = "train.json") -> Path:
        path = self.root / name
        path.write_text(json.dumps(self.document))
        return path

    def read(self, **options: Any) -> Any:
        from hybridzoo.data.detection.coco import read_coco

        return read_coco(self.write(), self.root / "images", **options)


@pytest.fixture
def coco(tmp_path: Path) -> CocoFolder:
    """Two images with a good box each, and one without."""
    folder = CocoFolder(tmp_path / "set")
    for number in (1, 2, 5):
        folder.image(number)
    folder.box(1)
    folder.box(2, (0, 0, 64, 48), 7)
    return folder


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[[str], CocoFolder]:
    """Empty folders by name."""
    return lambda name: CocoFolder(tmp_path / name)
