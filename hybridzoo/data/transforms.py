"""Image preprocessing from the values that a model's config carries; timm's `create_transform` underneath.

The config's `image_size`, `num_channels`, `image_mean`, `image_std`, `crop_pct` and `interpolation` are stored with
the weights,
so training, evaluation and prediction see the same pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hybridzoo.data.images import open_image, to_mode
from hybridzoo.errors import ConfigError, DataError, InputError, unknown

AUGMENT_KEYS = (
    "scale",
    "ratio",
    "hflip",
    "color_jitter",
    "auto_augment",
    "random_erasing",
    "interpolation",
    "padding_crop",
    "repeats",
)


class ImageTransform:
    """From an image (path, PIL, uint8 array, or a float tensor that is passed through) to a float32 tensor (C, H, W).

    Args:
        channels: 1 or 3; the image is converted.
        size: side of the square output in pixels.
        colour_steps: run on an RGB image (augmentations expect three channels); may be None.
        final_steps: run on the image of `channels` channels; ends in a tensor.
    """

    def __init__(self, channels: int, size: int, colour_steps: Any, final_steps: Any):
        self.channels, self.size = channels, size
        self.colour_steps, self.final_steps = colour_steps, final_steps

    def __call__(self, image: Any) -> torch.Tensor:
        if isinstance(image, torch.Tensor):
            expected = (self.channels, self.size, self.size)
            if not image.is_floating_point() or tuple(image.shape) != expected:
                raise InputError(
                    f"an image tensor must be preprocessed: float of shape {expected}, got {image.dtype} "
                    f"{tuple(image.shape)}; "
                    "pass a PIL image, a path or a uint8 array otherwise"
                )
            return image.float()
        image = open_image(image)
        if min(image.size) < 1:
            raise DataError(f"the image has no pixels (size {image.size})")
        if self.colour_steps is not None:
            image = self.colour_steps(to_mode(image, 3))
        return self.final_steps(to_mode(image, self.channels))

    def __repr__(self) -> str:
        return f"ImageTransform(channels={self.channels}, {self.colour_steps or ''} {self.final_steps})"


def build_transform(config: Any, *, train: bool, augment: Mapping[str, Any] | None = None) -> ImageTransform:
    """The transform of a model.

    Args:
        config: has `image_size` and may have `num_channels` (3), `image_mean` and `image_std` (ImageNet's),
            `crop_pct` (0.9),
            `interpolation` ("bicubic").
        train: apply `augment`; otherwise resize, centre crop and normalise.
        augment: what is not named is off. `scale` and `ratio` (random resized crop), `hflip` (probability),
            `color_jitter`
            (strength), `auto_augment` (timm's string, `"rand-m9-mstd0.5-inc1"`), `random_erasing` (probability, pixel
            noise),
            `interpolation` (`"random"`), `padding_crop` (pixels of zero padding before a random crop of the image
            size). `repeats`
            belongs to the sampler and is ignored here.

    Raises:
        ConfigError: an unknown augmentation, a channel number other than 1 or 3, or mean/std of another length.
    """
    from timm.data.transforms_factory import create_transform

    size, channels = int(config.image_size), int(getattr(config, "num_channels", 3))
    mean = list(getattr(config, "image_mean", None) or [0.485, 0.456, 0.406][:channels])
    std = list(getattr(config, "image_std", None) or [0.229, 0.224, 0.225][:channels])
    interpolation = getattr(config, "interpolation", "bicubic")
    if channels not in (1, 3):
        raise ConfigError(f"images have 1 or 3 channels; num_channels is {channels}")
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"image_mean {mean} and image_std {std} need {channels} values each (num_channels={channels})"
        )
    augment = {k: v for k, v in dict(augment or {}).items() if v is not None}
    for key in augment:
        if key not in AUGMENT_KEYS:
            raise ConfigError(unknown("augmentation", key, AUGMENT_KEYS, f"(known: {', '.join(AUGMENT_KEYS)})"))
    shape = (channels, size, size)
    plain = create_transform(
        shape,
        is_training=False,
        crop_pct=float(getattr(config, "crop_pct", 0.9)),
        interpolation=interpolation,
        mean=tuple(mean),
        std=tuple(std),
    )
    if not train or not set(augment) - {"repeats", "interpolation"}:
        return ImageTransform(channels, size, None, plain)
    return _training(shape, mean, std, interpolation, augment, plain)


def _training(
    shape: tuple[int, int, int], mean, std, interpolation: str, augment: dict[str, Any], plain: Any
) -> ImageTransform:
    from timm.data.transforms_factory import create_transform
    from torchvision import transforms

    channels, size, _ = shape
    common = {
        "scale": tuple(augment.get("scale", (0.08, 1.0))),
        "ratio": tuple(augment.get("ratio", (3 / 4, 4 / 3))),
        "hflip": float(augment.get("hflip", 0.0)),
        "color_jitter": float(augment.get("color_jitter", 0.0)) or None,
        "auto_augment": augment.get("auto_augment"),
        "interpolation": augment.get("interpolation", interpolation),
        "re_prob": float(augment.get("random_erasing", 0.0)),
        "re_mode": "pixel",
    }

    def parts(mean: list[float], std: list[float]) -> tuple[Any, Any, Any]:
        made = create_transform(shape, is_training=True, separate=True, mean=tuple(mean), std=tuple(std), **common)
        return made  # type: ignore[return-value]

    # Colour steps fill borders with a three-channel mean, whatever the model's number of channels.
    crop, colour, _ = parts(mean * (3 // channels), std * (3 // channels))
    _keep_zero_bits(colour)
    _, _, final = parts(mean, std)
    if "scale" not in augment and "ratio" not in augment:
        flip = transforms.RandomHorizontalFlip(common["hflip"])
        padding = int(augment.get("padding_crop", 0))
        if padding:
            resize = transforms.Resize((size, size), antialias=True)
            crop = transforms.Compose([resize, transforms.RandomCrop(size, padding=padding), flip])
        else:  # the evaluation's resize and crop, without its conversion to a tensor
            crop = transforms.Compose([*plain.transforms[: _tensor_step(plain)], flip])
    return ImageTransform(channels, size, transforms.Compose([crop, colour]), final)


def _tensor_step(pipeline: Any) -> int:
    """Position of the conversion to a tensor in a composed transform."""
    return next(i for i, step in enumerate(pipeline.transforms) if "ToTensor" in type(step).__name__)


def _keep_zero_bits(pipeline: Any) -> None:
    """Let timm's posterize keep 0 bits (a black image, its strongest level), which Pillow 13 refuses with an error."""
    from timm.data import auto_augment

    for step in pipeline.transforms:
        policies = getattr(step, "ops", None) or [op for policy in getattr(step, "policy", []) for op in policy]
        for op in policies:
            if getattr(op, "aug_fn", None) is auto_augment.posterize:
                op.aug_fn = _posterize


def _posterize(image: Any, bits_to_keep: int, **_: Any) -> Any:
    """Top level, so that a transform can be pickled for the workers of a DataLoader."""
    from PIL import Image, ImageOps

    if bits_to_keep >= 8:
        return image
    return ImageOps.posterize(image, bits_to_keep) if bits_to_keep else Image.new(image.mode, image.size)
