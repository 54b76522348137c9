"""The evaluation transform of an image model's configuration as a transformers image processor."""

from __future__ import annotations

import math
from typing import Any

from transformers import CLIPImageProcessor
from transformers.image_utils import PILImageResampling

RESAMPLE = {
    "nearest": PILImageResampling.NEAREST,
    "lanczos": PILImageResampling.LANCZOS,
    "bilinear": PILImageResampling.BILINEAR,
    "bicubic": PILImageResampling.BICUBIC,
}


def image_processor(config: Any) -> CLIPImageProcessor:
    """Resize the shorter side to image_size / crop_pct, crop the centre, scale to [0, 1], normalise.

    The CLIP processor is the one of transformers' that does exactly these steps with a free choice of each (ConvNeXt's
    has a crop_pct, but stretches images from 384 pixels on). A model of grey images gets them as three equal channels,
    because transformers' processors and pipelines make every image RGB; it takes their mean (see the model's forward).

    Args:
        config: has image_size, crop_pct, interpolation, image_mean, image_std and num_channels.
    """
    side = config.image_size
    repeat = 3 if config.num_channels == 1 else 1
    return CLIPImageProcessor(
        size={"shortest_edge": math.floor(side / config.crop_pct)},
        crop_size={"height": side, "width": side},
        resample=RESAMPLE[config.interpolation],
        image_mean=list(config.image_mean) * repeat,
        image_std=list(config.image_std) * repeat,
        do_convert_rgb=config.num_channels in (1, 3),
    )
