"""Images and masks as an anomaly detector takes them: stretched to a square, no augmentation, as ADer does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridzoo.data.images import open_image, to_mode
from hybridzoo.errors import DataError

_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # PIL's numbers


def image_bytes(image: Any, config: Any, name: str | None = None) -> np.ndarray:
    """(C, S, S) uint8 of an image: grey and 16-bit images become the model's channels, then the sides are stretched.

    Args:
        image: anything that `open_image` takes.
        config: has image_size, num_channels and interpolation.
        name: how errors call the image.

    Raises:
        DataError: unreadable.
    """
    picture = to_mode(open_image(image, name), config.num_channels)
    side = config.image_size
    if picture.size != (side, side):
        picture = picture.resize((side, side), _FILTERS[config.interpolation])
    array = np.asarray(picture)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def normalise(images: Tensor, config: Any) -> Tensor:
    """(B, C, S, S) uint8 -> float32, with the config's mean and standard deviation."""
    mean = torch.tensor(config.image_mean, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(config.image_std, device=images.device).view(1, -1, 1, 1)
    return (images.float() / 255 - mean) / std


def mask_at(mask: np.ndarray, side: int) -> np.ndarray:
    """(S, S) bool of a mask (H, W): stretched bilinearly as an 8-bit image, then more than half."""
    from PIL import Image

    if mask.shape == (side, side):
        return mask.astype(bool)
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize((side, side), _FILTERS["bilinear"])
    return np.asarray(picture, np.float32) / 255 > 0.5


def stack_images(samples: Sequence[Any], config: Any) -> Tensor:
    """(B, C, S, S) uint8 of samples of an AnomalySplit."""
    return torch.from_numpy(np.stack([image_bytes(s["image"], config, s["id"]) for s in samples]))


def class_masks(split: Any, side: int) -> np.ndarray | None:
    """(n, S, S) bool of a split, or None where an anomalous image has no mask.

    Raises:
        DataError: a mask that is unreadable or of another size than its image.
    """
    if not split.has_masks:
        return None
    masks = np.zeros((len(split), side, side), bool)
    for i, entry in enumerate(split.entries):
        if entry.anomaly:
            mask = split[i]["mask"]
            if mask is None:
                raise DataError(f"{entry.img_path} is anomalous and has no mask")
            masks[i] = mask_at(mask, side)
    return masks
