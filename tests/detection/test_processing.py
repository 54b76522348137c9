"""The image processor: sizes, values, masks, labels, and from outputs back to boxes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hybridzoo.data.detection import Target
from hybridzoo.data.detection.collate import DetectionCollator
from hybridzoo.data.detection.processing import DetectionImageProcessor, processor_for, resize_pixels, resized_size
from hybridzoo.errors import ConfigError, DataError, InputError


def photo(width: int, height: int, seed: int = 0) -> Any:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1067)),  # short side to 800: 640 * 800 / 480 = 1066.67
        (427, 640, (800, 1199)),
        (300, 1000, (400, 1333)),  # long side to 1333: 300 * 1.333 = 399.9
        (1, 1, (800, 800)),
        (1, 4000, (1, 1333)),  # a side never vanishes
        (800, 1333, (800, 1333)),
    ],
)
def test_sizes_are_mmcvs(height: int, width: int, expected: tuple[int, int]) -> None:
    assert resized_size(height, width, 800, 1333) == expected


def test_resizing_is_bilinear_without_antialiasing() -> None:
    pixels = torch.tensor([[[0, 100, 200, 255]]], dtype=torch.uint8).expand(3, 4, 4).contiguous()
    # Half the size: OpenCV samples between the two middle pixels of each pair.
    assert resize_pixels(pixels, (2, 2))[0, 0].tolist() == [50, 228]
    wide = torch.zeros((3, 1, 8), dtype=torch.uint8)
    wide[:, :, 1] = 255  # to 2 columns: the sample points 1.5 and 5.5 see half of column 1
    assert resize_pixels(wide, (1, 2))[0, 0].tolist() in ([127, 0], [128, 0])
    assert resize_pixels(wide, (1, 2), antialias=True)[0, 0, 0] < 80


def test_batch_is_normalised_then_padded_with_zeros() -> None:
    processor = DetectionImageProcessor(shortest_edge=20, longest_edge=40)
    images = [photo(40, 20), photo(20, 30, 1)]
    batch = processor(images=images, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 30, 40)
    assert batch["pixel_mask"].dtype == torch.int64
    assert batch["pixel_mask"][0].sum() == 40 * 20
    assert batch["pixel_mask"][1, :30, :20].all()
    assert batch["pixel_mask"][1].sum() == 600
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (np.asarray(images[0]) / 255 - mean) / std
    np.testing.assert_allclose(batch["pixel_values"][0, :, :20].permute(1, 2, 0), expected, atol=1e-5)
    assert (batch["pixel_values"][0, :, 20:] == 0).all()


def test_large_scale_jitter_pads_a_square_with_grey_before_normalising() -> None:
    processor = DetectionImageProcessor(pad_size=64)
    batch = processor(images=photo(100, 50), return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 64, 64)
    assert batch["pixel_mask"].sum() == 64 * 32
    grey = (114 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(batch["pixel_values"][0, :, 40, 0], grey, atol=1e-6)


def test_pad_divisor() -> None:
    processor = DetectionImageProcessor(shortest_edge=20, longest_edge=50, pad_divisor=32)
    assert processor(photo(40, 20))["pixel_values"].shape == (1, 3, 32, 64)


def test_labels_are_relative_to_the_unpadded_image() -> None:
    processor = DetectionImageProcessor(shortest_edge=20, longest_edge=40)
    note = {
        "image_id": 7,
        "annotations": [
            {"bbox": [10, 0, 20, 10], "category_id": 2, "area": 200, "iscrowd": 0},
            {"bbox": [0, 0, 9, 9], "category_id": 1, "iscrowd": 1},
            {"bbox": [5, 5, 0, 3], "category_id": 1},
        ],
    }
    batch = processor([photo(40, 20), photo(10, 10)], [note, {"image_id": 8, "annotations": []}])
    first, second = batch["labels"]
    assert first["class_labels"].tolist() == [2]
    assert first["boxes"].tolist() == [[0.5, 0.25, 0.5, 0.5]]
    assert first["orig_size"].tolist() == [20, 40]
    assert second["boxes"].shape == (0, 4)
    assert second["size"].tolist() == [20, 20]


def outputs(*rows: tuple[float, float, tuple[float, float, float, float]]) -> dict[str, torch.Tensor]:
    """Of one image; (probability of class 0, of class 1, box)."""
    probabilities = torch.tensor([[r[0], r[1]] for r in rows])[None]
    return {"logits": torch.logit(probabilities), "pred_boxes": torch.tensor([[r[2] for r in rows]])}


def test_post_processing_to_pixels_and_threshold() -> None:
    processor = DetectionImageProcessor()
    out = outputs((0.9, 0.6, (0.5, 0.5, 0.5, 1.0)), (0.2, 0.1, (0.9, 0.5, 0.4, 0.2)))
    (found,) = processor.post_process_object_detection(out, 0.15, [(20, 40)])
    assert found["labels"].tolist() == [0, 1, 0]  # a query may be of two classes
    np.testing.assert_allclose(found["scores"], [0.9, 0.6, 0.2], atol=1e-6)
    np.testing.assert_allclose(found["boxes"], [[10, 0, 30, 20], [10, 0, 30, 20], [28, 8, 40, 12]], atol=1e-4)
    (relative,) = processor.post_process_object_detection(out, 0.5)
    np.testing.assert_allclose(relative["boxes"], [[0.25, 0, 0.75, 1], [0.25, 0, 0.75, 1]], atol=1e-6)
    assert len(processor.post_process_object_detection(out, 0.0, max_detections=1)[0]["scores"]) == 1


def test_soft_nms_may_not_let_scores_below_the_threshold_through() -> None:
    processor = DetectionImageProcessor(soft_nms_iou=0.5)
    out = outputs((0.9, 0.01, (0.5, 0.5, 0.5, 0.5)), (0.8, 0.01, (0.5, 0.5, 0.5, 0.45)))
    (found,) = processor.post_process_object_detection(out, 0.3, [(100, 100)])
    np.testing.assert_allclose(found["scores"], [0.9], atol=1e-6)  # the second decays to 0.08
    (found,) = processor.post_process_object_detection(out, 0.02, [(100, 100)])
    np.testing.assert_allclose(found["scores"], [0.9, 0.08], atol=1e-5)


def test_saved_and_loaded(tmp_path: Any) -> None:
    config = SimpleNamespace(shortest_edge=33, longest_edge=55, soft_nms_iou=0.8, nms_order="mmdet", max_detections=9)
    made = processor_for(config)
    made.save_pretrained(tmp_path)
    again = DetectionImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == made.to_dict()
    assert (again.shortest_edge, again.nms_order, again.max_detections) == (33, "mmdet", 9)


def test_collator() -> None:
    processor = DetectionImageProcessor(shortest_edge=32, longest_edge=64)
    boxes = np.array([[0.0, 0, 10, 10], [30, 10, 50, 30], [39.9, 0, 60, 9]])
    target = Target(boxes, np.array([1, 0, 1]), np.ones(3), np.array([True, False, False]))
    batch = DetectionCollator(processor)(
        [{"id": "a", "image": photo(40, 20), "target": target}, {"id": "b", "image": photo(9, 9)}]
    )
    first, second = batch["labels"]
    assert batch["pixel_values"].shape == (2, 3, 32, 64)
    assert first["class_labels"].tolist() == [0]  # without the crowd region and the sliver beyond the border
    np.testing.assert_allclose(first["boxes"], [[0.875, 0.75, 0.25, 0.5]], atol=1e-6)
    assert first["orig_size"].tolist() == [20, 40]
    assert set(second) == {"orig_size"}
    with pytest.raises(DataError, match="sample c: "):
        DetectionCollator(processor)([{"id": "c", "image": "missing.jpg"}])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: p([]), InputError, "no images"),
        (lambda p: p(photo(4, 4), [{}, {}]), DataError, "annotations must be"),
        (lambda p: p([photo(4, 4)], [{}, {}]), InputError, "1 images, but 2"),
        (lambda p: p([photo(4, 4)], [{"annotations": [{"bbox": [1, 2]}]}]), DataError, "object 0 needs bbox"),
        (lambda p: p(photo(4, 4), return_tensors="np"), InputError, "return_tensors='np'"),
        (lambda p: p(photo(4, 4), do_resize=False), ConfigError, "do_resize"),
        (lambda p: p(torch.zeros(3, 4, 4)), InputError, "uint8"),
        (lambda p: p(b"no image"), DataError, "not an image"),
        (lambda p: p(np.zeros((4, 4, 3), np.float32)), DataError, "uint8 array"),
        (lambda _: DetectionImageProcessor(shortest_edge=0), ConfigError, "shortest_edge=0"),
        (lambda _: DetectionImageProcessor(interpolation="bilinaer"), ConfigError, "'bilinear'"),
        (lambda _: DetectionImageProcessor(image_std=[1.0]), ConfigError, "three values"),
        (lambda _: DetectionImageProcessor(pad_size=0), ConfigError, "pad_size=0"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(DetectionImageProcessor(shortest_edge=8, longest_edge=8))


def test_one_pixel_images() -> None:
    batch = DetectionImageProcessor(shortest_edge=16, longest_edge=32)([photo(1, 1), photo(1, 30)])
    assert batch["pixel_values"].shape == (2, 3, 32, 16)
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [256, 32]
