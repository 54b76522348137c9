"""Inputs and networks of the iFormer tests."""

from __future__ import annotations

import torch

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(model):
    """Random weights of order one, so that every path of the network shows in the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                fan_in = 1 if "pos_embed" in name else p[0].numel()
                p.copy_(torch.randn(p.shape, generator=generator) / fan_in**0.5)
            elif "layer_scale" in name:
                p.fill_(0.5)
    return model.eval()
