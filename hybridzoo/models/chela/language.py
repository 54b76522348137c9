"""CHELA as a causal language model, on the decoder that all hybrid language models of the zoo share.

The paper's language models are known by their tasks only (WikiText-103, enwik8). Here a layer is RMSNorm, the causal
CHELA mixer, RMSNorm and a gated MLP, with tied embeddings (docs/models/chela.md).
"""

from __future__ import annotations

from typing import Self

from transformers import GenerationConfig

from hybridzoo.errors import InputError
from hybridzoo.layers.causal_lm import HybridCausalLM
from hybridzoo.layers.chela.block import merge_convolutions, undecayed
from hybridzoo.models.chela.configuration import ChelaConfig


class ChelaForCausalLM(HybridCausalLM):
    """Causal CHELA with a vocabulary projection, see `ChelaConfig`."""

    config_class = ChelaConfig
    config: ChelaConfig
    family = "chela"

    def __init__(self, config: ChelaConfig) -> None:
        super().__init__(config)
        fresh = GenerationConfig()
        for name in ("max_length", "temperature"):  # the configuration's are no defaults of `generate`
            setattr(self.generation_config, name, getattr(fresh, name))

    def reparameterize(self) -> Self:
        """Merge parallel convolutions for deployment, in place; see `ChelaPreTrainedModel.reparameterize`."""
        if self.training:
            raise InputError("reparameterize() merges running statistics: call eval() first")
        merge_convolutions(self, self.config)
        return self

    def no_weight_decay(self) -> set[str]:
        """As `ChelaPreTrainedModel.no_weight_decay`."""
        return undecayed(self)
