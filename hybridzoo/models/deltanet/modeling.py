"""DeltaNet: a linear Transformer whose state is corrected by the delta rule, and its hybrids with attention.

Paper: Yang, Wang, Zhang, Shen, Kim 2024, https://arxiv.org/abs/2406.06484.
Original: `fla/models/delta_net` of https://github.com/fla-org/flash-linear-attention.
Ours differs in code only: the mixer is `hybridzoo.layers.delta_mixer`, the decoder the one of all hybrid models.
"""

from __future__ import annotations

from hybridzoo.layers.causal_lm import HybridCausalLM
from hybridzoo.models.deltanet.configuration import DeltaNetConfig


class DeltaNetForCausalLM(HybridCausalLM):
    """DeltaNet with a vocabulary projection, see `DeltaNetConfig`."""

    config_class = DeltaNetConfig
    family = "deltanet"
