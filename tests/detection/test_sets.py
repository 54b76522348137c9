"""The stand-in sets: the embedded tree tiles, tiles of photographs, and stamp scenes with their held-out parts."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hybridzoo.data.detection import Target
from hybridzoo.data.detection import make_stamp_scenes as stamps
from hybridzoo.data.detection.readers import read_stamp_scenes
from hybridzoo.data.detection.trees import TEST, TRAIN, cut, read_trees, read_trees_mini
from hybridzoo.errors import DataError


def test_embedded_trees() -> None:
    raw = read_trees_mini(None, "embedded", 0, {})
    splits: Any = raw.splits
    assert {n: (len(s), s.num_objects) for n, s in splits.items()} == {
        "train": (6, 115),
        "validation": (2, 37),
        "test": (5, 150),
    }
    digests = [d for s in splits.values() for d in s.digests()]
    assert len(set(digests)) == 13
    for split in splits.values():
        for image, target in zip(split.content, split.targets):
            assert image.mode == "RGB"
            assert target.boxes.max(initial=0) <= max(image.size)
            assert (target.boxes[:, 2:] > target.boxes[:, :2]).all()


def test_cutting_clips_and_marks_what_is_mostly_elsewhere() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [95, 20, 115, 30], [92, 50, 102, 60], [200, 0, 210, 10]])
    target = Target(boxes, np.zeros(4, np.int64), np.full(4, 100.0), np.zeros(4, bool))
    left = cut(target, (0, 0, 100, 100))
    assert left.boxes.tolist() == [[0, 0, 10, 10], [95, 20, 100, 30], [92, 50, 100, 60]]
    assert left.crowd.tolist() == [False, True, False]  # a quarter of the second is left, four fifths of the third
    assert left.area.tolist() == [100, 50, 80]
    right = cut(target, (100, 0, 220, 100))
    assert right.boxes.tolist() == [[0, 20, 15, 30], [0, 50, 2, 60], [100, 0, 110, 10]]
    assert right.crowd.tolist() == [False, True, False]


def test_photographs_become_tiles(tmp_path: Path) -> None:
    for name, (width, height) in zip((TRAIN, *TEST), ((900, 500), (410, 100), (100, 100))):
        Image.new("RGB", (width, height)).save(tmp_path / f"{name}.png")
        box = f"<xmin>{width - 30}</xmin><ymin>5</ymin><xmax>{width - 10}</xmax><ymax>30</ymax>"
        tree = f"<object><name>Tree</name><bndbox>{box}</bndbox></object>"
        xml = f"<annotation><filename>{name}.png</filename>{tree}</annotation>"
        (tmp_path / f"{name}.xml").write_text(xml)
    raw = read_trees(tmp_path, "", 0, {})
    splits: Any = raw.splits
    assert {n: len(s) for n, s in splits.items()} == {"train": 4, "validation": 2, "test": 3}
    assert splits["validation"].ids == [f"{TRAIN}/0-2", f"{TRAIN}/1-2"]
    assert splits["validation"].targets[0].boxes.tolist() == [[270, 5, 290, 30]]
    assert splits["test"].num_objects == 2
    (tmp_path / f"{TRAIN}.xml").unlink()
    with pytest.raises(DataError, match="deepforest/data"):
        read_trees(tmp_path, "", 0, {})


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of stamps (ellipses, one colour per class) and textures (noise), as the Debian packages lay them out."""
    root = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    for number, folder in enumerate(stamps.CLASSES.values()):
        (root / "stamps" / folder).mkdir(parents=True)
        for i in range(12):
            array = np.zeros((60 + i, 80, 4), np.uint8)
            y, x = np.mgrid[: 60 + i, :80]
            array[((x - 40) / 36) ** 2 + ((y - 30) / 26) ** 2 < 1] = [*np.full(3, 20 * number), 255]
            Image.fromarray(array).save(root / "stamps" / folder / f"{chr(97 + i)}.png")
        Image.fromarray(array).save(root / "stamps" / folder / "a_mirror.png")
    (root / "textures" / "textures" / "base_wall").mkdir(parents=True)
    for i in range(30):
        noise = rng.integers(60, 200, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "textures" / "textures" / "base_wall" / f"{i}.jpg")
    return root


@pytest.fixture(scope="module")
def archive(sources: Path) -> Path:
    return stamps.pack(sources / "stamps", sources / "textures", sources / "stamps.zip")


