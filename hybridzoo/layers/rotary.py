"""Rotary position embedding, half-split convention, with the two NTK scalings of Hymba.

Su et al. 2021, https://arxiv.org/abs/2104.09864; "half-split" means that channel i is turned together with i + d/2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridzoo.errors import ConfigError, unknown

KINDS = ("default", "ntk", "dynamic_ntk")
_FACTOR = 2  # hard-coded in the original Hymba


@dataclass(frozen=True)
class Rotary:
    """Which frequencies.

    `ntk` stretches the base once, for max_positions over original_positions. `dynamic_ntk` stretches it by a row's
    own length as soon as that exceeds original_positions; keys that are cached keep the base of their time, as in the
    original, so with it a cached run differs from one forward beyond that length.

    Args:
        width: of a head; even, above 2 for the NTK kinds.
        theta: base.
        kind: `"default"`, `"ntk"` or `"dynamic_ntk"`.
        max_positions, original_positions: for the NTK kinds.

    Raises:
        ConfigError: an unknown kind or impossible values.
    """

    width: int
    theta: float = 10_000.0
    kind: str = "default"
    max_positions: int = 2048
    original_positions: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(unknown("rope_type", self.kind, KINDS))
        if self.width % 2 or self.width < 2:
            raise ConfigError(
                f"rotary embedding turns pairs of channels: the head width must be even, got {self.width}"
            )
        if self.kind != "default" and (self.original_positions is None or self.width < 4):
            raise ConfigError(f"rope_type={self.kind!r} needs orig_max_position_embeddings and heads of at least 4")

    def _stretched(self, length: Tensor | float) -> Tensor | float:
        original = self.original_positions or 1
        growth = _FACTOR * length / original - (_FACTOR - 1)
        return self.theta * growth ** (self.width / (self.width - 2))

    def tables(self, positions: Tensor, lengths: Tensor | int) -> tuple[Tensor, Tensor]:
        """cos and sin, fp32.

        Args:
            positions: (1 or B, T).
            lengths: positions seen in all after this call, broadcastable to (1 or B, T); used by `dynamic_ntk`.

        Returns:
            Two (1 or B, T, width / 2).
        """
        powers = torch.arange(0, self.width, 2, device=positions.device, dtype=torch.float32) / self.width
        if self.kind == "dynamic_ntk":
            seen = torch.as_tensor(lengths, device=positions.device, dtype=torch.float32)
            grown = torch.where(seen > (self.original_positions or 1), self._stretched(seen), self.theta)
            base = grown.expand(positions.shape).unsqueeze(2)  # (B, T, 1)
            angles = positions.unsqueeze(2).float() * (1.0 / base**powers)
        else:
            base = self._stretched(self.max_positions) if self.kind == "ntk" else self.theta
            angles = positions.unsqueeze(2).float() * (1.0 / base**powers)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the heads of x.

    Args:
        x: (B, H, T, width).
        cos, sin: (1 or B, T, width / 2); rounded to x's dtype first, as the originals do.
    """
    cos, sin = cos.unsqueeze(1).to(x.dtype), sin.unsqueeze(1).to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
