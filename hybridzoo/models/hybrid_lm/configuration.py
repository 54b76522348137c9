"""Configuration of a hybrid language model by a pattern of mixers."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict

from hybridzoo.errors import ConfigError, unknown
from hybridzoo.layers.decoder_spec import DecoderConfig, DecoderSpec, LayerSpec, layer_spec, share_kv
from hybridzoo.layers.gated_mlp import default_hidden
from hybridzoo.layers.mixer import letters, parse_pattern

DEFAULT_PATTERN = "DDDA"  # transformers makes configurations without arguments


@strict
class HybridLMConfig(DecoderConfig):
    """Configuration of `HybridLMForCausalLM`.

    Args:
        vocab_size, hidden_size: sizes of the embedding.
        pattern: a letter for each layer, repeated to num_hidden_layers: D delta, M mamba, A attention, S swa (sliding
            window attention), C chela, H hymba. Spaces are ignored. `"DDDA"` if neither this nor layers is given.
        num_hidden_layers: the pattern's length if left out.
        mixers: options of each kind, `{"delta": {"num_heads": 4}, "swa": {"window": 512}}`.
        layers: instead of a pattern, one dictionary a layer: `{"mixer": "delta", ...options}`; they add to and override
            those of `mixers`.
        kv_groups: lists of consecutive layers; those after the first read the keys and values of the first.
        num_meta_tokens: learned rows in front of every sequence, seen from everywhere.
        intermediate_size: hidden width of the MLPs; 8/3 hidden_size rounded up to 64 if left out, 0 for none.
        mlp_activation: `"silu"` (gated) or `"relu2"`.
        norm_eps: of all RMSNorms.
        max_position_embeddings: the length that the model is trained for; longer inputs warn.
        initializer_range: standard deviation of the random start.
    """

    model_type = "hybrid_lm"

    vocab_size: int = 32000
    hidden_size: int = 512
    pattern: str | None = None
    num_hidden_layers: int | None = None
    mixers: dict[str, Any] | None = None
    layers: list[dict[str, Any]] | None = None
    kv_groups: list[list[int]] | None = None
    num_meta_tokens: int = 0
    intermediate_size: int | None = None
    mlp_activation: str = "silu"
    norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None
    use_cache: bool = True

    def decoder_spec(self) -> DecoderSpec:
        layers = self._layers()
        if self.num_hidden_layers is None:
            self.num_hidden_layers = len(layers)
        if self.num_hidden_layers != len(layers):
            raise ConfigError(
                f"num_hidden_layers={self.num_hidden_layers}, but `layers` describes {len(layers)}; leave one out"
            )
        hidden = self.intermediate_size
        return DecoderSpec(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layers=share_kv(layers, self.kv_groups or ()),
            intermediate_size=default_hidden(self.hidden_size, multiple=64) if hidden is None else hidden,
            mlp_activation=self.mlp_activation,
            norm_eps=self.norm_eps,
            num_meta_tokens=self.num_meta_tokens,
            max_positions=self.max_position_embeddings,
            initializer_range=self.initializer_range,
        )

    def _layers(self) -> list[LayerSpec]:
        options = self.mixers or {}
        for kind, values in options.items():
            if kind not in letters().values():
                raise ConfigError(unknown("mixer", kind, letters().values(), "(in `mixers`)"))
            if not isinstance(values, dict):
                raise ConfigError(f"mixers[{kind!r}] must be a dictionary of options, got {values!r}")
            layer_spec(kind, values)
        if self.pattern is not None and self.layers is not None:
            raise ConfigError("give either pattern, such as 'DDDA', or layers, a list of {'mixer': kind, ...options}")
        if self.layers is None:
            kinds = parse_pattern(DEFAULT_PATTERN if self.pattern is None else self.pattern, self.num_hidden_layers)
            return [layer_spec(kind, options.get(kind, {})) for kind in kinds]
        found = []
        for i, entry in enumerate(self.layers or []):
            own = dict(entry)
            kind = own.pop("mixer", None)
            if kind is None:
                raise ConfigError(f"layers[{i}]={entry!r} names no mixer; expected {{'mixer': 'delta', ...options}}")
            if kind not in letters().values():
                raise ConfigError(unknown("mixer", str(kind), letters().values(), f"(in layers[{i}])"))
            found.append(layer_spec(kind, {**options.get(kind, {}), **own}))
        if not found:
            raise ConfigError("layers is empty; a model needs at least one")
        return found
