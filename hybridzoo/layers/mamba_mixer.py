"""Mamba-1 as a mixer: projection to input and gate, selective state space layer, projection back.

Gu & Dao 2023, https://arxiv.org/abs/2312.00752, figure 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from hybridzoo.layers.mixer import KV, Mixer, MixerContext, MixerInfo, MixerOutput, State, require
from hybridzoo.layers.selective_ssm import SelectiveSSM


@dataclass(frozen=True)
class MambaOptions:
    """Options of `mamba`.

    Args:
        d_state: states per channel.
        d_conv: taps of the convolution.
        expand: inner channels, relative to hidden_size.
        dt_rank: rank of the step sizes; hidden_size / 16, rounded up, if left out.
        conv_bias, proj_bias: biases of the convolution and of the outer projections.
        inner_norms: RMSNorms of dt, B and C.
        dt_init: `"mamba"` (steps of 0.001 to 0.1) or `"zero"`, see `SelectiveSSM`.
    """

    d_state: int = 16
    d_conv: int = 4
    expand: float = 2.0
    dt_rank: int | None = None
    conv_bias: bool = True
    proj_bias: bool = False
    inner_norms: bool = False
    dt_init: str = "mamba"


def ssm_of(hidden_size: int, options: MambaOptions, info: MixerInfo) -> tuple[int, SelectiveSSM]:
    """Inner width and the state space layer that the options describe."""
    inner = int(options.expand * hidden_size)
    require(inner > 0, f"expand={options.expand} leaves no channels of hidden_size={hidden_size}")
    return inner, SelectiveSSM(
        inner,
        options.d_state,
        options.d_conv,
        math.ceil(hidden_size / 16) if options.dt_rank is None else options.dt_rank,
        conv_bias=options.conv_bias,
        inner_norms=options.inner_norms,
        dt_init=options.dt_init,
        info=info,
    )


class MambaMixer(Mixer):
    """Mamba-1."""

    options_class = MambaOptions

    def __init__(self, hidden_size: int, options: MambaOptions, info: MixerInfo) -> None:
        super().__init__()
        inner, self.ssm = ssm_of(hidden_size, options, info)
        self.in_proj = nn.Linear(hidden_size, 2 * inner, bias=options.proj_bias)
        self.out_proj = nn.Linear(inner, hidden_size, bias=options.proj_bias)

    def forward(self, x: Tensor, ctx: MixerContext, state: State | None = None, kv: KV | None = None) -> MixerOutput:
        inner, gate = self.in_proj(x).chunk(2, -1)
        y, state = self.ssm(inner, gate, ctx, state)
        return MixerOutput(self.out_proj(y), state)
