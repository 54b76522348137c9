"""The feed-forward part of the decoder's layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hybridzoo.errors import ConfigError, unknown
from hybridzoo.layers.fused import fused, gated

ACTIVATIONS = ("silu", "relu2")


class GatedMLP(nn.Module):
    """silu: down(silu(gate(x)) * up(x)); relu2: down(relu(up(x))^2), which has no gate. No biases.

    Args:
        width: of input and output.
        hidden: of the layer between.
        activation: `"silu"` or `"relu2"`.

    Raises:
        ConfigError: another activation.
    """

    def __init__(self, width: int, hidden: int, activation: str = "silu") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(unknown("MLP activation", activation, ACTIVATIONS))
        self.gate_proj = nn.Linear(width, hidden, bias=False) if activation == "silu" else None
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)"""
        if self.gate_proj is None:
            return self.down_proj(F.relu(self.up_proj(x)).square())
        return self.down_proj(fused(gated, self.gate_proj(x), self.up_proj(x)))


def default_hidden(width: int, ratio: float = 4.0, multiple: int = 256) -> int:
    """Hidden width of a gated MLP with the parameters of a plain one: 2/3 ratio width, rounded up to `multiple`."""
    return multiple * -(-int(width * ratio * 2 / 3) // multiple)
