"""Scores and heat maps of images, from an anomaly-detection model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypedDict

import numpy as np
import torch
from tqdm import tqdm

from hybridzoo.data.anomaly.transforms import image_bytes, normalise
from hybridzoo.data.images import open_image, to_mode
from hybridzoo.errors import ConfigError, unknown
from hybridzoo.inference.classifier import DTYPES, check_items, pick_device

OVERLAY = 0.4  # share of the heat map in an overlay, as ADer draws it


class Judged(TypedDict):
    """What is found in one image.

    Keys:
        score: the map's maximum.
        anomalous: whether the score reaches the threshold; None without one.
        map: (S, S) float32, larger = stranger.
    """

    score: float
    anomalous: bool | None
    map: np.ndarray


class AnomalyDetector:
    """A model with the preprocessing and the thresholds of its config.

    Args:
        model: for anomaly-detection.
        device: a GPU if there is one, where left out.
        dtype: "float32" or "bfloat16" (autocast).
        threshold, pixel_threshold: in place of the config's.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: Any = None,
        dtype: str = "float32",
        threshold: float | None = None,
        pixel_threshold: float | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(unknown("dtype", str(dtype), DTYPES))
        task = getattr(model, "task", None)
        if task != "anomaly-detection":
            raise ConfigError(f"{type(model).__name__} does {task}; an AnomalyDetector needs one for anomaly-detection")
        self.device, self.dtype = pick_device(device), DTYPES[dtype]
        self.model, self.config = model.to(self.device).eval(), model.config
        self.threshold = self.config.threshold if threshold is None else threshold
        self.pixel_threshold = self.config.pixel_threshold if pixel_threshold is None else pixel_threshold

    def judge(
        self, images: Sequence[Any], batch_size: int = 16, *, num_workers: int = 0, progress: bool = False
    ) -> Iterator[Judged]:
        """Judge images one after the other, a batch at a time.

        Args:
            images: paths, bytes, PIL images, uint8 arrays (H, W[, 3]), or samples of an AnomalySplit.
            batch_size: images per forward.
            num_workers: processes that read and preprocess.
            progress: show a bar on stderr.

        Raises:
            DataError: an image that is missing or damaged; it is named.
        """
        images = check_items(images, "images")
        loader = torch.utils.data.DataLoader(
            _Prepared(images, self.config),
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda",
        )
        with tqdm(total=len(images), unit="img", disable=not progress, leave=False) as bar:
            for batch in loader if len(images) else ():
                yield from self.forward(batch)
                bar.update(len(batch))

    def forward(self, images: torch.Tensor) -> list[Judged]:
        """Judge (B, C, S, S) uint8 images that are prepared already."""
        autocast = nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, dtype=self.dtype)
        pixels = normalise(images.to(self.device, non_blocking=True), self.config)
        with torch.inference_mode(), autocast:
            maps = self.model(pixels).anomaly_map.float()
        scores = maps.flatten(1).amax(1).cpu().tolist()
        return [
            Judged(score=score, anomalous=None if self.threshold is None else score >= self.threshold, map=one)
            for score, one in zip(scores, maps.cpu().numpy())
        ]

    def __call__(self, images: Sequence[Any], batch_size: int = 16, **options: Any) -> list[Judged]:
        """All at once; options as in `judge`."""
        return list(self.judge(images, batch_size, **options))

    def calibrate(self, images: Sequence[Any], *, image_rate: float = 0.05, pixel_rate: float = 0.001) -> None:
        """Choose both thresholds on normal images, and write them into the model's config.

        Args:
            images: normal ones that the model was not trained on, as in `judge`.
            image_rate: share of them whose score may reach the threshold; below 1 / images, none may.
            pixel_rate: share of their pixels that may reach theirs.

        Raises:
            ConfigError: no image, or a rate that is no share.
        """
        for name, rate in (("image_rate", image_rate), ("pixel_rate", pixel_rate)):
            if not 0 <= rate < 1:
                raise ConfigError(f"{name}={rate} must be a share, 0 or more and below 1")
        judged = self(images)
        if not judged:
            raise ConfigError("no image to choose a threshold on: give normal images that were not trained on")
        scores = np.array([one["score"] for one in judged])
        pixels = np.concatenate([one["map"].ravel() for one in judged])
        self.threshold = self.config.threshold = _above(scores, image_rate)
        self.pixel_threshold = self.config.pixel_threshold = _above(pixels, pixel_rate)


