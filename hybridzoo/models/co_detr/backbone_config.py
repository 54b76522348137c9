"""What the backbones of Co-DETR are called, their sizes, and their maps. Imports neither torch nor timm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridzoo.errors import ConfigError, unknown

BACKBONES = ("resnet", "swin", "vit", "timm")

# kind -> every key with its default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "resnet": {  # ResNet with bottlenecks, stride on the 3x3 convolution
        "stem_channels": 64,
        "channels": [256, 512, 1024, 2048],
        "depths": [3, 4, 6, 3],
        "out_stages": [1, 2, 3, 4],
        "frozen_stages": 1,  # the stem and so many stages are not trained; -1: all are
    },
    "swin": {
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "window_size": 7,
        "mlp_ratio": 4.0,
        "drop_path_rate": 0.0,
        "out_stages": [1, 2, 3, 4],
    },
    "vit": {  # one map of stride 16, made into five by the simple feature pyramid
        "embed_dim": 1024,
        "depth": 24,
        "num_heads": 16,
        "mlp_dim": 2730,
        "patch_size": 16,
        "window_size": 24,
        "global_blocks": [3, 7, 11, 15, 19, 23],
        "rope_points": 16,  # positions are scaled to this many points a side
        "rope_grid": None,  # side of the token grid that global blocks are fixed to (LSJ); None: any
        "pretrain_grid": 32,
        "drop_path_rate": 0.0,
    },
    "timm": {
        "name": "tf_efficientnet_lite0",
        "out_indices": [1, 2, 3, 4],
        "channels": [24, 40, 112, 320],
        "strides": [4, 8, 16, 32],
        "drop_path_rate": 0.0,
    },
}


@dataclass(frozen=True)
class Facts:
    """The maps that reach the neck."""

    channels: list[int]
    strides: list[int]


def complete(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with defaults filled in, lists for tuples; an unknown key raises ConfigError."""
    defaults = DEFAULTS[kind]
    for key in values:
        if key not in defaults:
            raise ConfigError(unknown(f"key of backbone_config for backbone={kind!r}", key, defaults))
    merged = {**defaults, **values}
    merged = {k: list(v) if isinstance(v, (tuple, list)) else v for k, v in merged.items()}
    _check(kind, merged)
    return merged


def _check(kind: str, values: dict[str, Any]) -> None:
    stages = {"resnet": values.get("channels"), "swin": values.get("depths")}.get(kind)
    if stages is not None:
        out = values["out_stages"]
        if not out or out != sorted(set(out)) or out[0] < 1 or out[-1] > len(stages):
            raise ConfigError(f"backbone_config: out_stages={out} must be rising numbers from 1 to {len(stages)}")
        if len(values["depths"]) != len(stages):
            raise ConfigError(f"backbone_config: depths={values['depths']} must have {len(stages)} values")
    if kind == "timm" and not len(values["out_indices"]) == len(values["channels"]) == len(values["strides"]):
        raise ConfigError("backbone_config: out_indices, channels and strides of a timm backbone must be of one length")
    if kind == "vit" and values["embed_dim"] % (4 * values["num_heads"]):
        raise ConfigError(
            f"backbone_config: embed_dim={values['embed_dim']} must be a multiple of {4 * values['num_heads']}"
        )


def backbone_facts(kind: str, values: Mapping[str, Any]) -> Facts:
    """Channels and strides of the maps that the neck gets from a complete `backbone_config`."""
    if kind == "resnet":
        out = values["out_stages"]
        return Facts([values["channels"][i - 1] for i in out], [2 ** (i + 1) for i in out])
    if kind == "swin":
        out = values["out_stages"]
        return Facts([values["embed_dim"] * 2 ** (i - 1) for i in out], [2 ** (i + 1) for i in out])
    if kind == "vit":
        patch = values["patch_size"]
        return Facts([values["embed_dim"]] * 5, [patch // 4, patch // 2, patch, 2 * patch, 4 * patch])
    return Facts(list(values["channels"]), list(values["strides"]))
