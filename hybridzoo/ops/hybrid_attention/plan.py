"""Who sees whom: the mask of causal attention with a window, always-visible first positions, padding and packing.

Legend: B batch, T queries, S keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import InputError


@dataclass(eq=False)
class AttentionPlan:
    """A query at position i sees a key at position j if 0 <= j <= i, and i - j < window or j < prefix.

    Without positions the rows are aligned at their end: key j is at position j, query i at S - T + i. Masks are made
    once and kept, so that layers of one kind share a plan.

    Args:
        q_length, k_length: T and S.
        device: of the mask.
        window: how many keys a query sees, itself included; None for all.
        prefix: the positions 0 to prefix - 1 are seen from everywhere (meta tokens).
        q_positions: (1 or B, T) integers; given together with k_positions.
        k_positions: (1 or B, S) integers; a negative one marks a key that nobody sees.
        q_segments, k_segments: (1 or B, T) and (1 or B, S) integers of packed documents: only keys of the same one are
            seen, and keys of segment -1 from everywhere.
    """

    q_length: int
    k_length: int
    device: torch.device
    window: int | None = None
    prefix: int = 0
    q_positions: Tensor | None = None
    k_positions: Tensor | None = None
    q_segments: Tensor | None = None
    k_segments: Tensor | None = None
    cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise InputError(f"hybrid_attention: window must be at least 1 key (the query's own), it is {self.window}")
        if (self.q_positions is None) != (self.k_positions is None):
            raise InputError("hybrid_attention: give q_positions and k_positions together, or neither")
        if (self.q_segments is None) != (self.k_segments is None):
            raise InputError("hybrid_attention: give q_segments and k_segments together, or neither")
        if self.aligned and self.q_length > self.k_length:
            raise InputError(
                f"hybrid_attention: {self.q_length} queries over {self.k_length} keys cannot be aligned at their end; "
                "give q_positions and k_positions"
            )
        for name, size in (("q", self.q_length), ("k", self.k_length)):
            for kind in ("positions", "segments"):
                x = getattr(self, f"{name}_{kind}")
                if x is not None and (x.dim() != 2 or x.shape[1] != size):
                    raise InputError(
                        f"hybrid_attention: {name}_{kind} must be (1 or B, {size}), it is {tuple(x.shape)}"
                    )

    @property
    def aligned(self) -> bool:
        """No explicit positions."""
        return self.q_positions is None

    @property
    def limited(self) -> bool:
        """The window hides something."""
        return self.window is not None and not (self.aligned and self.window >= self.k_length)

    @property
    def causal(self) -> bool:
        """Plain causal attention of a row over itself."""
        return self.aligned and not self.limited and self.q_length == self.k_length and self.q_segments is None

    @property
    def everything(self) -> bool:
        """Every query sees every key."""
        return self.aligned and not self.limited and self.q_length == 1 and self.q_segments is None

    def positions(self) -> tuple[Tensor, Tensor]:
        """(1 or B, T) and (1 or B, S), also for aligned rows."""
        if self.q_positions is not None and self.k_positions is not None:
            return self.q_positions, self.k_positions
        keys = torch.arange(self.k_length, device=self.device)
        return keys[self.k_length - self.q_length :].unsqueeze(0), keys.unsqueeze(0)

    def mask(self) -> Tensor:
        """(1 or B, 1, T, S) bool, True where a query sees a key."""
        if "mask" not in self.cache:
            q, k = self.positions()
            visible = visible_pairs(q.unsqueeze(2), k.unsqueeze(1), self.window, self.prefix)
            if self.q_segments is not None and self.k_segments is not None:
                other = self.k_segments.unsqueeze(1)
                visible = visible & ((self.q_segments.unsqueeze(2) == other) | (other == -1))
            self.cache["mask"] = visible.unsqueeze(1)
        return self.cache["mask"]


def visible_pairs(q: Any, k: Any, window: int | None, prefix: int) -> Any:
    """The rule of `AttentionPlan` for broadcastable positions."""
    visible = (k <= q) & (k >= 0)
    if window is not None:
        near = q - k < window
        visible = visible & (near | (k < prefix) if prefix else near)
    return visible
