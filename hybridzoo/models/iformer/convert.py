"""Between the original iFormer's checkpoints and the zoo's: the same keys, behind one prefix.

The original is sail-sg/iFormer, `models/inception_transformer.py`. Its published 384-pixel files hold the position
tables of 224 pixels although its own 384-pixel constructors build larger ones; the size of the tables is therefore read
from the weights, never from the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from hybridzoo.errors import CheckpointError, ConfigError, unknown
from hybridzoo.models.iformer.blocks import resize_table, table_sides
from hybridzoo.models.iformer.sizes import NUM_STAGES

PREFIX = "iformer."
PUBLISHED_HEAD_DIM = 32
# The original constructor's arguments -> ours.
ARGUMENTS = {
    "img_size": "image_size",
    "in_chans": "num_channels",
    "num_classes": "num_labels",
    "depths": "depths",
    "embed_dims": "embed_dims",
    "num_heads": "num_heads",
    "attention_heads": "attention_heads",
    "use_layer_scale": "use_layer_scale",
    "layer_scale_init_value": "layer_scale_init_value",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "norm_eps": "norm_eps",
    "drop_rate": "proj_drop_rate",
    "drop_path_rate": "drop_path_rate",
}


def config_from_original(config: Mapping[str, Any] | None, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Values of `IFormerConfig` for a checkpoint in the original's layout.

    Args:
        config: keyword arguments of the original's `InceptionTransformer`; None reads everything from the shapes, which
            needs heads of the published width, 32.
        state: the checkpoint, original keys.

    Raises:
        ConfigError: an unknown argument, or sizes that the shapes do not tell.
        CheckpointError: not an iFormer checkpoint.
    """
    values = shapes_to_config(state, read_heads=config is None)
    for key, value in (config or {}).items():
        if key not in ARGUMENTS:
            raise ConfigError(unknown("argument of the original iFormer", key, ARGUMENTS))
        values[ARGUMENTS[key]] = value
    if isinstance(values["image_size"], (list, tuple)):
        values["image_size"] = values["image_size"][0]
    channels = values["num_channels"]
    if channels != 3:  # no published statistics: the neutral ones
        values |= {"image_mean": [0.5] * channels, "image_std": [0.5] * channels}
    if values["position_size"] == values["image_size"]:
        del values["position_size"]
    return values


def shapes_to_config(state: Mapping[str, torch.Tensor], *, read_heads: bool) -> dict[str, Any]:
    """What the shapes of a checkpoint tell of its configuration (see `config_from_original`)."""
    missing = [k for k in ("pos_embed1", "patch_embed.proj1.weight", "head.weight") if k not in state]
    if missing:
        some = ", ".join(list(state)[:5])
        raise CheckpointError(
            f"this is no checkpoint of the original iFormer: no {', '.join(missing)} (it has {some}, …)"
        )
    dims = [state[f"pos_embed{k}"].shape[-1] for k in range(1, NUM_STAGES + 1) if f"pos_embed{k}" in state]
    depths = [len({k.split(".")[1] for k in state if k.startswith(f"blocks{s}.")}) for s in range(1, NUM_STAGES + 1)]
    side = state["pos_embed1"].shape[1] * 4  # the original's stem has stride 4
    values = {
        "image_size": side,
        "position_size": side,
        "num_channels": state["patch_embed.proj1.weight"].shape[1],
        "num_labels": state["head.weight"].shape[0],
        "embed_dims": dims,
        "depths": depths,
        "use_layer_scale": "blocks3.0.layer_scale_1" in state,
    }
    if not read_heads:
        return values
    lows = [
        state[f"blocks{k}.{j}.attn.low_mixer.qkv.weight"].shape[1]
        for k in range(1, NUM_STAGES + 1)
        for j in range(depths[k - 1])
    ]
    if any(width % PUBLISHED_HEAD_DIM for width in [*dims, *lows]):
        raise ConfigError(
            f"the number of heads cannot be read from these shapes: the widths {sorted({*dims, *lows})} are not all "
            f"multiples of {PUBLISHED_HEAD_DIM}, the published head width. Give config={{'num_heads': [...], "
            "'attention_heads': [...]} as for the original's constructor"
        )
    hidden = state["blocks1.0.mlp.fc1.weight"].shape[0]
    return values | {
        "num_heads": [d // PUBLISHED_HEAD_DIM for d in dims],
        "attention_heads": [low // PUBLISHED_HEAD_DIM for low in lows],
        "mlp_ratio": hidden / dims[0],
        "qkv_bias": "blocks1.0.attn.low_mixer.qkv.bias" in state,
    }


def fit_tables(state: Mapping[str, torch.Tensor], sides: list[tuple[int, int]], prefix: str = "") -> dict[str, Any]:
    """The state with each position table `{prefix}pos_embed1..4` at the (height, width) of `sides`.

    Tables of that size pass through untouched; others are resized as the forward would do it.
    """
    state = dict(state)
    for k, size in enumerate(sides, start=1):
        table = state.get(f"{prefix}pos_embed{k}")
        if table is not None and table.ndim == 4 and tuple(table.shape[1:3]) != size:
            state[f"{prefix}pos_embed{k}"] = resize_table(table.float(), size).to(table.dtype).contiguous()
    return state


def from_original(state: Mapping[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """Original keys -> the zoo's. Position tables are brought to the size that the configuration asks for."""
    state = fit_tables(state, table_sides(config.position_size or config.image_size, config.stem_stride))
    return {PREFIX + key: value for key, value in state.items()}


def to_original(state: Mapping[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """The zoo's keys -> the original's.

    Raises:
        ConfigError: a network that the original cannot express.
    """
    if config.stem_stride != 4 or config.high_mixer != "inception":
        raise ConfigError(
            f"stem_stride={config.stem_stride}, high_mixer={config.high_mixer!r}: the original iFormer has only "
            "stem_stride=4 and high_mixer='inception'"
        )
    return {re.sub(rf"^{re.escape(PREFIX)}", "", key): value for key, value in state.items()}
