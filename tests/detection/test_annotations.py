"""Annotation files: COCO, VOC XML, CSV; boxes that cannot be right; images that are turned, of 16 bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hybridzoo.data.detection import DetectionSplit, Target
from hybridzoo.data.detection.coco import to_coco
from hybridzoo.data.detection.images import open_upright
from hybridzoo.data.detection.readers import read_coco2017, read_coco_json, read_detection_csv, read_lvis, read_voc_xml
from hybridzoo.data.detection.split import check_splits, draw
from hybridzoo.errors import DataError


def test_reads_boxes_labels_and_images_without_objects(coco: Any) -> None:
    read = coco.read()
    assert read.label_names == ("cat", "dog")
    assert read.split.category_ids == (3, 7)
    assert read.split.ids == ["1", "2", "5"]
    first, second, third = (read.split[i]["target"] for i in range(3))
    assert first.boxes.tolist() == [[10, 10, 30, 30]]
    assert first.labels.tolist() == [0]
    assert second.boxes.tolist() == [[0, 0, 64, 48]]
    assert second.labels.tolist() == [1]
    assert len(third) == 0
    assert read.split[0]["image"].size == (64, 48)
    assert not read.skipped
    assert not read.notes


def test_unusable_annotations_are_counted_and_named(coco: Any) -> None:
    for _ in range(200):  # so that the bad ones stay below 5 %
        coco.box(1)
    coco.box(99)
    coco.box(1, category=4)
    coco.box(1, (5, 5, 0, 10))
    coco.box(1, (5, 5, -3, 10))
    coco.box(1, (5, 5, float("nan"), 10))
    coco.box(1, (70, 5, 10, 10))
    coco.box(1, [1, 2, 3])
    coco.box(1, None, area=None)
    read = coco.read()
    reasons = {s.where: s.reason for s in read.skipped}
    assert len(reasons) == 8
    assert "image_id 99" in reasons["annotation 203"]
    assert "category_id 4" in reasons["annotation 204"]
    assert "empty box" in reasons["annotation 205 (image 1)"]
    assert "inverted box" in reasons["annotation 206 (image 1)"]
    assert "finite" in reasons["annotation 207 (image 1)"]
    assert "outside its image of 64 x 48" in reasons["annotation 208 (image 1)"]
    assert len(read.split.targets[0]) == 201


def test_too_many_unusable_annotations_refuse_the_file(coco: Any) -> None:
    for _ in range(3):
        coco.box(1, (30, 30, -20, -20))  # corners taken for sizes
    with pytest.raises(DataError, match=r"3 of 5 .*inverted"):
        coco.read()
    assert len(coco.read(max_skipped=1.0).skipped) == 3


def test_boxes_that_reach_out_are_clipped_kept_or_refused(coco: Any) -> None:
    coco.box(1, (50, 30, 40, 40))
    read = coco.read()
    assert read.split.targets[0].boxes[1].tolist() == [50, 30, 64, 48]
    assert read.notes == ("1 boxes that reached out of their image were clipped",)
    assert coco.read(outside="keep").split.targets[0].boxes[1].tolist() == [50, 30, 90, 70]
    with pytest.raises(DataError, match=r"annotation 3 .* reaches out of its image of 64 x 48"):
        coco.read(outside="refuse")
    with pytest.raises(DataError, match="clip"):
        coco.read(outside="cut")


def test_crowds_area_and_polygons(coco: Any) -> None:
    coco.box(1, (0, 0, 30, 30), iscrowd=1, segmentation={"counts": [1], "size": [48, 64]})
    coco.box(1, (0, 0, 10, 10), area=None, segmentation=[[0, 0, 10, 0, 10, 10]])
    coco.box(1, (0, 0, 10, 10), area=0, segmentation=[[3, 3, 3, 3]])  # an outline without area
    coco.box(1, None, segmentation=[[2, 3, 12, 3, 12, 9]], area=None)
    read = coco.read(outlines=True)
    target = read.split.targets[0]
    assert target.crowd.tolist() == [False, True, False, False, False]
    assert target.area.tolist() == [400, 400, 50, 100, 30]
    assert target.boxes[4].tolist() == [2, 3, 12, 9]
    assert target.polygons is not None
    assert len(target.polygons[2][0]) == 6
    assert any("3 annotations without area" in n for n in read.notes)
    assert any("1 annotations without bbox" in n for n in read.notes)


def test_repeated_ids(coco: Any) -> None:
    coco.box(1, id=1)
    assert any("repeat an id" in n for n in coco.read().notes)
    coco.image(2)
    with pytest.raises(DataError, match="two images have the id 2"):
        coco.read()


def change(key: str, value: Any) -> Any:
    def apply(folder: Any) -> None:
        folder.document[key] = value(folder.document[key]) if callable(value) else value

    return apply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change("categories", [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]), "two categories have the id 3"),
        (change("categories", [{"id": 3, "name": "a"}, {"id": 7, "name": "a"}]), "two categories are called 'a'"),
        (change("categories", [{"id": "3", "name": "a"}]), "integer id"),
        (change("categories", []), "lists no categories"),
        (change("images", []), "lists no images"),
        (change("images", {}), "the list 'images' is missing"),
        (change("images", lambda rows: [{"id": 1}, *rows[1:]]), "image 1 has no file_name"),
        (change("images", lambda rows: [{**rows[0], "file_name": "../../secret.png"}, *rows[1:]]), "points out of"),
        (change("images", lambda rows: [{**rows[0], "width": 0}, *rows[1:]]), "width=0"),
        (change("annotations", ["a"]), r"annotations\[0\] is no object"),
        (change("annotations", None), "the list 'annotations' is missing"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_ambiguous_or_foreign_files_are_refused(coco: Any, change: Any, words: str) -> None:
    change(coco)
    with pytest.raises(DataError, match=words):
        coco.read()


def test_files_that_are_no_annotations(tmp_path: Path) -> None:
    from hybridzoo.data.detection.coco import read_coco

    path = tmp_path / "a.json"
    with pytest.raises(DataError, match="no such file"):
        read_coco(path, tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        read_coco(path, tmp_path)
    path.write_text("[]")
    with pytest.raises(DataError, match="results file"):
        read_coco(path, tmp_path)


def test_missing_images(coco: Any) -> None:
    (coco.root / "images" / "5.png").unlink()
    read = coco.read()
    assert [s.where for s in read.skipped] == ["image 5"]
    assert read.split.ids == ["1", "2"]
    (coco.root / "images" / "2.png").unlink()
    with pytest.raises(DataError, match="2 of 3 images have no file"):
        coco.read()
    assert len(coco.read(verify="none").split) == 3


# Images --------------------------------------------------------------------------------------------------------------


def test_turned_images_are_upright_unless_the_boxes_are_of_the_stored_pixels(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert open_upright(tmp_path / "a.png").size == (20, 40)
    assert open_upright(tmp_path / "a.png", (20, 40)).getpixel((19, 0)) == (255, 255, 255)
    stored = open_upright(tmp_path / "a.png", (40, 20))
    assert stored.size == (40, 20)
    assert stored.getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(DataError, match="annotated as 30 x 30"):
        open_upright(tmp_path / "a.png", (30, 30))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("CMYK", (5, 4), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.fromarray(np.full((4, 5), 51400, np.uint16)), (200, 200, 200)),
        (Image.new("L", (5, 4), 9), (9, 9, 9)),
        (Image.new("RGBA", (5, 4), (1, 2, 3, 0)), (1, 2, 3)),
        (Image.new("1", (1, 1), 1), (255, 255, 255)),
    ],
    ids=["cmyk", "16bit", "grey", "rgba", "one-pixel"],
)
def test_every_mode_becomes_rgb(image: Any, expected: tuple[int, int, int]) -> None:
    made = open_upright(image)
    assert made.mode == "RGB"
    assert made.size == image.size
    assert made.getpixel((0, 0)) == expected


# Sets ----------------------------------------------------------------------------------------------------------------


def test_official_coco_and_lvis_layouts(make_coco: Any) -> None:
    folder = make_coco("coco")
    (folder.root / "images").rename(folder.root / "val2017")
    (folder.root / "images").mkdir()
    folder.root.joinpath("annotations").mkdir()
    for number in (1, 2):
        folder.image(number)
        (folder.root / "images" / f"{number}.png").rename(folder.root / "val2017" / f"{number}.png")
    folder.box(1, (50.5, 30, 14.2, 18.4))
    folder.write("annotations/instances_val2017.json")
    raw = read_coco2017(folder.root, "official", 0, {})
    assert raw.splits["test"].targets[0].boxes[0].tolist() == [50.5, 30, 64.7, 48.4]  # kept as the scorer has them
    assert raw.notes == ("without the train split",)
    for record in folder.document["images"]:
        record["coco_url"] = f"http://images.cocodataset.org/val2017/{record.pop('file_name')}"
        record["neg_category_ids"], record["not_exhaustive_category_ids"] = [7], [3]
    for category in folder.document["categories"]:
        category["frequency"] = "r"
    folder.write("lvis_v1_val.json")
    raw = read_lvis(folder.root, "official", 0, {})
    assert raw.splits["test"][1]["image"].size == (64, 48)
    assert raw.splits["test"].targets[0].negative == {1}
    assert raw.splits["test"].targets[0].not_exhaustive == {0}
    with pytest.raises(DataError, match="instances_val2017"):
        read_coco2017(folder.root / "images", "official", 0, {})


def test_own_coco_files_one_or_several(coco: Any) -> None:
    for number in range(10, 20):
        coco.image(number)
        coco.box(number)
    path = coco.write("all.json")
    raw = read_coco_json(path, "", 0, {})
    assert {k: len(v) for k, v in raw.splits.items()} == {"train": 11, "validation": 1, "test": 1}
    assert sorted(i for s in raw.splits.values() for i in s.ids) == sorted(
        str(r["id"]) for r in coco.document["images"]
    )
    coco.write("train.json")
    coco.write("val.json")
    raw = read_coco_json(coco.root, "", 0, {})
    assert list(raw.splits) == ["train", "validation"]
    assert raw.protocol == "given"
    coco.document["categories"][0]["name"] = "cow"
    coco.write("test.json")
    with pytest.raises(DataError, match="categories of the splits differ"):
        read_coco_json(coco.root, "", 0, {})


def test_what_is_written_is_read_back(coco: Any) -> None:
    coco.box(2, (1.25, 2.5, 3, 4), iscrowd=1)
    read = coco.read()
    files = [r["file_name"] for r in coco.document["images"]]
    document = to_coco(read.split, read.label_names, files, [(64, 48)] * 3)
    (coco.root / "again.json").write_text(json.dumps(document))
    again = read_coco_json(coco.root / "again.json", "", 0, {})
    targets = {i: t for s in again.splits.values() for i, t in zip(s.ids, s.targets)}
    assert again.label_names == read.label_names
    for i, target in enumerate(read.split.targets):
        for name in ("boxes", "labels", "area", "crowd"):
            np.testing.assert_array_equal(getattr(targets[str(i + 1)], name), getattr(target, name))


VOC = """<annotation><filename>{name}</filename><size><width>1</width><height>1</height><depth>3</depth></size>
{objects}</annotation>"""
OBJECT = "<object><name>{0}</name><difficult>{1}</difficult><bndbox><xmin>{2}</xmin><ymin>{3}</ymin><xmax>{4}</xmax>"
OBJECT += "<ymax>{5}</ymax></bndbox></object>"


def voc(root: Path, count: int = 4) -> Path:
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (64, 48)).save(root / "JPEGImages" / f"{i}.jpg")
        objects = OBJECT.format("dog", 0, 11, 11, 20, 20) + OBJECT.format("cat", 1, 1, 1, 64, 48)
        (root / "Annotations" / f"{i}.xml").write_text(VOC.format(name=f"{i}.jpg", objects=objects))
    return root


def test_voc(tmp_path: Path) -> None:
    root = voc(tmp_path / "voc")
    (root / "ImageSets/Main/train.txt").write_text("0\n1\n2\n")
    (root / "ImageSets/Main/val.txt").write_text("3 1\n")
    raw = read_voc_xml(root, "", 0, {"one_based": True})
    assert raw.label_names == ("cat", "dog")
    target = raw.splits["train"].targets[0]
    assert target.boxes.tolist() == [[10, 10, 20, 20], [0, 0, 64, 48]]
    assert target.labels.tolist() == [1, 0]
    assert target.crowd.tolist() == [False, True]  # difficult
    assert len(raw.splits["validation"]) == 1
    with pytest.raises(DataError, match=r"unknown class .*'cat'"):
        read_voc_xml(root, "", 0, {"label_names": ["dog", "bird"]})
    (root / "ImageSets/Main/test.txt").write_text("77\n")
    with pytest.raises(DataError, match="names '77' for test"):
        read_voc_xml(root, "", 0, {})
    (root / "Annotations" / "0.xml").write_text("<annotation>")
    (root / "ImageSets/Main/test.txt").unlink()
    with pytest.raises(DataError, match=r"0\.xml is not XML"):
        read_voc_xml(root, "", 0, {})


def test_csv(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (64, 48)).save(tmp_path / f"{i}.png")
    rows = ["image_path,xmin,ymin,xmax,ymax,label", *[f"{i}.png,1,2,11,12,tree" for i in range(3)], "3.png,,,,,"]
    table = tmp_path / "boxes.csv"
    table.write_text("\n".join(rows))
    raw = read_detection_csv(table, "", 0, {})
    assert sum(len(s) for s in raw.splits.values()) == 4
    assert sum(s.num_objects for s in raw.splits.values()) == 3  # type: ignore[attr-defined]
    many = [f"0.png,1,2,11,12,tree #{i}".split(" #")[0] for i in range(100)]
    table.write_text(
        "\n".join([*rows, *many, "1.png,a,b,c,d,tree", "9.png,1,2,3,4,tree", ",1,2,3,4,tree", "0.png,1,1,9,9,"])
    )
    raw = read_detection_csv(table, "", 0, {})
    assert [s.reason.split(" ")[0] for s in raw.skipped] == [f"{tmp_path / '9.png'}:", "coordinates", "no", "no"]
    table.write_text("file,xmin,ymin,xmax,ymax,label\n0.png,1,2,3,4,a\n")
    with pytest.raises(DataError, match=r"unknown column 'image_path'.*the header has file"):
        read_detection_csv(table, "", 0, {})
    table.write_text("\n".join(["file,xmin,ymin,xmax,ymax,label", *[f"{i}.png,1,2,3,4,a" for i in range(4)]]))
    assert read_detection_csv(table, "", 0, {"columns": {"image_path": "file"}}).label_names == ("a",)


def test_checks_of_splits() -> None:
    def split(label: int) -> DetectionSplit:
        target = Target(np.array([[0.0, 0, 1, 1]]), np.array([label]), np.ones(1), np.zeros(1, bool))
        return DetectionSplit(["a"], [None], [target])

    check_splits("x", {"train": split(1)}, ("cat", "dog"))
    with pytest.raises(DataError, match="image a: label 2, but 2 classes"):
        check_splits("x", {"train": split(2)}, ("cat", "dog"))
    with pytest.raises(DataError, match="no image has an annotated object"):
        check_splits("x", {"train": DetectionSplit(["a"], [None], [Target()])}, ("cat",))
    with pytest.raises(DataError, match="boxes \\(1, 4\\)"):
        Target(np.zeros((2, 4)), np.zeros(1, np.int64), np.zeros(1), np.zeros(1, bool))


def test_a_draw_is_seeded_and_keeps_the_order() -> None:
    many = DetectionSplit([str(i) for i in range(50)], list(range(50)), [Target()] * 50)
    drawn = draw(many, 10, 3)
    assert drawn.ids == draw(many, 10, 3).ids != draw(many, 10, 4).ids
    assert drawn.content == sorted(drawn.content)
    assert many[-1]["id"] == "49"
    assert len(many[10:20]) == 10
