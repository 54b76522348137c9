"""Annotations are strings here on purpose: they must be checked all the same."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from hybridzoo.configuration import ZooConfig
from hybridzoo.errors import ConfigError


@strict
class ToyConfig(ZooConfig):
    model_type = "hybridzoo_toy"

    widths: tuple[int, ...] = (8, 8)
    image_size: int = 16
    num_channels: int = 3
    image_mean: list[float] | None = None
    dropout: float = 0.1
    tie_blocks: bool = False

    def validate_values(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout={self.dropout} must lie in [0, 1)")
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"widths={self.widths} must name at least one positive width")
