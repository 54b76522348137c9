"""Training augmentation of images with boxes: flips, multi-scale, DETR's crop, large-scale jitter, copy-paste, colour.

Drawn from torch's global generator, which the training seeds per sample. Images are (3, H, W) uint8 tensors, boxes
corners in pixels. Sources: DETR (https://arxiv.org/abs/2005.12872, section A.4), large-scale jitter and copy-paste
(Ghiasi et al. 2021, https://arxiv.org/abs/2012.07177).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridzoo.data.detection.processing import (
    DetectionImageProcessor,
    relative_cxcywh,
    resize_pixels,
    resized_size,
    to_pixels,
)
from hybridzoo.data.detection.split import Target
from hybridzoo.errors import ConfigError, unknown

DETR_SIDES = (400, 500, 600)  # short sides before DETR's crop, and the crop's range of sides
DETR_CROP = (384, 600)
DETR_LONGEST_BEFORE_CROP = 4200
MIN_SIDE = 1.0  # pixels: a box that became narrower than this is left out


@dataclass(frozen=True)
class DetectionAugment:
    """What is drawn for each training image; everything is off by default.

    Args:
        hflip, vflip: probabilities.
        rot90: rotate by a random multiple of 90 degrees (aerial images).
        multi_scale: short sides, one of which is drawn; the long side stays within `max_size`.
        max_size: of `multi_scale`; the processor's longest_edge if None.
        detr_crop: with probability 1/2, resize to a short side of 400, 500 or 600 and crop 384 to 600 pixels, before
            `multi_scale`.
        crop_scale: area share of a random crop that keeps the aspect ratio roughly, e.g. (0.3, 1.0); at least one
            object's centre stays inside where the image has objects.
        lsj: factors of large-scale jitter, e.g. (0.1, 2.0): the image is fitted to the processor's pad_size times the
            factor, then cropped to the pad_size.
        copy_paste: probability that objects of another image are pasted in (needs `lsj` or images of one size).
        photometric: strength of brightness, contrast, saturation jitter, 0 to 1.
    """

    hflip: float = 0.0
    vflip: float = 0.0
    rot90: bool = False
    multi_scale: Sequence[int] = field(default_factory=tuple)
    max_size: int | None = None
    detr_crop: bool = False
    crop_scale: Sequence[float] | None = None
    lsj: Sequence[float] | None = None
    copy_paste: float = 0.0
    photometric: float = 0.0

    def __post_init__(self) -> None:
        for name in ("hflip", "vflip", "copy_paste", "photometric"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment {name}={getattr(self, name)}: give a number from 0 to 1")
        for name in ("crop_scale", "lsj"):
            pair = getattr(self, name)
            if pair is not None and not (len(pair) == 2 and 0 < pair[0] <= pair[1]):
                raise ConfigError(f"augment {name}={list(pair)}: give [low, high] with 0 < low <= high")
        if any(side < 1 for side in self.multi_scale):
            raise ConfigError(f"augment multi_scale={list(self.multi_scale)}: give sides of at least 1 pixel")
        if self.lsj is not None and (self.multi_scale or self.detr_crop):
            raise ConfigError("augment lsj and multi_scale (or detr_crop) both choose the size; keep one of them")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> DetectionAugment:
        """From a recipe's keys; an unknown one raises ConfigError with the nearest."""
        known = [f.name for f in fields(cls)]
        for key in options:
            if key not in known:
                raise ConfigError(unknown("augmentation of detection", str(key), known, f"(known: {', '.join(known)})"))
        return cls(**{key: value for key, value in options.items() if value is not None})


@dataclass(frozen=True)
class Scene:
    """An image on its way: pixels (3, H, W) uint8, boxes (n, 4) float32 corners, labels (n,), masks (n, H, W) bool or
    None.
    """

    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def keep(self, rows: Tensor) -> Scene:
        """The objects of a mask (n,)."""
        masks = None if self.masks is None else self.masks[rows]
        return Scene(self.pixels, self.boxes[rows], self.labels[rows], masks)


