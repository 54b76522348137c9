"""Models of MaskMamba's tests."""

from __future__ import annotations

import torch

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(model):
    """Weights large enough that every part shows in the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and "_log" not in name and "conv1d" not in name:
                p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    return model.eval()
