"""What autocast does to a matrix product, asked ahead of one: by layers that write the product's operand themselves."""

from __future__ import annotations

import torch


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that autocast gives to matrix products on a kind of device.

    It only reads autocast's state, so `torch.compile` and `torch.export` fold it into a constant of the graph.

    Args:
        device: a kind, `x.device.type`.

    Returns:
        None outside of autocast, and on "meta", which has none and about which torch raises when asked.
    """
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
