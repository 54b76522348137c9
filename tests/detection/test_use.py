"""From images to boxes: the Detector, records and their scores, validation, pictures, `predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from hybridzoo.data.detection import DetectionSplit, Target
from hybridzoo.data.detection.images import RgbArrays
from hybridzoo.errors import ConfigError, DataError, InputError

from .tiny_detector import COLOURS, NAMES, ColourDetector

SIZES = ((64, 48), (40, 80), (100, 30))  # width, height
RECTANGLES = ({0: (10, 10, 30, 30), 2: (40, 20, 60, 44)}, {1: (4, 8, 20, 60)}, {})


def images() -> list[Any]:
    made = []
    for size, rectangles in zip(SIZES, RECTANGLES):
        image = Image.new("RGB", size)
        for k, (x1, y1, x2, y2) in rectangles.items():
            ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=COLOURS[k])
        made.append(image)
    return made


def split(swap: bool = False) -> DetectionSplit:
    """The images with what they show; `swap` names blue before red, as other data might."""
    index = {0: 2, 1: 1, 2: 0} if swap else {0: 0, 1: 1, 2: 2}
    targets = []
    for rectangles in RECTANGLES:
        boxes = np.array(list(rectangles.values()), np.float64).reshape(-1, 4)
        labels = np.array([index[k] for k in rectangles], np.int64)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        targets.append(Target(boxes, labels, area, np.zeros(len(boxes), bool)))
    return DetectionSplit(["10", "9", "x"], RgbArrays([np.asarray(i) for i in images()]), targets)


def detector(**options: Any) -> Any:
    from hybridzoo.inference.detection import Detector

    return Detector(ColourDetector(), device="cpu", **options)


def test_boxes_are_in_pixels_of_the_original_images_alone_and_in_padded_batches() -> None:
    alone = [detector()([image])[0] for image in images()]
    together = detector()(images(), batch_size=3)
    assert alone == together
    for objects, rectangles in zip(together, RECTANGLES):
        assert [o["label"] for o in objects] == [NAMES[k] for k in rectangles]
        for one, box in zip(objects, rectangles.values()):
            np.testing.assert_allclose(one["box"], box, atol=1.0)
            assert one["score"] > 0.7
    assert detector(threshold=0.9)(images())[0][0]["label"] == "red"
    assert len(detector(threshold=0.9)(images())[0]) == 1


def test_batches_order_and_workers() -> None:
    from hybridzoo.inference.detection import Detector

    model = ColourDetector()
    many = images() * 3
    found = Detector(model, device="cpu").detect(many, batch_size=2)
    assert len(model.calls) == 5
    assert [f["size"] for f in found[:3]] == [(48, 64), (80, 40), (30, 100)]
    again = detector().detect(many, batch_size=4, num_workers=1)
    for one, other in zip(found, again):
        for key in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(one[key], other[key])
    assert detector().detect([]) == []


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: detector()("photo.jpg"), InputError, "put a single one into a list"),
        (lambda: detector()(["missing.jpg"]), DataError, "missing.jpg: no such file"),
        (lambda: detector()([{"file": 1}]), InputError, "without 'image'"),
        (lambda: detector(threshold=3), ConfigError, "score from 0 to 1"),
        (lambda: detector(dtype="int8"), ConfigError, "int8"),
    ],
)
def test_bad_calls(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_a_classifier_is_no_detector() -> None:
    from hybridzoo.inference.detection import Detector

    class Other(ColourDetector):
        task = "image-classification"

    with pytest.raises(ConfigError, match="does image-classification"):
        Detector(Other(), device="cpu")


# Records and scores --------------------------------------------------------------------------------------------------


def test_records_score_the_same_after_they_were_written(tmp_path: Path) -> None:
    from hybridzoo.eval.detection import detect_split, score_records
    from hybridzoo.eval.tasks import COCO_METRICS

    rows = detect_split(detector(), split(), None, batch_size=2)
    assert [r["id"] for r in rows] == ["9", "10", "x"]  # numbers as numbers, as official scorers sort
    metrics, details = score_records(json.loads(json.dumps(rows)), ("red", "green", "blue"), COCO_METRICS, resamples=20)
    assert metrics["ap50"].value == pytest.approx(100)
    assert 70 < metrics["ap"].value <= 100
    assert metrics["ap_small"].value == pytest.approx(metrics["ap"].value)
    assert "ap_large" not in metrics  # there is no large object
    assert details["objects_by_size"] == {"small": 3, "medium": 0, "large": 0}
    assert details["per_class"]["red"]["objects"] == 1
    assert len(details["precision_recall"]["50"]) == 101


def test_classes_are_matched_by_name() -> None:
    from hybridzoo.eval.detection import detect_split, score_records
    from hybridzoo.eval.predictors import match_labels
    from hybridzoo.eval.tasks import COCO_METRICS

    names = ("blue", "green", "red")
    order = match_labels(detector().label_names, names, "tiny")
    rows = detect_split(detector(), split(swap=True), order, batch_size=3)
    assert score_records(rows, names, COCO_METRICS)[0]["ap50"].value == pytest.approx(100)


def test_crowds_and_lvis_lists_travel_with_the_records() -> None:
    from hybridzoo.eval.detection import read_record, record, score_records
    from hybridzoo.eval.tasks import LVIS_METRICS

    target = Target(
        np.array([[0.5, 0, 10, 10], [20, 20, 30, 30]]),
        np.array([0, 1]),
        np.array([95.0, 12.25]),
        np.array([False, True]),
        negative=frozenset({2}),
        not_exhaustive=frozenset({1}),
    )
    found = {"boxes": np.array([[0.5, 0, 10, 10]]), "scores": np.array([0.5]), "labels": np.array([0])}
    row = json.loads(json.dumps(record("a", (48, 64), target, found)))
    again, detections = read_record(row)
    for name in ("boxes", "labels", "area", "crowd", "negative", "not_exhaustive"):
        np.testing.assert_array_equal(getattr(again, name), getattr(target, name))
    assert detections.scores.tolist() == [0.5]
    metrics, _ = score_records([row], ("a", "b", "c"), LVIS_METRICS, frequency=("r", "c", "f"))
    assert metrics["ap_rare"].value == pytest.approx(100)
    assert "ap_frequent" not in metrics
    assert metrics["ar_300"].value == pytest.approx(100)  # the crowd region need not be found


def test_limits_follow_from_the_metrics() -> None:
    from hybridzoo.eval.detection import max_detections
    from hybridzoo.eval.tasks import COCO_METRICS, LVIS_1000_METRICS, LVIS_METRICS

    assert max_detections(COCO_METRICS) == (1, 10, 100)
    assert max_detections(LVIS_METRICS) == (300,)
    assert max_detections(LVIS_1000_METRICS) == (1000,)


def test_what_cannot_be_scored() -> None:
    from hybridzoo.eval.detection import record, score_records
    from hybridzoo.eval.schema import ResultError
    from hybridzoo.eval.tasks import COCO_METRICS

    empty = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, np.int64)}
    with pytest.raises(ResultError, match="no records"):
        score_records([], ("a",), COCO_METRICS)
    with pytest.raises(ResultError, match=r"no annotated object|no image has an annotated object"):
        score_records([record("a", (4, 4), Target(), empty)], ("a",), COCO_METRICS)
    broken = {"boxes": np.full((1, 4), np.nan), "scores": np.ones(1), "labels": np.zeros(1, np.int64)}
    with pytest.raises(ResultError, match="NaN or infinite"):
        record("a", (4, 4), Target(), broken)


# Training side -------------------------------------------------------------------------------------------------------


def test_validation_is_the_evaluation() -> None:
    from hybridzoo.eval.detection import detect_split, score_records
    from hybridzoo.eval.tasks import COCO_METRICS
    from hybridzoo.training.detection import eval_dataset, validate

    model = ColourDetector()
    values = validate(model, eval_dataset(split(), model.config), 2)
    metrics, _ = score_records(
        detect_split(detector(), split(), None, batch_size=3), list(NAMES.values()), COCO_METRICS
    )
    for name in ("ap", "ap50", "ap75"):
        assert 100 * values[name] == pytest.approx(metrics[name].value, abs=1.0)  # records round boxes
    assert values["loss"] == pytest.approx(1.0)  # 3 objects in 3 images


def test_training_batches_are_a_function_of_seed_and_key() -> None:
    from hybridzoo.training.detection import train_dataset
    from hybridzoo.training.sampling import Key

    config = ColourDetector().config
    augment = {"hflip": 0.5, "crop_scale": [0.3, 1.0], "multi_scale": [40, 64, 80]}
    one, two = (train_dataset(split(), config, augment, seed=3) for _ in range(2))
    state = torch.get_rng_state()
    keys = [Key(0, 0, 0), Key(0, 2, 0), Key(0, 1, 0)]
    batch = one.__getitems__(keys)
    assert torch.equal(torch.get_rng_state(), state)
    again = two.__getitems__(keys)
    assert torch.equal(batch["pixel_values"], again["pixel_values"])
    other = two.__getitems__([Key(1, 0, 0), Key(1, 2, 0), Key(1, 1, 0)])
    assert batch["pixel_values"].shape != other["pixel_values"].shape or not torch.equal(
        batch["pixel_values"], other["pixel_values"]
    )
    assert [len(one["class_labels"]) for one in batch["labels"]][1] == 0  # the image without objects trains, too
    with pytest.raises(ConfigError, match="did you mean 'hflip'"):
        train_dataset(split(), config, {"hflop": 1}, seed=0)


def test_images_of_rare_classes_are_repeated() -> None:
    from hybridzoo.training.detection import oversampled, train_dataset

    def one(*labels: int) -> Target:
        n = len(labels)
        return Target(np.tile([0.0, 0, 1, 1], (n, 1)), np.array(labels, np.int64), np.ones(n), np.zeros(n, bool))

    targets = [one(0), one(0), one(0, 1), one()] * 25  # class 0 in 75 %, class 1 in 25 % of 100 images
    whole = DetectionSplit([str(i) for i in range(100)], list(range(100)), targets)
    # share 0.5: class 1 asks for sqrt(0.5 / 0.25) = 1.41 repetitions, rounded up to 2.
    counts = np.bincount(oversampled(whole, 0.5), minlength=100)
    assert counts.reshape(25, 4).tolist() == [[1, 1, 2, 1]] * 25
    assert len(oversampled(whole, 0.1)) == 100
    assert len(train_dataset(whole, ColourDetector().config, {}, seed=0, oversample=0.5)) == 125


# Pictures ------------------------------------------------------------------------------------------------------------


def test_pictures_show_boxes_and_captions() -> None:
    from hybridzoo.inference.pictures import class_colour, draw_boxes

    image = Image.new("RGB", (200, 120), (255, 255, 255))
    picture = draw_boxes(image, np.array([[50.0, 40, 150, 100]]), ["cat 0.93"], [(200, 0, 0)])
    assert picture.size == image.size
    pixels = np.asarray(picture)
    assert (pixels[40, 120:149] == [200, 0, 0]).all()  # the upper edge
    assert (pixels[99, 51:149] == [200, 0, 0]).all()
    assert (pixels[60:95, 60:140] == 255).all()  # the inside is free
    caption = pixels[20:40, 50:90].reshape(-1, 3)
    assert (caption == [255, 255, 255]).all(1).any()  # light letters on the box's colour
    assert (np.asarray(image) == 255).all()  # the original is as it was
    assert len({class_colour(k) for k in range(80)}) == 80
    assert draw_boxes(Image.new("L", (1, 1)), np.zeros((0, 4)), [], []).size == (1, 1)


def test_error_pictures(tmp_path: Path) -> None:
    from hybridzoo.eval.metrics.detection_plots import image_errors, save_error_pictures, save_precision_recall

    target = split().targets[0]
    boxes = np.array([[10, 10, 30, 30], [11, 10, 30, 30], [0, 0, 5, 5]], np.float64)
    found = {"boxes": boxes, "scores": np.array([0.6, 0.9, 0.2]), "labels": np.array([0, 0, 0])}
    from hybridzoo.eval.detection import detect_split, record, score_records

    row = record("10", (48, 64), target, found)
    errors = image_errors(row)
    assert errors["shown"].tolist() == [1, 0]  # best first; the third is below the threshold
    assert errors["right"].tolist() == [True, False]  # the better one takes the object
    assert errors["missed"].tolist() == [False, True]
    written = save_error_pictures([row], split(), ("red", "green", "blue"), tmp_path / "errors")
    assert [p.name for p in written] == ["01-2-errors-10.png"]
    assert Image.open(written[0]).size == (64, 48)
    good = detect_split(detector(), split(), None, batch_size=3)
    assert save_error_pictures(good, split(), ("red", "green", "blue"), tmp_path / "none") == []
    _, details = score_records(good, ("red", "green", "blue"), ("ap", "ap50"))
    assert save_precision_recall(details, tmp_path / "curve.png", title="t")
    assert Image.open(tmp_path / "curve.png").size[0] > 500


# predict -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, image in zip(("000139.png", "000285.png", "empty.png"), images()):
        image.save(folder / name)
    return folder


def predict(*inputs: Path, **options: Any) -> None:
    from hybridzoo.cli._predict_detection import run

    run(ColourDetector(), [str(p) for p in inputs], device="cpu", **options)


def test_predict_formats(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "broken.png").write_bytes(b"nothing")
    predict(photos)
    shown = capsys.readouterr()
    assert "red" in shown.out
    assert "(nothing)" in shown.out
    assert "(unusable)" in shown.out
    assert "broken.png: is not an image" in shown.err or "broken.png" in shown.err
    predict(photos, format="jsonl", output=tmp_path / "boxes.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "boxes.jsonl").read_text().splitlines()]
    assert [len(r["objects"] or ()) for r in rows] == [2, 1, 0, 0]
    assert rows[2]["error"]
    assert rows[0]["size"] == [48, 64]
    predict(photos, format="csv", output=tmp_path / "boxes.csv")
    assert len((tmp_path / "boxes.csv").read_text().splitlines()) == 1 + 2 + 1 + 1


def test_predict_coco_results(photos: Path, tmp_path: Path) -> None:
    predict(
        photos / "000139.png", photos / "000285.png", format="coco", output=tmp_path / "results.json", threshold=0.5
    )
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(r["image_id"], r["category_id"]) for r in rows] == [(139, 1), (139, 3), (285, 2)]
    np.testing.assert_allclose(rows[0]["bbox"], [10, 10, 20, 20], atol=1)
    document = {
        "categories": [{"id": 90, "name": "blue"}, {"id": 7, "name": "red"}, {"id": 8, "name": "green"}],
        "images": [{"id": 5, "file_name": "a/000139.png"}],
        "annotations": [],
    }
    (tmp_path / "truth.json").write_text(json.dumps(document))
    options = {"format": "coco", "categories": tmp_path / "truth.json", "threshold": 0.5}
    predict(photos / "000139.png", output=tmp_path / "named.json", **options)
    rows = json.loads((tmp_path / "named.json").read_text())
    assert [(r["image_id"], r["category_id"]) for r in rows] == [(5, 7), (5, 90)]
    with pytest.raises(DataError, match=r"000285\.png is not among the images"):
        predict(photos / "000285.png", output=tmp_path / "x.json", **options)
    predict(photos / "000139.png", format="coco", output=tmp_path / "all.json")
    assert len(json.loads((tmp_path / "all.json").read_text())) == 9  # every score, as scorers want


def test_predict_pictures(photos: Path, tmp_path: Path) -> None:
    predict(photos / "000139.png", out=tmp_path / "boxes.png", output=tmp_path / "t.txt")
    before, after = (np.asarray(Image.open(p)) for p in (photos / "000139.png", tmp_path / "boxes.png"))
    assert before.shape == after.shape
    assert (before != after).any()
    predict(photos, out=tmp_path / "drawn", output=tmp_path / "t2.txt")
    assert len(list((tmp_path / "drawn").glob("*.boxes.png"))) == 3
    with pytest.raises(DataError, match="exists"):
        predict(photos / "000139.png", out=tmp_path / "boxes.png")
    with pytest.raises(DataError, match="one picture, but there are 3 images"):
        predict(photos, out=tmp_path / "one.png")


def test_predict_bad_input(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 1 images"):
        predict(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="unknown format 'jsn'"):
        predict(tmp_path / "a.png", format="jsn")
    with pytest.raises(DataError, match="no COCO annotation file"):
        predict(tmp_path / "a.png", format="coco", categories=tmp_path / "a.png")
