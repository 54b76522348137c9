"""Hymba: attention heads and Mamba heads side by side in every layer, meta tokens, shared keys and values.

Paper: Dong et al. 2024, https://arxiv.org/abs/2411.13676. Original: the remote code of nvidia/Hymba-1.5B-Base.
Ours differs where the original's cached decoding disagrees with its own forward: windows are the same for prompts and
decoded tokens (`decode_window="official"` brings the difference back), a cache continues with any number of tokens,
and padding changes nothing.
"""

from __future__ import annotations

from hybridzoo.layers.causal_lm import HybridCausalLM
from hybridzoo.models.hymba.configuration import HymbaConfig


class HymbaForCausalLM(HybridCausalLM):
    """Hymba with a vocabulary projection, see `HymbaConfig`."""

    config_class = HymbaConfig
    family = "hymba"