def _above(values: np.ndarray, rate: float) -> float:
    """The smallest fp32 threshold that at most this share of the values reaches: none of 10 at a rate of 0.05."""
    values = np.asarray(values, np.float32)  # as maps and scores are
    kept = len(values) - 1 - int(rate * len(values))
    return float(np.nextafter(np.partition(values, kept)[kept], np.float32(np.inf)))


def heat(one: np.ndarray, low: float, high: float) -> np.ndarray:
    """(S, S, 3) uint8: a map in colours from blue (`low`) over green and yellow to red (`high`)."""
    x = np.clip((one.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
    red, green, blue = (np.clip(1.5 - np.abs(4 * x - centre), 0, 1) for centre in (3.0, 2.0, 1.0))
    return np.rint(np.stack([red, green, blue], -1) * 255).astype(np.uint8)


def overlay(image: Any, one: np.ndarray, low: float = 0.0, high: float | None = None) -> Any:
    """The image (PIL, of its own size) under its map's colours.

    Args:
        image: anything that `open_image` takes.
        one: (S, S) map.
        low, high: values of blue and red; the map's maximum where `high` is left out.
    """
    from PIL import Image

    picture = to_mode(open_image(image), 3)
    colours = heat(one, low, float(one.max()) if high is None else high)
    return Image.blend(picture, Image.fromarray(colours).resize(picture.size, Image.Resampling.BILINEAR), OVERLAY)


def found_mask(image: Any, one: np.ndarray, threshold: float) -> Any:
    """Black-and-white PIL image of the image's size: white where the map reaches the threshold."""
    from PIL import Image

    size = open_image(image).size
    wide = Image.fromarray(one.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return Image.fromarray((np.asarray(wide) >= threshold).astype(np.uint8) * 255)


def heat_sheet(shown: Sequence[tuple[Mapping[str, Any], np.ndarray]], side: int = 128, columns: int = 15) -> Any:
    """PIL picture of samples of an AnomalySplit: image, heat map and true mask, one below the other.

    Args:
        shown: samples, and their maps with 1 where the colour shall be red; any size.
        side: pixels of each small picture.
        columns: samples in a row.
    """
    from PIL import Image

    lines = [shown[i : i + columns] for i in range(0, len(shown), columns)]
    sheet = Image.new("RGB", (min(columns, len(shown)) * side, 3 * side * len(lines)), "white")
    for y, line in enumerate(lines):
        for x, (sample, one) in enumerate(line):
            image = to_mode(open_image(sample["image"]), 3).resize((side, side), Image.Resampling.BILINEAR)
            mask = sample["mask"]
            truth = None if mask is None else Image.fromarray(mask.astype(np.uint8) * 255).resize((side, side))
            for row, picture in enumerate((image, overlay(image, one, high=1.0), truth)):
                if picture is not None:
                    sheet.paste(picture, (x * side, (3 * y + row) * side))
    return sheet


class _Prepared(torch.utils.data.Dataset):
    """Images, or samples of a split, as uint8 tensors."""

    def __init__(self, images: Sequence[Any], config: Any) -> None:
        self.images, self.config = images, config

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        item = self.images[index]
        name = item.get("id") if isinstance(item, Mapping) else None
        content = item["image"] if isinstance(item, Mapping) else item
        return torch.from_numpy(image_bytes(content, self.config, name))
