"""Optimizer groups: weight decay where it belongs, and a learning rate per layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from hybridzoo.errors import ConfigError


def param_groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, no_decay_norm_bias: bool, layer_decay: float | None
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

    Returns:
        Dictionaries with `params`, `names`, `weight_decay`, `lr`, `lr_scale`, from the input to the head.

    Raises:
        ConfigError: layer_decay for a model without `layer_groups`, or nothing is trainable.
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
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = _layer_of(name, layers)
        plain = name in without or (no_decay_norm_bias and (parameter.ndim <= 1 or name.endswith(".bias")))
        scale = 1.0 if layer_decay is None else layer_decay ** (len(layers) - 1 - layer)
        group = groups.setdefault(
            (layer, plain),
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


def _layer_of(name: str, layers: list[list[str]]) -> int:
    """The group with the longest prefix that covers `name`; the last group if none does."""
    best, found = -1, len(layers) - 1
    for i, prefixes in enumerate(layers):
        for prefix in prefixes:
            if (name == prefix or name.startswith(prefix.rstrip(".") + ".")) and len(prefix) > best:
                best, found = len(prefix), i
    return found
