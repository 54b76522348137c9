"""Anomaly sets: layouts, meta.json, folders of one's own, COCO-AD, the textures, and what cannot be read."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from hybridzoo.data import load_data
from hybridzoo.data.anomaly import meta, textures
from hybridzoo.data.anomaly.defects import DEFECTS
from hybridzoo.errors import DataError


def picture(path, seed=0, size=(12, 10), mode="RGB", mask=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    array = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    if mask:
        array = np.zeros((size[1], size[0]), np.uint8)
        array[2:5, 3:7] = 255
    Image.fromarray(array).convert(mode if not mask else "L").save(path)


def mvtec(root, classes=("bolt", "cloth"), good="good", bad=("hole", "cut"), masks=True):
    for c in classes:
        for i in range(4):
            picture(root / c / "train" / good / f"{i:03d}.png", i)
        for i in range(2):
            picture(root / c / "test" / good / f"{i:03d}.png", 10 + i)
        for kind in bad:
            for i in range(2):
                picture(root / c / "test" / kind / f"{i:03d}.png", 20 + i)
                if masks:
                    picture(root / c / "ground_truth" / kind / f"{i:03d}_mask.png", mask=True)
    return root


def facts(split):
    return {(e.cls_name, e.specie_name, e.anomaly) for e in split.entries}


@pytest.mark.parametrize("name", ["mvtec_ad", "mpdd", "uni_medical", "texture_ad", "anomaly_folder"])
def test_mvtec_layout(name, tmp_path):
    data = load_data(name, root=mvtec(tmp_path))
    assert data.info.task == "anomaly-detection"
    assert data.info.label_names == ("normal", "anomalous")
    assert data.info.sizes == {"train": 8, "test": 12}
    assert facts(data["train"]) == {("bolt", "good", 0), ("cloth", "good", 0)}
    assert ("cloth", "hole", 1) in facts(data["test"])
    sample = data["test"][data["test"].ids.index("bolt/test/hole/001.png")]
    assert sample["label"] == 1
    assert sample["image"].size == (12, 10)
    assert sample["mask"].shape == (10, 12)
    assert sample["mask"].sum() == 12
    assert not data["test"][data["test"].ids.index("bolt/test/good/001.png")]["mask"].any()
    assert load_data(name, root=tmp_path).info.sha256 == data.info.sha256
    if name != "anomaly_folder":
        only = load_data(name, root=tmp_path, classes=["cloth"])
        assert only["train"].class_names == ["cloth"]
        assert only.info.track == "subset"


def test_a_set_to_test_on_needs_no_train_folder(tmp_path):
    import shutil

    mvtec(tmp_path, ("bolt",))
    shutil.rmtree(tmp_path / "bolt" / "train")
    assert load_data("texture_ad", root=tmp_path).info.sizes == {"test": 6}


def test_btad_calls_the_normal_folder_ok(tmp_path):
    data = load_data("btad", root=mvtec(tmp_path, ("01",), "ok", ("ko",)))
    assert facts(data["test"]) == {("01", "good", 0), ("01", "ko", 1)}


def test_masks_pair_by_name_before_order(tmp_path):
    mvtec(tmp_path, ("bolt",), bad=("hole",))
    truth = tmp_path / "bolt" / "ground_truth" / "hole"
    data = load_data("mvtec_ad", root=tmp_path)
    paired = {e.img_path[-7:]: e.mask_path[-12:] for e in data["test"].entries if e.anomaly}
    assert paired == {"000.png": "000_mask.png", "001.png": "001_mask.png"}
    (truth / "000_mask.png").rename(truth / "a.png")
    (truth / "001_mask.png").rename(truth / "b.png")
    data = load_data("mvtec_ad", root=tmp_path)
    assert [e.mask_path[-5:] for e in data["test"].entries if e.anomaly] == ["a.png", "b.png"]
    (truth / "b.png").unlink()
    with pytest.raises(DataError, match="2 anomalous images, 1 masks"):
        load_data("mvtec_ad", root=tmp_path)


def test_mvtec_3d_adds_validation_to_train(tmp_path):
    for split, count in (("train", 3), ("validation", 2)):
        for i in range(count):
            picture(tmp_path / "tire" / split / "good" / "rgb" / f"{i}.png", i)
    picture(tmp_path / "tire" / "test" / "good" / "rgb" / "0.png")
    picture(tmp_path / "tire" / "test" / "cut" / "rgb" / "0.png")
    picture(tmp_path / "tire" / "test" / "cut" / "gt" / "0.png", mask=True)
    data = load_data("mvtec_3d", root=tmp_path)
    assert data.info.sizes == {"train": 5, "test": 2}
    assert data["test"].has_masks


def test_visa_reads_its_table(tmp_path):
    rows = [
        ("candle", "train", "normal", "candle/Data/Images/Normal/0.JPG", ""),
        ("candle", "test", "normal", "candle/Data/Images/Normal/1.JPG", ""),
        ("candle", "test", "anomaly", "candle/Data/Images/Anomaly/0.JPG", "candle/Data/Masks/Anomaly/0.png"),
    ]
    (tmp_path / "split_csv").mkdir()
    with open(tmp_path / "split_csv" / "1cls.csv", "w", newline="") as file:
        csv.writer(file).writerows([("object", "split", "label", "image", "mask"), *rows])
    for *_, image, mask in rows:
        picture(tmp_path / image)
        if mask:
            picture(tmp_path / mask, mask=True)
    data = load_data("visa", root=tmp_path)
    assert [e.anomaly for e in data["test"].entries] == [0, 1]
    assert data["test"][1]["mask"].any()


def test_real_iad_reads_its_lists(tmp_path):
    rows = {
        "train": [{"anomaly_class": "OK", "image_path": "OK/S1/a_C1_1.jpg", "mask_path": None}],
        "test": [
            {"anomaly_class": "OK", "image_path": "OK/S2/a_C1_2.jpg", "mask_path": None},
            {"anomaly_class": "AK", "image_path": "NG/a_C2_3.jpg", "mask_path": "NG/a_C2_3.png"},
        ],
        "meta": {"normal_class": "OK"},
    }
    (tmp_path / "audiojack.json").write_text(json.dumps(rows))
    for row in (*rows["train"], *rows["test"]):
        picture(tmp_path / "audiojack" / row["image_path"])
    picture(tmp_path / "audiojack" / "NG/a_C2_3.png", mask=True)
    data = load_data("real_iad", root=tmp_path)
    assert facts(data["test"]) == {("audiojack", "good", 0), ("audiojack", "AK", 1)}
    with pytest.raises(DataError, match="no class brick"):
        load_data("real_iad", root=tmp_path, classes=["brick"])


def test_coco_ad_draws_its_masks(tmp_path):
    categories = [{"id": 3 * i + 1, "name": f"c{i}"} for i in range(80)]
    square = [[2.0, 2.0, 8.0, 2.0, 8.0, 6.0, 2.0, 6.0]]
    runs = {"counts": [0, 10, 110], "size": [10, 12]}  # the first column
    (tmp_path / "annotations").mkdir()
    for part, shapes in (
        ("train2017", [(25, square), (1, square)]),
        ("val2017", [(25, square), (28, runs), (1, square)]),
    ):
        images = [{"id": i, "file_name": f"{i}.jpg", "width": 12, "height": 10} for i in range(4)]
        annotations = [
            {"image_id": i, "category_id": 3 * c + 1, "segmentation": shape} for i, (c, shape) in enumerate(shapes)
        ]
        for image in images:
            picture(tmp_path / part / image["file_name"])
        listing = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps(listing))
    data = load_data("coco_ad", root=tmp_path, split=1)  # categories 20 to 39 are anomalous
    assert data["train"].ids == ["train2017/1.jpg"]  # image 0 holds one, 2 and 3 are not annotated
    assert [e.anomaly for e in data["test"].entries] == [1, 1, 0]
    assert 20 <= data["test"][0]["mask"].sum() <= 35
    column = data["test"][1]["mask"]
    assert column[:, 0].all()
    assert column.sum() == 10
    meta.main(["coco", str(tmp_path), "--split", "1"])
    again = load_data("coco_ad", root=tmp_path, split=1)
    assert again.info.revision == "by meta_20_1.json"
    assert again["test"].entries == data["test"].entries
    with pytest.raises(DataError, match="splits 0 to 3"):
        load_data("coco_ad", root=tmp_path, split=4)


def test_meta_json_is_aders(tmp_path, capsys):
    mvtec(tmp_path)
    by_layout = load_data("mvtec_ad", root=tmp_path)
    meta.main(["mvtec", str(tmp_path)])
    assert "8 train and 12 test images of 2 classes" in capsys.readouterr().out
    text = (tmp_path / "meta.json").read_text()
    row = json.loads(text)["test"]["bolt"][0]
    assert list(row) == ["img_path", "mask_path", "cls_name", "specie_name", "anomaly"]
    assert text.startswith('{\n    "train": {\n        "bolt"')
    by_meta = load_data("mvtec_ad", root=tmp_path)
    assert by_meta.info.revision == "by meta.json"
    assert by_meta["test"].entries == by_layout["test"].entries
    (tmp_path / "meta.json").write_text('{"train": [1]}')
    with pytest.raises(DataError, match=r"no meta\.json"):
        load_data("mvtec_ad", root=tmp_path)


@pytest.mark.parametrize("masks", [True, False])
def test_own_images(masks, tmp_path):
    for i in range(10):
        picture(tmp_path / "normal" / f"{i}.jpg", i)
    for i in range(3):
        picture(tmp_path / "abnormal" / "dents" / f"x{i}.jpg", i)
        if masks:
            picture(tmp_path / "masks" / "dents" / f"x{i}.png", mask=True)
    data = load_data("anomaly_folder", root=tmp_path)
    assert data.info.protocol == "80/20"
    assert data.info.sizes == {"train": 8, "test": 5}
    assert {e.specie_name for e in data["test"].entries} == {"good", "dents"}
    assert data["test"].has_masks is masks
    assert (data["test"][4]["mask"] is not None) is masks
    held = load_data("anomaly_folder", root=tmp_path, validation=0.25)
    assert held.info.sizes == {"train": 6, "validation": 2, "test": 5}
    assert load_data("anomaly_folder", root=tmp_path, seed=1)["train"].ids != data["train"].ids


def test_own_images_that_are_all_normal(tmp_path):
    for i in range(4):
        picture(tmp_path / f"{i}.png", i)
    data = load_data("anomaly_folder", root=tmp_path)
    assert data.info.sizes == {"train": 4}


def test_own_images_with_train_and_test(tmp_path):
    product = mvtec(tmp_path, ("bolt",)) / "bolt"
    data = load_data("anomaly_folder", root=product)
    assert data.info.sizes == {"train": 4, "test": 6}
    assert data["test"][5]["mask"] is not None


def test_limit_draws_from_every_class(tmp_path):
    data = load_data("mvtec_ad", root=mvtec(tmp_path), limit=4)
    assert {(e.cls_name, e.anomaly) for e in data["test"].entries} == {
        (c, a) for c in ("bolt", "cloth") for a in (0, 1)
    }


def break_mask_size(root):
    picture(root / "bolt" / "ground_truth" / "hole" / "000_mask.png", size=(5, 5), mask=True)


def break_image(root):
    (root / "bolt" / "test" / "hole" / "000.png").write_bytes(b"not an image")


@pytest.mark.parametrize(
    ("damage", "match"), [(break_mask_size, "5 x 5 pixels, its image"), (break_image, "not an image")]
)
def test_a_broken_sample_is_named(damage, match, tmp_path):
    mvtec(tmp_path)
    damage(tmp_path)
    test = load_data("mvtec_ad", root=tmp_path)["test"]
    with pytest.raises(DataError, match=match) as caught:
        test[test.ids.index("bolt/test/hole/000.png")]
    assert "hole/000" in str(caught.value)


def test_sets_that_cannot_be(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, match in (
        ("mvtec_ad", "no class folders"),
        ("anomaly_folder", "holds no image"),
        ("visa", "no split_csv"),
        ("real_iad", r"no <class>\.json"),
        ("coco_ad", "is missing"),
    ):
        with pytest.raises(DataError, match=match):
            load_data(name, root=tmp_path / "empty")
    mvtec(tmp_path / "a", ("bolt",))
    with pytest.raises(DataError, match="no class nut"):
        load_data("mvtec_ad", root=tmp_path / "a", classes=["nut"])
    with pytest.raises(DataError, match="validation=2"):
        load_data("mvtec_ad", root=tmp_path / "a", validation=2)
    for path in (tmp_path / "a" / "bolt" / "train" / "good").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="is empty"):
        load_data("mvtec_ad", root=tmp_path / "a")
    (tmp_path / "b" / "abnormal").mkdir(parents=True)
    with pytest.raises(DataError, match="no folder of normal images"):
        load_data("anomaly_folder", root=tmp_path / "b")


def test_textures_are_the_same_every_time():
    data = load_data("texture_ad_mini")
    assert data.info.sizes == {"train": 288, "validation": 48, "test": 276}
    assert data["train"].class_names == ["brick", "grass", "gravel"]
    assert not data.info.duplicates
    assert {e.specie_name for e in data["test"].entries} == {"good", *DEFECTS}
    for entry, digest in (("brick/train/good/000.png", 115), ("gravel/test/hole/003.png", 100)):
        split = data["train" if "train" in entry else "test"]
        image = np.asarray(split[split.ids.index(entry)]["image"])
        assert image.shape == (128, 128)
        assert image.dtype == np.uint8
        assert abs(image.mean() - digest) < 40
    again = load_data("texture_ad_mini")
    assert again["test"].digests() == data["test"].digests()
    for i, entry in enumerate(data["test"].entries):
        if entry.anomaly:
            share = data["test"][i]["mask"].mean()
            assert 0.0005 < share < 0.2, entry.img_path


def test_builder_writes_mvtecs_layout(tmp_path):
    random = np.random.default_rng(0)
    made = {n: random.integers(0, 255, (512, 512, c), dtype=np.uint8) for n, c in (("a", 1), ("b", 3))}
    sizes = textures.Sizes(side=64, train=2, validation=1, good=1, defects=1)
    count = textures.write_samples(textures.make_samples(made, sizes), tmp_path)
    assert count == 2 * (2 + 1 + 1 + len(DEFECTS))
    data = load_data("texture_ad", root=tmp_path)
    assert data.info.sizes == {"train": 4, "test": 2 * (1 + len(DEFECTS))}
    assert data["test"].has_masks
    with pytest.raises(DataError, match="no such file"):
        textures.load_textures(tmp_path, textures.CC0)


def test_the_builder_says_what_is_missing_and_overwrites_nothing(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        textures.main([str(tmp_path), str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        textures.main([str(tmp_path), str(tmp_path / "full")])


def test_drawn_damage_is_found_and_turns_with_its_picture(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    good = random.integers(60, 200, (512, 512, 3), dtype=np.uint8)
    truth = np.zeros((512, 512), bool)
    truth[200:300, 300:420] = True
    alpha = np.where(truth, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([good, alpha])).save(tmp_path / "hole.png")
    brighter = np.where(truth[..., None], np.minimum(good.astype(int) + 40, 255), good).astype(np.uint8)
    Image.fromarray(brighter).save(tmp_path / "spot.png")
    array, where = textures.damage_of(Image.open(tmp_path / "hole.png"), good, True)
    assert np.array_equal(where, truth)
    assert (array[truth] == textures.HOLE).all()
    assert np.array_equal(array[~truth], good[~truth])
    _, where = textures.damage_of(Image.open(tmp_path / "spot.png"), good, False)
    assert (where ^ truth).mean() < 0.01

    monkeypatch.setattr(textures, "DAMAGED", (("a", "hole.png", True), ("a", "spot.png", False)))
    sizes = textures.Sizes(side=96, train=0, validation=0, good=2, defects=3)
    samples = list(textures.damaged_samples(tmp_path, {"a": good}, sizes))
    assert [s.specie for s in samples] == ["good"] * 2 + ["hole"] * 3 + ["spot"] * 3
    for sample in samples[2:5]:  # all of the hole, and nothing else, is dark
        dark = sample.image.max(2) < 40
        assert sample.mask is not None
        assert (dark ^ sample.mask).mean() < 0.02
        assert sample.mask.mean() > textures.LEAST_DAMAGE
    textures.write_samples(iter(samples), tmp_path / "out" / "real_damage")
    data = load_data("texture_ad_damage", root=tmp_path / "out")
    assert data.info.sizes == {"test": 8}
    assert sum(data["test"].labels) == 6
