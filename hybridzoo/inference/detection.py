"""Object detection: images to boxes with labels and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypedDict

import numpy as np
import torch
from tqdm import tqdm

from hybridzoo.data.detection.collate import DetectionCollator
from hybridzoo.data.detection.processing import DetectionImageProcessor, processor_for
from hybridzoo.errors import ConfigError, InputError, unknown
from hybridzoo.inference.classifier import DTYPES, check_items, pick_device
from hybridzoo.inference.graph import GraphedCalls

THRESHOLD = 0.3  # least score that is shown, where the caller names none


class Found(TypedDict):
    """Detections of one image, best first: `boxes` (M, 4) corners in pixels, `scores` (M,), `labels` (M,) class
    indices, and the image's `size`, height and width.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    size: tuple[int, int]


class DetectedObject(TypedDict):
    """One object: label, score, and its box as xmin, ymin, xmax, ymax in pixels of the upright image."""

    label: str
    score: float
    box: tuple[float, float, float, float]


class Detector:
    """A detector in eval mode on a device.

    Args:
        model: an object-detection model of the zoo.
        processor: prepares the images; left out, what the model's config says.
        device: left out: a GPU if there is one, else the CPU.
        dtype: "float32", or "bfloat16" for autocast (weights stay as they are).
        threshold: least score of an object that `__call__` names.
        max_detections: most detections of an image; the processor's if None.
        graph: replay the network as a CUDA graph, one for each size of a batch. Worth it where sizes repeat (a camera,
            a square `pad_size`); the first batch of a size takes longer.

    Raises:
        ConfigError: no such dtype, a threshold that is no probability, a model that does not detect, or a graph without
            a GPU.
    """

    def __init__(
        self,
        model: Any,
        *,
        processor: DetectionImageProcessor | None = None,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        threshold: float = THRESHOLD,
        max_detections: int | None = None,
        graph: bool = False,
    ):
        if dtype not in DTYPES:
            raise ConfigError(unknown("dtype", str(dtype), DTYPES))
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold is a score from 0 to 1, got {threshold}")
        task = getattr(model, "task", "object-detection")
        if task != "object-detection":
            raise ConfigError(f"{type(model).__name__} does {task}; a Detector needs a model for object-detection")
        self.device = pick_device(device)
        self.dtype = DTYPES[dtype]
        self.threshold = threshold
        self.max_detections = max_detections
        self.model = model.to(self.device).eval()
        self.call = GraphedCalls(self.model, ("logits", "pred_boxes")) if graph else self.model
        self.processor = processor_for(model.config) if processor is None else processor
        names: Mapping[int, str] = model.config.id2label
        self.label_names = tuple(str(names[i]) for i in range(len(names)))

    def detect(
        self,
        images: Sequence[Any],
        batch_size: int = 8,
        *,
        threshold: float = 0.0,
        num_workers: int = 0,
        progress: bool = False,
    ) -> list[Found]:
        """Detections of each image, in order.

        Args:
            images: paths, bytes, PIL images, uint8 arrays (H, W[, 3]), or samples of a DetectionSplit.
            batch_size: images per forward.
            threshold: least score; 0 keeps everything up to `max_detections`, as scoring needs it.
            num_workers: processes that read and preprocess.
            progress: show a bar on stderr.

        Raises:
            DataError: an image that is missing or damaged; it is named.
            InputError: something that is no list.
        """
        images = check_items(images, "images")
        found: list[Found] = []
        loader = torch.utils.data.DataLoader(
            _Samples(images),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=DetectionCollator(self.processor),
            pin_memory=self.device.type == "cuda",
        )
        with tqdm(total=len(images), unit="img", disable=not progress, leave=False) as bar:
            for batch in loader if len(images) else ():
                found += self.forward(batch, threshold)
                bar.update(len(batch["labels"]))
        return found

    def forward(self, batch: Mapping[str, Any], threshold: float = 0.0) -> list[Found]:
        """Detections of a batch of `DetectionCollator`, in pixels of the images before resizing."""
        sizes = torch.stack([one["orig_size"] for one in batch["labels"]])
        inputs = {k: batch[k].to(self.device, non_blocking=True) for k in ("pixel_values", "pixel_mask")}
        autocast = nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, dtype=self.dtype)
        with torch.inference_mode(), autocast:
            outputs = self.call(**inputs)
        made = self.processor.post_process_object_detection(
            {"logits": outputs["logits"], "pred_boxes": outputs["pred_boxes"]}, threshold, sizes, self.max_detections
        )
        return [
            Found(
                boxes=one["boxes"].float().cpu().numpy(),
                scores=one["scores"].float().cpu().numpy(),
                labels=one["labels"].cpu().numpy(),
                size=(int(size[0]), int(size[1])),
            )
            for one, size in zip(made, sizes)
        ]

    def __call__(self, images: Sequence[Any], batch_size: int = 8, **options: Any) -> list[list[DetectedObject]]:
        """Objects of each image with a score of at least `threshold`, best first; options as in `detect`."""
        options = {"threshold": self.threshold, **options}
        return [self.named(found) for found in self.detect(images, batch_size, **options)]

    def named(self, found: Found) -> list[DetectedObject]:
        """Detections with the names of their classes."""
        return [
            DetectedObject(
                label=self.label_names[int(label)],
                score=float(score),
                box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
            )
            for box, score, label in zip(found["boxes"], found["scores"], found["labels"])
        ]


class _Samples(torch.utils.data.Dataset):
    """Images, or samples of a split, as {"id", "image"}."""

    def __init__(self, images: Sequence[Any]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.images[index]
        if isinstance(item, Mapping):
            if "image" not in item:
                raise InputError(f"item {index} is a dictionary without 'image'; it has {', '.join(map(str, item))}")
            return {"id": item.get("id", str(index)), "image": item["image"]}
        return {"id": str(index), "image": item}
