"""Batches of detection samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hybridzoo.data.detection.images import open_upright
from hybridzoo.data.detection.processing import DetectionImageProcessor
from hybridzoo.data.detection.transforms import Scene, labels_of, sanitised, scene_of
from hybridzoo.errors import DataError


class DetectionCollator:
    """Samples of a DetectionSplit to `pixel_values`, `pixel_mask` and `labels`.

    Args:
        processor: of the model.
        transform: a TrainTransform; None resizes only, as evaluation does.
    """

    def __init__(
        self, processor: DetectionImageProcessor, transform: Callable[[Mapping[str, Any]], Scene] | None = None
    ):
        self.processor, self.transform = processor, transform

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch.

        Returns:
            `pixel_values` (B, 3, H, W) float32, `pixel_mask` (B, H, W) int64, and `labels`: per image `class_labels`
            (n,) int64, `boxes` (n, 4) float32 cxcywh relative to the unpadded image, and `orig_size` (2,) int64, the
            height and width before resizing. Images without a target get no labels, only `orig_size`.
        """
        scenes = []
        for sample in samples:
            try:
                scenes.append(self.scene(sample))
            except DataError as error:
                raise DataError(f"sample {sample.get('id', '?')}: {error}") from error
        return self.batch(scenes)

    def batch(self, scenes: Sequence[tuple[Scene, dict[str, Any]]]) -> dict[str, Any]:
        """Scenes and their labels to a batch."""
        return {**self.processor.batch([s.pixels for s, _ in scenes]), "labels": [labels for _, labels in scenes]}

    def scene(self, sample: Mapping[str, Any]) -> tuple[Scene, dict[str, Any]]:
        """A sample as the model is to see it, not yet normalised, and its labels."""
        scene, size = self._scene(sample)
        return scene, (labels_of(scene) if "target" in sample else {}) | {"orig_size": torch.tensor(size)}

    def _scene(self, sample: Mapping[str, Any]) -> tuple[Scene, tuple[int, int]]:
        image = open_upright(sample["image"])
        sample = {**sample, "image": image}
        size = (image.height, image.width)
        if self.transform is not None:
            return self.transform(sample), size
        if "target" not in sample:
            pixels = self.processor.resize(self.processor.read(image))
            return Scene(pixels, torch.zeros((0, 4)), torch.zeros(0, dtype=torch.long)), size
        scene = sanitised(scene_of(sample))
        pixels = self.processor.resize(scene.pixels)
        scale = torch.tensor([pixels.shape[2] / size[1], pixels.shape[1] / size[0]] * 2)
        return Scene(pixels, scene.boxes * scale, scene.labels), size
