"""A trained encoder made to take longer sequences, as a start for training on them."""

from __future__ import annotations

import copy
from typing import Any

import torch

from hybridzoo.errors import ConfigError
from hybridzoo.layers.chela.long_conv import MultiScaleConv


@torch.no_grad()
def lengthened(model: Any, max_length: int) -> Any:
    """A copy of a CHELA classifier or of its baselines for sequences of up to `max_length`, equal to `model` on those
    that it takes.

    The long convolutions get further sub-kernels, of zeros: positions farther away than the old limit are seen by the
    attention alone until the copy is trained.

    Args:
        model: of mixer "chela" or "attention", whose long kernels are as long as its sequences (`kernel_length` None).
        max_length: above the model's.

    Returns:
        The copy, in the model's mode.

    Raises:
        ConfigError: Mega, a kernel of fixed length, or a length that is not above the model's.
    """
    config = copy.deepcopy(model.config)
    options = config.options() if config.mixer == "chela" else None
    if config.mixer == "mega" or (options and options.use_long and (options.kernel_length or options.n_scales)):
        raise ConfigError(
            "lengthened() is for mixers 'chela' and 'attention', with long kernels that follow max_length"
        )
    if max_length <= config.max_length:
        raise ConfigError(f"max_length={max_length} is not above the model's {config.max_length}")
    config.max_length = max_length
    longer = type(model)(config).to(next(model.parameters()).dtype)
    weights = model.state_dict()
    for name, module in longer.named_modules():
        if not isinstance(module, MultiScaleConv):
            continue
        old = model.get_submodule(name)
        more = len(module.kernel_list) - len(old.kernel_list)
        for i in range(len(old.kernel_list), len(module.kernel_list)):
            weights[f"{name}.kernel_list.{i}"] = torch.zeros_like(module.kernel_list[i])
        # each further scale weighs the ones before it by the multiplier once more
        weights[f"{name}.kernel_norm"] = old.kernel_norm * old.multiplier.to(old.kernel_norm.dtype) ** more
    longer.load_state_dict(weights)
    return longer.train(model.training)
