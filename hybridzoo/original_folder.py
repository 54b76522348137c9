"""Folders as the original's authors published them: their config.json beside their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hybridzoo import registry
from hybridzoo.checkpoint_io import INDEX_SUFFIX, read_state_dict
from hybridzoo.errors import CheckpointError
from hybridzoo.registry import Family

WEIGHT_NAMES = ("model.safetensors", f"model{INDEX_SUFFIX}", "pytorch_model.bin")


def is_original(family: Family, values: Mapping[str, Any]) -> bool:
    """Whether a config.json is the original's: by its model type, or because the converter knows."""
    if values.get("model_type") != family.model_type:
        return True
    knows = getattr(registry.resolve(family.convert), "is_original_config", None) if family.convert else None
    return knows is not None and knows(values)


def read_original_folder(
    folder: Path, family: Family, values: Mapping[str, Any], shown: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Values of the family's configuration, and the weights in the original's layout.

    Args:
        folder: where both lie.
        family: that the model type named.
        values: of config.json.
        shown: the folder's name for errors.

    Raises:
        CheckpointError: no weights, or weights of something else.
        ConfigError: a configuration that does not fit.
    """
    path = next((folder / name for name in WEIGHT_NAMES if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{shown} has a config.json of the original {family.title}, but none of {', '.join(WEIGHT_NAMES)}"
        )
    state = read_state_dict(path)
    return registry.resolve(family.convert or "").config_from_original(dict(values), state), state
