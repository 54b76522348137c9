"""Average precision against the official scorers' numbers (fixtures: make_fixtures.py), and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybridzoo.data.detection import Target
from hybridzoo.data.detection.coco import read_coco
from hybridzoo.errors import ConfigError, InputError
from hybridzoo.eval.metrics.detection import bootstrap_ap, score_detections
from hybridzoo.eval.metrics.detection_matching import Detections, match

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "detection"
COCO_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_1", "ar_10", "ar_100")
COCO_NAMES += ("ar_small", "ar_medium", "ar_large")
LVIS_NAMES = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large"}
LVIS_NAMES |= {"APr": "ap_rare", "APc": "ap_common", "APf": "ap_frequent"}


def load(name: str, tmp_path: Path) -> tuple[Any, list[Detections], dict[str, Any]]:
    """A fixture, read by the package's own reader; detections by image."""
    content = json.loads((FIXTURES / f"{name}.json").read_text())
    (tmp_path / "truth.json").write_text(json.dumps(content["annotations"]))
    read = read_coco(tmp_path / "truth.json", tmp_path, outside="keep", verify="none")
    label_of = {key: i for i, key in enumerate(read.split.category_ids or ())}
    found = []
    for image in read.split.ids:
        rows = [r for r in content["results"] if r["image_id"] == int(image)]
        boxes = np.array([r["bbox"] for r in rows], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores = np.array([r["score"] for r in rows], np.float64)
        found.append(Detections(boxes, scores, np.array([label_of[r["category_id"]] for r in rows], np.int64)))
    return read, found, content["expected"]


def numbers(value: dict[str, float], names: Any) -> list[float]:
    return [-1.0 if np.isnan(value[n]) else value[n] for n in names]


@pytest.mark.parametrize("name", ["coco_float", "coco_ties"])
def test_coco_numbers_are_pycocotools(name: str, tmp_path: Path) -> None:
    read, found, expected = load(name, tmp_path)
    scores = score_detections(read.split.targets, found, len(read.label_names))
    np.testing.assert_allclose(numbers(dict(scores.values), COCO_NAMES), expected["stats"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(scores.precision.sum(2), expected["precision_sum"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(scores.recall, expected["recall"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("limit", [20, 300])
def test_lvis_numbers_are_the_lvis_scorers(limit: int, tmp_path: Path) -> None:
    read, found, expected = load("lvis", tmp_path)
    scores = score_detections(
        read.split.targets, found, 9, style="lvis", max_detections=(limit,), frequency=read.frequency
    )
    results = expected[str(limit)]["results"]
    assert numbers(dict(scores.values), LVIS_NAMES.values()) == pytest.approx(
        [results[k] for k in LVIS_NAMES], abs=1e-12
    )
    assert scores.values[f"ar_{limit}"] == pytest.approx(results[f"AR@{limit}"], abs=1e-12)
    np.testing.assert_allclose(scores.precision.sum(2), expected[str(limit)]["precision_sum"], rtol=0, atol=1e-10)


def target(*boxes: Any, labels: Any = None, crowd: Any = None) -> Target:
    array = np.array(boxes, np.float64).reshape(-1, 4)
    return Target(
        boxes=array,
        labels=np.zeros(len(array), np.int64) if labels is None else np.array(labels),
        area=(array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1]),
        crowd=np.zeros(len(array), bool) if crowd is None else np.array(crowd, bool),
    )


def detections(*rows: tuple[Any, float, int]) -> Detections:
    return Detections(
        np.array([r[0] for r in rows], np.float64).reshape(-1, 4),
        np.array([r[1] for r in rows], np.float64),
        np.array([r[2] for r in rows], np.int64),
    )


BOX, NEAR, FAR = (0, 0, 10, 10), (0, 0, 10, 8), (50, 50, 60, 60)


def test_by_hand_one_right_one_wrong() -> None:
    # IoU of NEAR and BOX is 0.8: right at 0.50 to 0.80, wrong above. The wrong FAR ranks below it.
    scores = score_detections([target(BOX)], [detections((NEAR, 0.9, 0), (FAR, 0.8, 0))], 1)
    assert scores.values["ap50"] == pytest.approx(1.0)
    assert scores.values["ap"] == pytest.approx(0.7)
    assert scores.values["ar_1"] == pytest.approx(0.7)
    assert np.isnan(scores.values["ap_large"])


def test_perfect_and_empty() -> None:
    truth = [target(BOX, FAR, labels=[0, 1]), target()]
    right = [detections((BOX, 0.4, 0), (FAR, 0.3, 1)), detections()]
    assert score_detections(truth, right, 2).values["ap"] == pytest.approx(1.0)
    nothing = [detections(), detections()]
    assert score_detections(truth, nothing, 2).values["ap"] == 0.0
    assert np.isnan(score_detections([target()], [detections((BOX, 0.5, 0))], 1).values["ap"])


def test_a_second_detection_of_one_object_is_wrong_but_in_a_crowd_it_is_ignored() -> None:
    twice = [detections((BOX, 0.9, 0), (BOX, 0.8, 0))]
    states = match([target(BOX)], twice, 1).state[0, 0].tolist()
    assert states == [1, 0]
    states = match([target(BOX, FAR, crowd=[True, False])], twice, 1).state[0, 0].tolist()
    assert states == [2, 2]


def test_the_limit_is_per_class_and_image_in_coco_and_per_image_in_lvis() -> None:
    truth = [target(BOX, FAR, labels=[0, 1])]
    found = [detections((BOX, 0.9, 0), (FAR, 0.8, 1))]
    assert score_detections(truth, found, 2, max_detections=(1,)).values["ap"] == pytest.approx(1.0)
    assert score_detections(truth, found, 2, style="lvis", max_detections=(1,)).values["ap"] == pytest.approx(0.5)


def test_order_of_images_and_chunks_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridzoo.eval.metrics import detection_matching

    read, found, _ = load("coco_float", tmp_path)
    rng = np.random.default_rng(0)
    found = [Detections(d.boxes, rng.random(len(d.scores)), d.labels) for d in found]  # without ties
    before = score_detections(read.split.targets, found, 5).values
    order = rng.permutation(len(found))
    monkeypatch.setattr(detection_matching, "_CELLS", 500)  # blocks of a few groups
    after = score_detections([read.split.targets[i] for i in order], [found[i] for i in order], 5).values
    assert after == pytest.approx(before, abs=1e-12, nan_ok=True)


def test_bootstrap_is_seeded_and_of_the_right_size(tmp_path: Path) -> None:
    read, found, _ = load("coco_float", tmp_path)
    scores = score_detections(read.split.targets, found, 5)
    errors = bootstrap_ap(scores, seed=1, resamples=40)
    assert errors == bootstrap_ap(scores, seed=1, resamples=40) != bootstrap_ap(scores, seed=2, resamples=40)
    # One resample by hand: repeating images in a list gives the same as weighing them.
    from hybridzoo.eval.metrics.detection import _curves, _mean

    drawn = np.random.default_rng(5).integers(0, len(found), len(found))
    weights = np.bincount(drawn, minlength=len(found)).astype(float)
    weighed = _mean(_curves(scores.matched, 5, weights, areas=1)[0][0])
    listed = score_detections([read.split.targets[i] for i in np.sort(drawn)], [found[i] for i in np.sort(drawn)], 5)
    assert weighed == pytest.approx(listed.values["ap"], abs=2e-3)  # ties across repeated images may order otherwise
    assert 0.001 < errors["ap"] < 0.1


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: score_detections([target(BOX)], [], 1), InputError, "1 images have a ground truth, but 0"),
        (lambda: score_detections([target(BOX, labels=[3])], [detections()], 2), InputError, "label 3.*0 to 1"),
        (lambda: score_detections([target(BOX)], [detections((BOX, 0.5, -1))], 2), InputError, "label -1"),
        (lambda: detections((BOX, float("nan"), 0)), InputError, "NaN"),
        (lambda: score_detections([target(BOX)], [detections()], 1, style="voc"), ConfigError, "voc"),
        (lambda: score_detections([target(BOX)], [detections()], 1, max_detections=(10, 1)), ConfigError, "increasing"),
    ],
    ids=["lengths", "truth-label", "found-label", "nan", "style", "limits"],
)
def test_bad_calls(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
