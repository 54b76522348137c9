"""The definition of `guided_draw` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def guided_draw_reference(
    logits: Tensor, without: Tensor | None, noise: Tensor | None, scale: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """See `guided_draw`."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    guided = logits.to(wide)
    if without is not None:
        guided = torch.add(without, guided - without, alpha=scale)
    guided = guided if temperature == 1 else guided / temperature
    if noise is None:
        codes = guided.argmax(-1)
    else:
        codes = (guided - noise.clamp_min(torch.finfo(torch.float32).tiny).log_()).argmax(-1)
    chosen = F.cross_entropy(guided.flatten(0, -2), codes.flatten(), reduction="none")
    return codes, -chosen.view(codes.shape)