class TrainTransform:
    """From a sample to a resized uint8 image and its boxes.

    Args:
        processor: of the model; its sizes and interpolation are used.
        augment: what is drawn.
        other: gives another random training sample, for copy-paste.
    """

    def __init__(
        self,
        processor: DetectionImageProcessor,
        augment: DetectionAugment,
        other: Callable[[], Mapping[str, Any]] | None = None,
    ):
        if augment.lsj is not None and processor.pad_size is None:
            raise ConfigError("augment lsj needs a model with pad_size, the side of its square")
        if augment.copy_paste and other is None:
            raise ConfigError("augment copy_paste needs a data set to take objects from")
        self.processor, self.augment, self.other = processor, augment, other

    def __call__(self, sample: Mapping[str, Any]) -> Scene:
        """Crowd regions are left out, boxes are clipped to what is left of the image, empty ones dropped."""
        a = self.augment
        scene = self._sized(self._geometry(sample))
        if a.copy_paste and float(torch.rand(())) < a.copy_paste:
            assert self.other is not None
            scene = copy_paste(scene, self._sized(self._geometry(self.other(), masks=True)))
        if a.photometric:
            scene = Scene(_photometric(scene.pixels, a.photometric), scene.boxes, scene.labels)
        return sanitised(scene)

    def _geometry(self, sample: Mapping[str, Any], masks: bool = False) -> Scene:
        a = self.augment
        scene = scene_of(sample, masks=masks)
        if a.hflip and float(torch.rand(())) < a.hflip:
            scene = flip(scene, horizontal=True)
        if a.vflip and float(torch.rand(())) < a.vflip:
            scene = flip(scene, horizontal=False)
        if a.rot90:
            for _ in range(int(torch.randint(4, ()))):
                scene = rotate90(scene)
        if a.crop_scale is not None:
            scene = _random_share(scene, (a.crop_scale[0], a.crop_scale[1]))
        return scene

    def _sized(self, scene: Scene) -> Scene:
        a, p = self.augment, self.processor
        height, width = scene.pixels.shape[-2:]
        if a.lsj is not None:
            assert p.pad_size is not None
            factor = a.lsj[0] + float(torch.rand(())) * (a.lsj[1] - a.lsj[0])
            side = max(int(p.pad_size * factor), 1)
            scene = self._resize(scene, resized_size(height, width, side, side))
            return _random_window(scene, p.pad_size, p.pad_size)
        if a.detr_crop and float(torch.rand(())) < 0.5:
            side = DETR_SIDES[int(torch.randint(len(DETR_SIDES), ()))]
            scene = self._resize(scene, resized_size(height, width, side, DETR_LONGEST_BEFORE_CROP))
            high, wide = (int(torch.randint(DETR_CROP[0], DETR_CROP[1] + 1, ())) for _ in range(2))
            scene = _random_window(scene, high, wide)
        height, width = scene.pixels.shape[-2:]
        if a.multi_scale:
            side = a.multi_scale[int(torch.randint(len(a.multi_scale), ()))]
            return self._resize(scene, resized_size(height, width, side, a.max_size or p.longest_edge))
        return self._resize(scene, p.target_size(height, width))

    def _resize(self, scene: Scene, size: tuple[int, int]) -> Scene:
        height, width = scene.pixels.shape[-2:]
        pixels = resize_pixels(scene.pixels, size, self.processor.interpolation, self.processor.antialias)
        scale = torch.tensor([size[1] / width, size[0] / height] * 2)
        masks = scene.masks
        if masks is not None and len(masks):
            masks = torch.nn.functional.interpolate(masks[None].float(), size=size, mode="nearest")[0] > 0.5
        elif masks is not None:
            masks = torch.zeros((0, *size), dtype=torch.bool)
        return Scene(pixels, scene.boxes * scale, scene.labels, masks)


def scene_of(sample: Mapping[str, Any], *, masks: bool = False) -> Scene:
    """The pixels and objects of a sample `{"image", "target"}`; crowd regions are left out."""
    pixels = to_pixels(sample["image"])
    target: Target = sample["target"]
    target = target.select(~target.crowd)
    drawn = _masks(target, *pixels.shape[-2:]) if masks else None
    return Scene(pixels, torch.from_numpy(target.boxes).float(), torch.from_numpy(target.labels), drawn)


def _masks(target: Target, height: int, width: int) -> Tensor:
    """(n, H, W) bool: outlines where there are some, else the boxes."""
    from PIL import Image, ImageDraw

    made = np.zeros((len(target), height, width), bool)
    for i, box in enumerate(target.boxes):
        outline = target.polygons[i] if target.polygons is not None else ()
        if len(outline):
            canvas = Image.new("1", (width, height))
            for polygon in outline:
                ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in np.reshape(polygon, (-1, 2))], fill=1)
            made[i] = np.asarray(canvas)
        else:
            x1, y1, x2, y2 = np.round(box).astype(int).clip(0)
            made[i, y1:y2, x1:x2] = True
    return torch.from_numpy(made)


def sanitised(scene: Scene) -> Scene:
    """Boxes clipped to the image; those of less than a pixel in width or height are dropped."""
    height, width = scene.pixels.shape[-2:]
    boxes = torch.minimum(scene.boxes.clamp(min=0), torch.tensor([width, height, width, height], dtype=torch.float32))
    sides = boxes[:, 2:] - boxes[:, :2]
    return Scene(scene.pixels, boxes, scene.labels, scene.masks).keep((sides >= MIN_SIDE).all(1))


def flip(scene: Scene, *, horizontal: bool) -> Scene:
    """Mirror left-right or top-bottom."""
    axis = 2 if horizontal else 1
    extent = scene.pixels.shape[axis]
    boxes = scene.boxes.clone()
    low, high = (0, 2) if horizontal else (1, 3)
    boxes[:, low], boxes[:, high] = extent - scene.boxes[:, high], extent - scene.boxes[:, low]
    return Scene(scene.pixels.flip(axis), boxes, scene.labels, None if scene.masks is None else scene.masks.flip(axis))


