"""A hybrid language model by a pattern of mixers.

Not a published model: the decoder that Hymba and DeltaNet are instances of, with its layers in any order. The mixers
are those of the papers: delta (https://arxiv.org/abs/2406.06484), mamba (https://arxiv.org/abs/2312.00752), hymba
(https://arxiv.org/abs/2411.13676), softmax attention with or without a window, and chela.
"""

from __future__ import annotations

from hybridzoo.layers.causal_lm import HybridCausalLM
from hybridzoo.models.hybrid_lm.configuration import HybridLMConfig


class HybridLMForCausalLM(HybridCausalLM):
    """Any stack of mixers, see `HybridLMConfig`."""

    config_class = HybridLMConfig
    family = "hybrid_lm"
