"""Augmentation: boxes follow the pixels, whatever is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hybridzoo.data.detection import Target
from hybridzoo.data.detection.processing import DetectionImageProcessor
from hybridzoo.data.detection.transforms import (
    DetectionAugment,
    TrainTransform,
    copy_paste,
    crop,
    flip,
    labels_of,
    rotate90,
    sanitised,
    scene_of,
)
from hybridzoo.errors import ConfigError

BOXES = np.array([[10.0, 5, 30, 25], [40, 30, 60, 44]])
COLOURS = ((255, 0, 0), (0, 0, 255))


def sample(crowd: bool = False) -> dict[str, Any]:
    """Black, with a red rectangle of class 0 and a blue one of class 1 exactly where the boxes are."""
    array = np.zeros((48, 64, 3), np.uint8)
    for (x1, y1, x2, y2), colour in zip(BOXES.astype(int), COLOURS):
        array[y1:y2, x1:x2] = colour
    target = Target(BOXES.copy(), np.array([0, 1]), np.array([400.0, 280]), np.array([False, crowd]))
    return {"id": "a", "image": Image.fromarray(array), "target": target}


def extents(scene: Any) -> dict[int, list[float]]:
    """Box of each class as the colours show it; of classes that cannot be seen, nothing."""
    found = {}
    for label, channel in ((0, 0), (1, 2)):
        rows, columns = (scene.pixels[channel] > 127).nonzero(as_tuple=True)
        if len(rows):
            found[label] = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    return found


def assert_follows(scene: Any, tolerance: float = 0.0) -> None:
    seen = extents(scene)
    told = dict(zip(scene.labels.tolist(), scene.boxes.tolist()))
    for label, box in told.items():
        np.testing.assert_allclose(box, seen[label], atol=tolerance)
    for label, box in seen.items():  # what is seen is told, slivers aside
        assert label in told or min(box[2] - box[0], box[3] - box[1]) <= 1 + tolerance


@pytest.mark.parametrize("horizontal", [True, False])
def test_flips(horizontal: bool) -> None:
    scene = flip(scene_of(sample()), horizontal=horizontal)
    assert_follows(scene)
    torch.testing.assert_close(flip(scene, horizontal=horizontal).boxes, scene_of(sample()).boxes)


def test_quarter_turns() -> None:
    scene = scene_of(sample(), masks=True)
    for _ in range(4):
        scene = rotate90(scene)
        assert_follows(scene)
        assert scene.masks is not None
        assert (scene.masks[0] == (scene.pixels[0] > 127)).all()
    torch.testing.assert_close(scene.boxes, scene_of(sample()).boxes)


def test_a_crop_clips_and_drops() -> None:
    scene = crop(scene_of(sample()), 0, 20, 28, 30)
    assert scene.pixels.shape == (3, 28, 30)
    assert scene.boxes.tolist() == [[0, 5, 10, 25]]
    assert scene.labels.tolist() == [0]


def test_crowd_regions_are_not_trained_on() -> None:
    assert scene_of(sample(crowd=True)).labels.tolist() == [0]


@pytest.mark.parametrize(
    "options",
    [
        {"hflip": 0.5, "vflip": 0.5, "rot90": True},
        {"multi_scale": [30, 40, 50, 96], "max_size": 120, "hflip": 0.5},
        {"detr_crop": True, "multi_scale": [60, 80]},
        {"crop_scale": [0.2, 1.0]},
        {"lsj": [0.3, 2.0], "hflip": 0.5},
        {},
    ],
    ids=lambda o: "-".join(o) or "none",
)
def test_boxes_follow_the_pixels(options: dict[str, Any]) -> None:
    lsj = "lsj" in options
    processor = DetectionImageProcessor(shortest_edge=96, longest_edge=160, pad_size=96 if lsj else None)
    transform = TrainTransform(processor, DetectionAugment.from_options(options))
    shapes = set()
    for _ in range(25):
        scene = transform(sample())
        shapes.add(tuple(scene.pixels.shape))
        height, width = scene.pixels.shape[1:]
        assert (scene.boxes >= 0).all()
        assert (scene.boxes <= torch.tensor([width, height, width, height])).all()
        assert_follows(scene, tolerance=0.51 + 0.5 * max(height / 48, width / 64))  # interpolated edges
    assert len(shapes) > 1 or not options or "hflip" in options


def test_copy_paste_adds_objects_and_drops_hidden_ones() -> None:
    scene = scene_of(sample())
    other = sample()
    other["target"] = Target(np.array([[8.0, 4, 32, 26]]), np.array([1]), np.ones(1), np.zeros(1, bool))
    pasted = copy_paste(scene, scene_of(other, masks=True))
    assert pasted.labels.tolist() == [1, 1]  # the red object is hidden under the pasted one
    assert pasted.boxes.tolist() == [[40, 30, 60, 44], [8, 4, 32, 26]]
    far = flip(scene_of(sample(), masks=True), horizontal=True)
    far = far.keep(torch.tensor([False, True]))
    pasted = copy_paste(scene, far)
    assert pasted.labels.tolist() == [0, 1, 1]
    assert (pasted.pixels[2, 30:44, 4:24] == 255).all()


def test_copy_paste_uses_outlines() -> None:
    other = sample()
    triangle = [np.array([0.0, 0, 20, 0, 0, 20])]
    other["target"] = Target(np.array([[0.0, 0, 20, 20]]), np.array([1]), np.ones(1), np.zeros(1, bool), [triangle])
    other["image"] = Image.new("RGB", (64, 48), (0, 255, 0))
    pasted = copy_paste(scene_of(sample()), scene_of(other, masks=True))
    assert pasted.pixels[1, 2, 2] == 255
    assert pasted.pixels[1, 18, 18] == 0


def test_copy_paste_within_a_recipe() -> None:
    processor = DetectionImageProcessor(pad_size=96)
    augment = DetectionAugment(lsj=(0.5, 1.0), copy_paste=1.0)
    scene = TrainTransform(processor, augment, other=sample)(sample())
    assert len(scene.labels) >= 2
    with pytest.raises(ConfigError, match="data set to take objects from"):
        TrainTransform(processor, augment)


def test_images_without_objects() -> None:
    empty = {**sample(), "target": Target()}
    augment = DetectionAugment(hflip=1.0, crop_scale=(0.3, 0.9), detr_crop=True, multi_scale=(40,), photometric=0.4)
    scene = TrainTransform(DetectionImageProcessor(shortest_edge=40, longest_edge=64), augment)(empty)
    assert labels_of(scene)["boxes"].shape == (0, 4)
    assert copy_paste(scene_of(empty), scene_of(empty, masks=True)).labels.shape == (0,)


def test_one_pixel_image_and_slivers() -> None:
    one = {
        "image": Image.new("RGB", (1, 1)),
        "target": Target(np.array([[0.0, 0, 1, 1]]), np.zeros(1, np.int64), np.ones(1), np.zeros(1, bool)),
    }
    scene = TrainTransform(
        DetectionImageProcessor(shortest_edge=8, longest_edge=8), DetectionAugment(crop_scale=(0.1, 1))
    )(one)
    assert scene.boxes.tolist() == [[0, 0, 8, 8]]
    thin = scene_of(sample())
    thin.boxes[0] = torch.tensor([10, 5, 10.5, 25])
    assert sanitised(thin).labels.tolist() == [1]


def test_photometric_changes_colours_only() -> None:
    torch.manual_seed(3)
    transform = TrainTransform(
        DetectionImageProcessor(shortest_edge=48, longest_edge=64), DetectionAugment(photometric=0.9)
    )
    scene = transform(sample())
    torch.testing.assert_close(scene.boxes, torch.tensor(BOXES, dtype=torch.float32))
    assert (scene.pixels != scene_of(sample()).pixels).any()


def test_draws_come_from_the_global_generator() -> None:
    processor = DetectionImageProcessor(shortest_edge=96, longest_edge=160)
    transform = TrainTransform(processor, DetectionAugment(hflip=0.5, crop_scale=(0.2, 1), multi_scale=(50, 60, 70)))

    def made(seed: int) -> list[Any]:
        torch.manual_seed(seed)
        return [transform(sample()).pixels for _ in range(4)]

    assert all(torch.equal(a, b) for a, b in zip(made(1), made(1)))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(made(1), made(2)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hfilp": 0.5}, "unknown augmentation of detection 'hfilp'; did you mean 'hflip'"),
        ({"hflip": 2.0}, "hflip=2.0"),
        ({"crop_scale": [0.5, 0.1]}, "low <= high"),
        ({"multi_scale": [0]}, "at least 1 pixel"),
        ({"lsj": [0.1, 2.0], "detr_crop": True}, "keep one of them"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DetectionAugment.from_options(options)


def test_jitter_needs_a_square() -> None:
    with pytest.raises(ConfigError, match="pad_size"):
        TrainTransform(DetectionImageProcessor(), DetectionAugment(lsj=(0.1, 2.0)))
