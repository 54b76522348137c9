"""The 'original' calls the blocks `layers` and the head `head`."""

from __future__ import annotations

import torch


def config_from_original(config: dict | None, state: dict[str, torch.Tensor]) -> dict:
    if config is None:
        depth = len({k.split(".")[1] for k in state if k.startswith("layers.")})
        widths = tuple(state[f"layers.{i}.linear.weight"].shape[0] for i in range(depth))
        return {"widths": widths, "num_labels": state["head.weight"].shape[0]}
    return {"widths": tuple(config["dims"]), "num_labels": config["classes"]}


def from_original(state: dict[str, torch.Tensor], config) -> dict[str, torch.Tensor]:
    state["head.weight"]  # a foreign file has none
    return {k.replace("layers.", "blocks.").replace("head.", "classifier."): v for k, v in state.items()}


def to_original(state: dict[str, torch.Tensor], config) -> dict[str, torch.Tensor]:
    return {k.replace("blocks.", "layers.").replace("classifier.", "head."): v for k, v in state.items()}
