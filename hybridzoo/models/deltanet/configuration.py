"""Configuration of DeltaNet and its hybrids with attention, under fla's names."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict

from hybridzoo.errors import ConfigError, unknown
from hybridzoo.layers.decoder_spec import DecoderConfig, DecoderSpec, layer_spec
from hybridzoo.layers.gated_mlp import default_hidden

ATTENTION_KEYS = ("layers", "num_heads", "num_kv_heads", "qkv_bias", "window_size", "rope_theta")


@strict
class DeltaNetConfig(DecoderConfig):
    """Configuration of `DeltaNetForCausalLM`; the defaults are the 1.3B model of the paper.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_heads: sizes.
        expand_k, expand_v: widths of keys and values, relative to hidden_size.
        use_gate, use_short_conv, conv_size, conv_bias, use_beta, allow_neg_eigval, qk_activation, qk_norm: see
            `hybridzoo.layers.delta_mixer.DeltaOptions`.
        hidden_ratio: the MLP's size where intermediate_size is left out, 2/3 of it rounded up to 256.
        intermediate_size: hidden width of the MLPs.
        norm_eps: of all norms.
        attn: layers that are softmax attention: `{"layers": [1, 3], "num_heads": 16, "num_kv_heads": 16, "qkv_bias":
            False, "window_size": 2048, "rope_theta": 10000.0}`, counted from 0, or a list of such dictionaries.
        max_position_embeddings: the length that the model is trained for; longer inputs warn.
        initializer_range: standard deviation of the random start.
    """

    model_type = "deltanet"

    vocab_size: int = 32000
    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_heads: int = 16
    expand_k: float = 1.0
    expand_v: float = 1.0
    use_gate: bool = False
    use_short_conv: bool = True
    conv_size: int = 4
    conv_bias: bool = False
    use_beta: bool = True
    allow_neg_eigval: bool = False
    qk_activation: str = "silu"
    qk_norm: str = "l2"
    hidden_ratio: float = 4.0
    intermediate_size: int | None = None
    norm_eps: float = 1e-6
    attn: dict[str, Any] | list[dict[str, Any]] | None = None
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None
    use_cache: bool = True

    def decoder_spec(self) -> DecoderSpec:
        if self.num_hidden_layers < 1:
            raise ConfigError(f"num_hidden_layers={self.num_hidden_layers} must be at least 1")
        names = (
            "num_heads",
            "expand_k",
            "expand_v",
            "use_gate",
            "use_short_conv",
            "conv_size",
            "conv_bias",
            "use_beta",
        )
        names += ("allow_neg_eigval", "qk_activation", "qk_norm")
        layers = [layer_spec("delta", {n: getattr(self, n) for n in names})] * self.num_hidden_layers
        for block in self.attention_blocks():
            kind, options = ("swa" if block.get("window_size") else "attention"), {}
            for theirs, ours in (("num_heads",) * 2, ("num_kv_heads",) * 2, ("qkv_bias",) * 2, ("rope_theta",) * 2):
                if block.get(theirs) is not None:
                    options[ours] = block[theirs]
            if kind == "swa":
                options["window"] = block["window_size"]
            for i in block["layers"]:
                if layers[i].kind != "delta":
                    raise ConfigError(f"attn: layer {i} is named twice")
                layers[i] = layer_spec(kind, options)
        hidden = self.intermediate_size
        if hidden is None:
            hidden = default_hidden(self.hidden_size, self.hidden_ratio)
        return DecoderSpec(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layers=tuple(layers),
            intermediate_size=hidden,
            norm_eps=self.norm_eps,
            max_positions=self.max_position_embeddings,
            initializer_range=self.initializer_range,
            padding_idx=self.pad_token_id,
        )

    def attention_blocks(self) -> list[dict[str, Any]]:
        """The dictionaries of `attn`, checked."""
        blocks = [] if self.attn is None else [self.attn] if isinstance(self.attn, dict) else list(self.attn)
        for block in blocks:
            for key in block:
                if key not in ATTENTION_KEYS:
                    raise ConfigError(unknown("key of attn", key, ATTENTION_KEYS))
            if "layers" not in block or "num_heads" not in block:
                raise ConfigError(f"attn={block!r} must have 'layers' (indices from 0) and 'num_heads'")
            for i in block["layers"]:
                if not isinstance(i, int) or not 0 <= i < self.num_hidden_layers:
                    raise ConfigError(f"attn: layer {i!r} is not one of the model's 0 to {self.num_hidden_layers - 1}")
        return blocks
