"""Small CHELA models for the tests beside this file."""

from __future__ import annotations

from typing import Any

import torch

from hybridzoo import build_model
from hybridzoo.layers.chela.norms import SequenceBatchNorm

OPTIONS: dict[str, Any] = {"z_width": 8, "value_width": 16, "kernel_dim": 4}
BRANCHES = [[3, 1], [5, 1], [3, 4], [11, 1]]


def make(name: str = "chela_test", options: dict[str, Any] | None = None, **config: Any) -> Any:
    """A model in eval mode in which every parameter and statistic matters."""
    torch.manual_seed(0)
    if options is not None:
        config["mixer_options"] = {**OPTIONS, **options}
    model = build_model(name, **config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for module in model.modules():
            if isinstance(module, SequenceBatchNorm) and module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model


def tokens(model: Any, rows: int = 3, length: int = 40) -> torch.Tensor:
    return torch.randint(1, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


MERGED = {
    "branches": {"short_width": 13, "short_branches": BRANCHES, "branch_norm": "batch"},
    "beside the long one": {"long_short_parallel": 7, "branch_norm": "batch"},
    "no norms": {"short_width": 13, "short_branches": BRANCHES, "long_short_parallel": 5},
    "no identity, long first": {"short_identity": False, "branch_norm": "batch", "conv_order": "long_short"},
}
