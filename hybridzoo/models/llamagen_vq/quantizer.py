"""The codebook: nearest row, straight-through gradient, and its losses (van den Oord et al. 2017; LlamaGen)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

USAGE_WINDOW = 65536
_ELEMENTS = 1 << 27  # distances held at once


@dataclass
class Quantised:
    """What the quantiser returns.

    Attributes:
        quant: (B, codebook_dim, h, w).
        indices: (B, h, w) int64.
        vq_loss, commit_loss, entropy_loss: scalars, without their weights; None in eval mode.
        usage: share of the codebook among the last indices seen in training; None without the buffer.
    """

    quant: Tensor
    indices: Tensor
    vq_loss: Tensor | None = None
    commit_loss: Tensor | None = None
    entropy_loss: Tensor | None = None
    usage: Tensor | None = None


def entropy_loss(affinity: Tensor, temperature: float = 0.01) -> Tensor:
    """Mean entropy of each position's code distribution less the entropy of their mean; (P, K) -> scalar.

    Low where every position is sure and all codes are used alike (MaskGIT's two terms).
    """
    log_p = F.log_softmax(affinity / temperature, dim=-1)
    p = log_p.exp()
    mean = p.mean(0)
    return -(p * log_p).sum(-1).mean() + (mean * (mean + 1e-5).log()).sum()


class VectorQuantizer(nn.Module):
    """Args: as the fields of the same names in `LlamaGenVQConfig`."""

    def __init__(self, codebook_size: int, codebook_dim: int, l2_norm: bool, entropy: bool, show_usage: bool) -> None:
        super().__init__()
        self.codebook_used: Tensor | None
        self.l2_norm, self.entropy = l2_norm, entropy
        self.embedding = nn.Embedding(codebook_size, codebook_dim)
        self.register_buffer("codebook_used", torch.zeros(USAGE_WINDOW) if show_usage else None)

    def codebook(self) -> Tensor:
        """(K, codebook_dim) rows as they are compared and handed on."""
        rows = self.embedding.weight
        return F.normalize(rows, dim=-1) if self.l2_norm else rows

    def nearest(self, flat: Tensor) -> Tensor:
        """(P, codebook_dim) -> (P,) index of the nearest row; distances in fp32."""
        rows = self.codebook().float()
        squares, columns = rows.square().sum(1), rows.t()
        with torch.autocast(flat.device.type, enabled=False):
            pieces = flat.detach().float().split(max(1, _ELEMENTS // rows.shape[0]))
            found = [(x.square().sum(1, keepdim=True) + squares - 2 * (x @ columns)).argmin(1) for x in pieces]
        return found[0] if len(found) == 1 else torch.cat(found)

    def forward(self, z: Tensor) -> Quantised:
        """(B, codebook_dim, h, w) latents -> their nearest rows."""
        z = z.permute(0, 2, 3, 1)  # (B, h, w, E)
        z = F.normalize(z, dim=-1) if self.l2_norm else z
        indices = self.nearest(z.reshape(-1, z.shape[-1])).view(z.shape[:-1])
        rows = self.codebook().to(z.dtype)[indices]
        out = Quantised((z + (rows - z).detach()).permute(0, 3, 1, 2), indices)
        if self.training:
            wide, target = rows.float(), z.float()
            out.vq_loss = F.mse_loss(wide, target.detach())
            out.commit_loss = F.mse_loss(wide.detach(), target)
            if self.entropy:
                out.entropy_loss = self._entropy(target.reshape(-1, z.shape[-1]))
            if self.codebook_used is not None:
                out.usage = self._note(self.codebook_used, indices)
        return out

    def _entropy(self, flat: Tensor) -> Tensor:
        rows = self.codebook().float()
        distance = flat.square().sum(1, keepdim=True) + rows.square().sum(1) - 2 * flat @ rows.t()
        return entropy_loss(-distance)

    def _note(self, seen: Tensor, indices: Tensor) -> Tensor:
        newest = indices.flatten()[-USAGE_WINDOW:].to(seen)
        seen.copy_(torch.cat((seen[len(newest) :].clone(), newest)))
        used = torch.zeros(len(self.embedding.weight), device=newest.device)
        return used.index_fill_(0, seen.long(), 1.0).mean()

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices -> (B, codebook_dim, h, w) rows."""
        return self.codebook()[indices].permute(0, 3, 1, 2)
