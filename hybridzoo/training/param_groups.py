"""Optimizer groups: weight decay where it belongs, and a learning rate per layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hybridzoo.errors import ConfigError, unknown


def param_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    no_decay_norm_bias: bool,
    layer_decay: float | None,
    lr_scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups for AdamW over the trainable parameters.

    Without decay: one-dimensional parameters and names that end in `.bias` (if `no_decay_norm_bias`, timm's rule), and
    always what `model.no_weight_decay()` names. With `layer_decay` d and G groups of `model.layer_groups()` (input
    first), group g learns at `learning_rate * d ** (G - 1 - g)`; parameters in no group belong to the last (the head).

    Args:
        model: a plain model, not wrapped for distribution.
        learning_rate: of the last group.
        weight_decay: of the parameters that have it.
        no_decay_norm_bias: see above.
        layer_decay: factor per group, or None.
        lr_scales: factors on the learning rate of parameters whose name holds the key as whole dotted parts
            (`{"backbone": 0.1, "sampling_offsets": 0.1}`); the longest matching key counts, 0 freezes.

    Returns:
        Dictionaries with `params`, `names`, `weight_decay`, `lr`, `lr_scale`, from the input to the head.

    Raises:
        ConfigError: layer_decay for a model without `layer_groups`, a key of lr_scales that no parameter has, or
            nothing is trainable.
    """
    without = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    layers: list[list[str]] = [[]]
    if layer_decay is not None:
        if not hasattr(model, "layer_groups"):
            raise ConfigError(
                f"training.layer_decay={layer_decay}: {type(model).__name__} has no layer_groups(), so its layers have "
                "no order; set training.layer_decay=null"
            )
        layers = model.layer_groups()  # type: ignore[operator]
    scales = dict(lr_scales or {})
    _check_scales(scales, model)
    groups: dict[tuple[int, bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = _layer_of(name, layers)
        plain = name in without or (no_decay_norm_bias and (parameter.ndim <= 1 or name.endswith(".bias")))
        scale = 1.0 if layer_decay is None else layer_decay ** (len(layers) - 1 - layer)
        factor = _scale_of(name, scales)
        scale *= factor
        group = groups.setdefault(
            (layer, plain, factor),
            {
                "params": [],
                "names": [],
                "weight_decay": 0.0 if plain else weight_decay,
                "lr": learning_rate * scale,
                "lr_scale": scale,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ConfigError(f"nothing to train: no parameter of {type(model).__name__} requires a gradient")
    return [groups[key] for key in sorted(groups)]


def _scale_of(name: str, scales: Mapping[str, float]) -> float:
    """The factor of the longest key that `name` holds as whole dotted parts; 1 if none."""
    found = [key for key in scales if f".{key}." in f".{name}."]
    return scales[max(found, key=len)] if found else 1.0


def _check_scales(scales: Mapping[str, float], model: nn.Module) -> None:
    names = [f".{name}." for name, _ in model.named_parameters()]
    parts = {part for name in names for part in name.strip(".").split(".")}
    for key in scales:
        if not any(f".{key}." in name for name in names):
            raise ConfigError(unknown(f"key of training.lr_scales for {type(model).__name__}", key, parts))


def _layer_of(name: str, layers: list[list[str]]) -> int:
    """The group with the longest prefix that covers `name`; the last group if none does."""
    best, found = -1, len(layers) - 1
    for i, prefixes in enumerate(layers):
        for prefix in prefixes:
            if (name == prefix or name.startswith(prefix.rstrip(".") + ".")) and len(prefix) > best:
                best, found = len(prefix), i
    return found
