"""What a masked image model learns from: which codes of an image are hidden, which conditions are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridzoo.models.maskmamba.configuration import MaskMambaConfig
from hybridzoo.models.maskmamba.decoding import mask_ratio

EXTRA_DRAWS = 2  # uniforms per image before those of its tokens


@dataclass(frozen=True)
class Masking:
    """From codes and uniform random numbers to a training batch. A plain value: it travels to loader processes.

    Attributes:
        mask_token_id: index of the mask token.
        schedule: share of masked tokens from a uniform number, see `decoding.mask_ratio`.
        drop_rate: share of dropped conditions.
    """

    mask_token_id: int
    schedule: str
    drop_rate: float

    @classmethod
    def of(cls, config: MaskMambaConfig, *, training: bool = True) -> Masking:
        """As the config says; outside training no condition is dropped."""
        return cls(config.mask_token_id, config.mask_schedule, float(config.condition_drop_rate) if training else 0.0)

    def draws(self, tokens: int) -> int:
        """Uniform numbers that an image of so many tokens needs."""
        return EXTRA_DRAWS + tokens

    def __call__(self, codes: Tensor, uniforms: Tensor) -> dict[str, Any]:
        """Mask ceil(share * N) codes of each image, at least one.

        Args:
            codes: (B, N) int64.
            uniforms: (B, `draws(N)`) in [0, 1).

        Returns:
            `input_ids` and `labels` (B, N) int64, `condition_drop` (B,) bool.
        """
        share = mask_ratio(uniforms[:, 0], self.schedule, codes.shape[1])
        count = torch.ceil(share.double() * codes.shape[1]).long().clamp(1, codes.shape[1])
        rank = uniforms[:, EXTRA_DRAWS:].argsort(1).argsort(1)
        masked = rank < count[:, None]
        return {
            "input_ids": codes.masked_fill(masked, self.mask_token_id),
            "labels": codes,
            "condition_drop": uniforms[:, 1] < self.drop_rate,
        }