def test_packing_keeps_classes_and_leaves_mirrored_copies_out(archive: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        names = file.namelist()
    assert sum(n.startswith("backgrounds/") for n in names) == 30
    assert sum(n.startswith("stamps/") for n in names) == 8 * 12
    assert not any("mirror" in n for n in names)


def test_no_stamp_or_background_is_in_two_splits(archive: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        names = [n for n in file.namelist() if n.startswith("stamps/bird/")]
    parts = stamps.divide(names, stamps.PARTS, [0, 0])
    assert sorted(n for part in parts.values() for n in part) == sorted(names)
    assert min(len(p) for p in parts.values()) >= 1
    numbered = [f"x/flower{i}.png" for i in range(9)] + ["x/rose.png", "x/rose-2.png", "x/daffodil.png"]
    for split in stamps.divide(numbered, stamps.PARTS, [1]).values():
        assert sum("flower" in n for n in split) in (0, 9)
        assert sum("rose" in n for n in split) in (0, 2)


def test_boxes_are_the_visible_extent(archive: Path) -> None:
    parts = stamps.Parts(archive, 0)
    counts = []
    for number in range(30):
        scene, objects = stamps.make_scene(parts, "train", number, 160, 0)
        again, same = stamps.make_scene(parts, "train", number, 160, 0)
        assert objects == same
        assert np.array_equal(np.asarray(scene), np.asarray(again))
        counts.append(len(objects))
        for one in objects:
            x, y, w, h = one["box"]
            assert 0 <= x < x + w <= 160
            assert 0 <= y < y + h <= 160
            assert 64 <= one["area"] <= w * h
    assert min(counts) >= 1
    assert max(counts) > 4


def test_scenes_as_coco_files_in_one_or_several_processes(archive: Path, tmp_path: Path) -> None:
    counts = {"train": 6, "validation": 2, "test": 3}
    one = stamps.make_scenes(archive, tmp_path / "one", counts, size=96, workers=1)
    stamps.make_scenes(archive, tmp_path / "two", counts, size=96, workers=2)
    for split in counts:
        assert (one / f"{split}.json").read_bytes() == (tmp_path / "two" / f"{split}.json").read_bytes()
    raw = read_stamp_scenes(one, "made", 0, {})
    assert {n: len(s) for n, s in raw.splits.items()} == counts
    assert raw.label_names == tuple(stamps.CLASSES)
    assert raw.splits["test"][2]["image"].size == (96, 96)
    assert "seed 0" in " ".join(raw.notes)
    with pytest.raises(DataError, match="exists"):
        stamps.make_scenes(archive, one, counts)
    (one / "provenance.json").unlink()
    with pytest.raises(DataError, match="make_stamp_scenes"):
        read_stamp_scenes(one, "made", 0, {})


def test_command_line(sources: Path, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    words = ["scenes", str(archive), str(out), "--train", "2", "--validation", "0", "--test", "1", "--size", "64"]
    done = subprocess.run(
        [sys.executable, "-m", "hybridzoo.data.detection.make_stamp_scenes", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads((out / "train.json").read_text())["images"]) == 2
    with pytest.raises(DataError, match="expected those of tuxpaint"):
        stamps.pack(tmp_path, sources / "textures", tmp_path / "x.zip")
    with pytest.raises(DataError, match="no archive of stamps"):
        stamps.Parts(out / "train.json", 0)


def test_sets_by_name(sources: Path, archive: Path, tmp_path: Path) -> None:
    from hybridzoo.data import load_data

    bundle = load_data("trees_mini")
    assert (bundle.info.task, bundle.info.track, bundle.info.sizes["test"]) == ("object-detection", "mini", 5)
    assert not bundle.info.duplicates
    part = load_data("trees_mini", limit=2, seed=1)
    assert part.info.track == "subset"
    assert {n: len(s) for n, s in part.splits.items()} == {"train": 2, "validation": 2, "test": 2}
    made = stamps.make_scenes(archive, tmp_path / "made", {"train": 3, "test": 2}, size=64)
    assert load_data("stamp_scenes", root=made).info.sizes == {"train": 3, "test": 2}
    with pytest.raises(DataError, match="make_stamp_scenes"):
        load_data("stamp_scenes")
    with pytest.raises(DataError, match="did you mean 'one_based'"):
        load_data("voc_xml", root=tmp_path, onebased=True)
