"""Image processor of DETR-style detectors: resize, normalise, pad, and from a model's outputs back to boxes in pixels.

It differs from transformers' DetrImageProcessor where that one departs from the detectors' training code: sides are
rounded as mmcv rounds them, boxes stay relative to the *image* when a batch is padded (DETR's processor rescales them
to the padded canvas), scores are sigmoids of several classes per query, and cameras' rotation marks are honoured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from hybridzoo.data.detection.images import open_upright
from hybridzoo.errors import ConfigError, DataError, InputError, unknown

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LSJ_PAD_VALUE = 114  # grey level that fills the square of large-scale jitter, before normalisation


def resized_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """(height, width) of an image that is fitted to both edges, each at least 1 pixel.

    scale = min(longest / max side, shortest / min side); a side becomes int(side * scale + 0.5), as in mmcv.
    """
    scale = min(longest / max(height, width), shortest / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def to_pixels(image: Any) -> Tensor:
    """A PIL image as (3, H, W) uint8."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def resize_pixels(
    pixels: Tensor, size: tuple[int, int], interpolation: str = "bilinear", antialias: bool = False
) -> Tensor:
    """(3, H, W) uint8 to (3, *size) uint8. Without antialiasing it is what OpenCV does, on which published weights were
    trained.
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    return F.resize_image(pixels, list(size), interpolation=InterpolationMode(interpolation), antialias=antialias)


class DetectionImageProcessor(BaseImageProcessor):
    """From images to `pixel_values` (B, 3, H, W) float32 and `pixel_mask` (B, H, W) int64, and back to boxes.

    Args:
        shortest_edge, longest_edge: images are resized to fit both, aspect ratio kept.
        image_mean, image_std: per channel, of values in [0, 1].
        pad_size: side of the square that images are fitted into and padded to (large-scale jitter), with the grey
            level 114 before normalisation; None pads to the largest image of the batch, with zeros after normalisation.
        pad_divisor: padded sides are multiples of it.
        interpolation: "bilinear", "bicubic" or "nearest".
        antialias: smooth before shrinking. Published weights were trained without.
        max_detections, score_threshold, soft_nms_iou, nms_order: of `post_process_object_detection`, see
            `hybridzoo.layers.boxes.select_detections`.

    Raises:
        ConfigError: values that make no sense.
    """

    model_input_names = ["pixel_values", "pixel_mask"]  # noqa: RUF012  the name and type that transformers reads

    def __init__(
        self,
        shortest_edge: int = 800,
        longest_edge: int = 1333,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        pad_size: int | None = None,
        pad_divisor: int = 1,
        interpolation: str = "bilinear",
        antialias: bool = False,
        max_detections: int = 300,
        score_threshold: float = 0.0,
        soft_nms_iou: float | None = None,
        nms_order: str = "sensex",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if interpolation not in INTERPOLATIONS:
            raise ConfigError(unknown("interpolation", str(interpolation), INTERPOLATIONS))
        for name, value in (
            ("shortest_edge", shortest_edge),
            ("longest_edge", longest_edge),
            ("pad_divisor", pad_divisor),
        ):
            if value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1")
        if pad_size is not None and pad_size < 1:
            raise ConfigError(f"pad_size={pad_size}: give the side of a square in pixels, or None")
        if len(image_mean) != 3 or len(image_std) != 3:
            raise ConfigError(f"image_mean {list(image_mean)} and image_std {list(image_std)} need three values each")
        self.shortest_edge, self.longest_edge = shortest_edge, longest_edge
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.pad_size, self.pad_divisor = pad_size, pad_divisor
        self.interpolation, self.antialias = interpolation, antialias
        self.max_detections, self.score_threshold = max_detections, score_threshold
        self.soft_nms_iou, self.nms_order = soft_nms_iou, nms_order

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, *args, **kwargs)

    def preprocess(
        self,
        images: Any,
        annotations: Any = None,
        return_tensors: str | None = "pt",
        **unknown_options: Any,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: one image or a list: paths, bytes, PIL images, uint8 arrays (H, W[, 3]) or uint8 tensors (3, H, W).
            annotations: for training, one `{"image_id", "annotations": [{"bbox": [x, y, w, h], "category_id", "area",
                "iscrowd"}]}` per image, as transformers' DETR takes them; crowd regions and boxes without area are
                left out.
            return_tensors: "pt" only.

        Returns:
            `pixel_values`, `pixel_mask` (1 = image, 0 = padding) and, with annotations, `labels`: per image
            `class_labels` (n,) int64, `boxes` (n, 4) cxcywh relative to the unpadded image, `image_id`, `orig_size`,
            `size`.

        Raises:
            DataError: an image that cannot be read.
            InputError: not as many annotations as images, or other tensors than "pt".
        """
        for key in unknown_options:
            raise ConfigError(
                unknown("option of DetectionImageProcessor", key, ("images", "annotations", "return_tensors"))
            )
        if return_tensors not in (None, "pt"):
            raise InputError(f"return_tensors={return_tensors!r}: this processor returns torch tensors, 'pt'")
        single = not isinstance(images, (list, tuple))
        items = [images] if single else list(images)
        notes = None if annotations is None else [annotations] if single else list(annotations)
        if not items:
            raise InputError("no images were given")
        if notes is not None and len(notes) != len(items):
            raise InputError(f"{len(items)} images, but {len(notes)} annotations")
        pixels = [self.read(item) for item in items]
        original = [tuple(p.shape[-2:]) for p in pixels]
        resized = [self.resize(p) for p in pixels]
        batch = self.batch(resized)
        if notes is not None:
            batch["labels"] = [
                _labels(note, size, tuple(p.shape[-2:])) for note, size, p in zip(notes, original, resized)
            ]
        return BatchFeature(data=batch)

    def read(self, image: Any) -> Tensor:
        """(3, H, W) uint8 of anything that `preprocess` takes."""
        if isinstance(image, Tensor):
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
                raise InputError(f"an image tensor must be uint8 (3, H, W), got {image.dtype} {tuple(image.shape)}")
            return image
        return to_pixels(open_upright(image))

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image is resized to."""
        if self.pad_size is not None:
            return resized_size(height, width, self.pad_size, self.pad_size)
        return resized_size(height, width, self.shortest_edge, self.longest_edge)

    def resize(self, pixels: Tensor) -> Tensor:
        """(3, H, W) uint8 to the size that the detector sees."""
        size = self.target_size(*pixels.shape[-2:])
        return resize_pixels(pixels, size, self.interpolation, self.antialias)

    def batch(self, images: Sequence[Tensor]) -> dict[str, Any]:
        """Normalise and pad resized images (3, H, W) uint8 to one batch: pixel_values and pixel_mask."""
        height, width = (max(int(p.shape[d]) for p in images) for d in (1, 2))
        if self.pad_size is not None:
            height, width = max(height, self.pad_size), max(width, self.pad_size)
        step = self.pad_divisor
        height, width = -(-height // step) * step, -(-width // step) * step
        mean = torch.tensor(self.image_mean)[:, None, None]
        std = torch.tensor(self.image_std)[:, None, None]
        values = torch.zeros((len(images), 3, height, width))
        if self.pad_size is not None:
            values += (LSJ_PAD_VALUE / 255 - mean) / std
        mask = torch.zeros((len(images), height, width), dtype=torch.long)
        for row, image in enumerate(images):
            h, w = image.shape[-2:]
            values[row, :, :h, :w] = (image.float() / 255 - mean) / std
            mask[row, :h, :w] = 1
        return {"pixel_values": values, "pixel_mask": mask}

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float | None = None,
        target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
        max_detections: int | None = None,
    ) -> list[dict[str, Tensor]]:
        """Detections of each image.

        Args:
            outputs: of the model: `logits` (B, Q, K) and `pred_boxes` (B, Q, 4).
            threshold: least score, before and after soft-NMS; `score_threshold` if None.
            target_sizes: (B, 2) height and width of the original images; None gives boxes relative to the image, in
                [0, 1].
            max_detections: most detections of an image; the processor's if None.

        Returns:
            Per image `scores` (M,) descending, `labels` (M,), `boxes` (M, 4) xyxy.
        """
        from hybridzoo.layers.boxes import select_detections

        logits, boxes = outputs["logits"], outputs["pred_boxes"]
        if target_sizes is None:
            target_sizes = torch.ones((len(logits), 2))
        least = self.score_threshold if threshold is None else threshold
        found = select_detections(
            logits,
            boxes,
            target_sizes,
            max_detections=self.max_detections if max_detections is None else max_detections,
            score_threshold=least,
            soft_nms_iou=self.soft_nms_iou,
            order=self.nms_order,
        )
        if least <= 0 or self.soft_nms_iou is None:
            return found
        return [{key: value[d["scores"] > least] for key, value in d.items()} for d in found]


def _labels(note: Any, original: tuple[int, ...], size: tuple[int, ...]) -> dict[str, Tensor]:
    if not isinstance(note, Mapping) or not isinstance(note.get("annotations"), (list, tuple)):
        raise DataError(
            'annotations must be {"image_id": …, "annotations": [{"bbox": …, "category_id": …}, …]} per image'
        )
    from hybridzoo.data.detection.rules import BoxLog

    height, width = original
    log = BoxLog(f"annotations of image {note.get('image_id')}")
    boxes, classes = [], []
    for number, one in enumerate(note["annotations"]):
        try:
            x, y, w, h = (float(v) for v in one["bbox"])
            label = int(one["category_id"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{log.where}: object {number} needs bbox [x, y, w, h] and category_id ({error})"
            ) from error
        box = None if one.get("iscrowd") else log.take((x, y, x + w, y + h), (width, height), f"object {number}")
        if box is not None:
            boxes.append(box)
            classes.append(label)
    corners = torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4)
    return {
        "class_labels": torch.tensor(classes, dtype=torch.long),
        "boxes": relative_cxcywh(corners, height, width),
        "image_id": torch.tensor([int(note.get("image_id", 0))]),
        "orig_size": torch.tensor(original),
        "size": torch.tensor(size),
    }


def relative_cxcywh(boxes_xyxy: Tensor, height: int, width: int) -> Tensor:
    """(n, 4) corners in pixels -> (n, 4) centre and size relative to an image of `height` x `width`."""
    from hybridzoo.layers.boxes import xyxy_to_cxcywh

    return xyxy_to_cxcywh(boxes_xyxy / torch.tensor([width, height, width, height], dtype=boxes_xyxy.dtype))


def processor_for(config: Any) -> DetectionImageProcessor:
    """The processor of a detector's configuration.

    Args:
        config: may have `image_mean`, `image_std`, `shortest_edge`, `longest_edge`, `pad_size`, `pad_divisor`,
            `interpolation`, `antialias`, `max_detections`, `score_threshold`, `soft_nms_iou`, `nms_order`; what it
            lacks has the processor's default.
    """
    keys = (
        *("image_mean", "image_std", "shortest_edge", "longest_edge", "pad_size", "pad_divisor", "interpolation"),
        *("antialias", "max_detections", "score_threshold", "soft_nms_iou", "nms_order"),
    )
    return DetectionImageProcessor(**{key: getattr(config, key) for key in keys if hasattr(config, key)})
