"""How `hybridzoo.loading` loads: dtype, device, strictness, configuration values; checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hybridzoo.errors import ConfigError, unknown

LABEL_KEYS = frozenset({"num_labels", "num_classes", "id2label"})


@dataclass(frozen=True)
class LoadOptions:
    """The same on every path from a name, hub id, folder or file to a model; see `build_model`."""

    revision: str | None = None
    dtype: torch.dtype | str | None = None  # "auto": as in the file
    device: str | torch.device | None = None
    device_map: Any = None
    strict: bool = True
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def new_head(self) -> bool:
        """Another number of classes was asked for: a head of another size keeps its initial values."""
        return bool(LABEL_KEYS & set(self.overrides))


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | str | None:
    """A floating dtype by any of its names, "auto", or None; anything else is a ConfigError."""
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    short = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "float": "float32"}
    found = getattr(torch, short.get(str(dtype), str(dtype).removeprefix("torch.")), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(unknown("dtype", str(dtype), ["float32", "bfloat16", "float16", "float64", "auto"]))
    return found


def as_device(device: str | torch.device | None) -> torch.device | None:
    """A device that exists here, or None; anything else is a ConfigError."""
    if device is None:
        return None
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device={device!r} is not a device: expected 'cpu', 'cuda', 'cuda:1', 'mps' or 'meta'"
        ) from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={str(device)!r}, but torch sees no CUDA device here; use device='cpu'")
    return wanted


def with_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration values with overrides; another number of classes drops the old names of the classes."""
    if LABEL_KEYS & set(overrides):
        values = {k: v for k, v in values.items() if k not in LABEL_KEYS | {"label2id"}}
    return {**values, **overrides}
