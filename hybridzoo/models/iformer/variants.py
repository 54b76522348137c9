"""The named sizes of iFormer, as data; imports neither torch nor timm."""

from __future__ import annotations

from typing import Any

from hybridzoo.models.iformer.sizes import attention_ramp

WEIGHTS_REPOSITORY, WEIGHTS_FOLDER = "sail/dl2", "iformer"


def _variant(depths: tuple[int, ...], dims: tuple[int, ...], heads: tuple[int, ...], ramp: tuple) -> dict[str, Any]:
    return {
        "depths": depths,
        "embed_dims": dims,
        "num_heads": heads,
        "attention_heads": tuple(attention_ramp(depths, ramp)),
    }


SMALL = _variant((3, 3, 9, 3), (96, 192, 320, 384), (3, 6, 10, 12), (1, 3, (7, 9), 11))
BASE = _variant((4, 6, 14, 6), (96, 192, 384, 512), (3, 6, 12, 16), (1, 3, (8, 10), 15))
LARGE = _variant((4, 6, 18, 8), (96, 192, 448, 640), (3, 6, 14, 20), (1, 3, (10, 12), 19))

TEST = _variant((1, 1, 2, 1), (16, 32, 48, 64), (2, 4, 6, 8), (1, 2, (4, 5), 7)) | {
    "image_size": 32,
    "stem_stride": 2,
    "num_labels": 10,
}

# Fashion-MNIST: 28x28 grey. A stem without stride keeps maps of 28, 14, 7 and 4.
MINI = _variant((2, 2, 4, 2), (32, 64, 128, 160), (2, 4, 8, 10), (1, 2, (5, 6), 9)) | {
    "image_size": 28,
    "num_channels": 1,
    "image_mean": (0.2860,),
    "image_std": (0.3530,),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "stem_stride": 1,
    "layer_scale_init_value": 0.1,
    "num_labels": 10,
}
MINI_ATTENTION = MINI | {"high_mixer": "attention"}