def rotate90(scene: Scene) -> Scene:
    """A quarter turn counter-clockwise."""
    width = scene.pixels.shape[2]
    x1, y1, x2, y2 = scene.boxes.unbind(1)
    boxes = torch.stack((y1, width - x2, y2, width - x1), 1)
    masks = None if scene.masks is None else scene.masks.rot90(1, (1, 2))
    return Scene(scene.pixels.rot90(1, (1, 2)), boxes, scene.labels, masks)


def crop(scene: Scene, top: int, left: int, height: int, width: int) -> Scene:
    """A window of the image. Objects whose centre is outside are dropped by `sanitised` only if nothing of them is
    left.
    """
    boxes = scene.boxes - torch.tensor([left, top, left, top], dtype=torch.float32)
    masks = None if scene.masks is None else scene.masks[:, top : top + height, left : left + width]
    return sanitised(Scene(scene.pixels[:, top : top + height, left : left + width], boxes, scene.labels, masks))


def _random_window(scene: Scene, height: int, width: int) -> Scene:
    """A random window of at most that size; windows without objects are allowed."""
    have = scene.pixels.shape[-2:]
    height, width = min(height, have[0]), min(width, have[1])
    top = int(torch.randint(have[0] - height + 1, ()))
    left = int(torch.randint(have[1] - width + 1, ()))
    return crop(scene, top, left, height, width)


def _random_share(scene: Scene, share: tuple[float, float], tries: int = 10) -> Scene:
    height, width = scene.pixels.shape[-2:]
    for _ in range(tries):
        area = share[0] + float(torch.rand(())) * (share[1] - share[0])
        stretch = float(torch.empty(()).uniform_(-0.2, 0.2).exp())
        high = min(max(round(height * area**0.5 * stretch), 1), height)
        wide = min(max(round(width * area**0.5 / stretch), 1), width)
        top, left = int(torch.randint(height - high + 1, ())), int(torch.randint(width - wide + 1, ()))
        centres = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2
        inside = (centres >= torch.tensor([left, top])) & (centres < torch.tensor([left + wide, top + high]))
        if not len(centres) or bool(inside.all(1).any()):
            return crop(scene, top, left, high, wide)
    return scene


def copy_paste(scene: Scene, source: Scene, *, max_objects: int = 100, hidden: float = 0.7) -> Scene:
    """Paste a random subset of another image's objects (with their masks) onto this one.

    Objects of the scene that the pasted ones hide by more than `hidden` of their box are dropped. The source is
    cropped or zero-padded to the scene's size.

    Args:
        scene: pixels and boxes.
        source: with masks.
        max_objects: most objects that are pasted.
        hidden: see above.
    """
    assert source.masks is not None
    height, width = scene.pixels.shape[-2:]
    source = crop(source, 0, 0, min(height, source.pixels.shape[1]), min(width, source.pixels.shape[2]))
    count = len(source.labels)
    if not count:
        return scene
    chosen = torch.randperm(count)[: min(int(torch.randint(1, count + 1, ())), max_objects)]
    source = source.keep(chosen)
    assert source.masks is not None
    union = torch.zeros((height, width), dtype=torch.bool)
    high, wide = source.pixels.shape[-2:]
    union[:high, :wide] = source.masks.any(0)
    pixels = scene.pixels.clone()
    pixels[:, :high, :wide] = torch.where(source.masks.any(0), source.pixels, pixels[:, :high, :wide])
    visible = []
    for x1, y1, x2, y2 in scene.boxes.round().long().clamp(min=0).tolist():
        window = union[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
        visible.append(bool(window.float().mean() <= hidden) if window.numel() else True)
    kept = scene.keep(torch.tensor(visible, dtype=torch.bool)) if len(visible) else scene
    return Scene(pixels, torch.cat((kept.boxes, source.boxes)), torch.cat((kept.labels, source.labels)))


def _photometric(pixels: Tensor, strength: float) -> Tensor:
    """Brightness, contrast and saturation, each by a factor of 1 +- strength / 2."""
    from torchvision.transforms.v2 import functional as F

    for change in (F.adjust_brightness_image, F.adjust_contrast_image, F.adjust_saturation_image):
        factor = 1 + strength * (float(torch.rand(())) - 0.5)
        pixels = change(pixels, factor)
    return pixels


def labels_of(scene: Scene) -> dict[str, Tensor]:
    """What a DETR trains on: `class_labels` (n,) and `boxes` (n, 4) cxcywh relative to the unpadded image."""
    height, width = scene.pixels.shape[-2:]
    return {"class_labels": scene.labels.long(), "boxes": relative_cxcywh(scene.boxes, height, width)}
