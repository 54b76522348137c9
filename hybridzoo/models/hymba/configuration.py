"""Configuration of Hymba, under the names of the original."""

from __future__ import annotations

from typing import Literal

from huggingface_hub.dataclasses import strict

from hybridzoo.errors import ConfigError
from hybridzoo.layers.decoder_spec import DecoderConfig, DecoderSpec, LayerSpec, layer_spec, share_kv


@strict
class HymbaConfig(DecoderConfig):
    """Configuration of `HymbaForCausalLM`; the defaults are Hymba-1.5B.

    Args:
        vocab_size, hidden_size, intermediate_size, num_hidden_layers: sizes; intermediate_size 0 leaves the MLPs out.
        num_attention_heads, num_key_value_heads: of the attention branch.
        mamba_d_state, mamba_d_conv, mamba_expand, mamba_dt_rank, mamba_conv_bias, mamba_proj_bias: of the Mamba branch;
            dt_rank is hidden_size / 16, rounded up, if left out; proj_bias also concerns the shared projections.
        mamba_inner_layernorms: norms of dt, B and C.
        num_memory_tokens: meta tokens in front of every sequence.
        sliding_window: W; a query sees W tokens before itself, and all meta tokens. None: everything.
        global_attn_idx: layers that see everything.
        kv_reuse_group: lists of consecutive layers; those after the first read its keys and values.
        rope, rope_theta, rope_type: rotary positions, `"default"` (or None), `"ntk"` or `"dynamic_ntk"`.
        max_position_embeddings, orig_max_position_embeddings: trained length, and the one that NTK stretches from.
        kq_norm: `"none"`, `"rms"` or `"perhead-rms"`.
        mlp_hidden_act: `"silu"` or `"relu2"`.
        rms_norm_eps: of all norms.
        decode_window: `"consistent"`: a decoded token sees as much as the same token in a prompt. `"official"`: one key
            fewer in windowed layers, as NVIDIA's cached decoding does.
        dt_init: random start of dt's bias: `"zero"` as in the original code, or `"mamba"`.
        initializer_range: standard deviation of the random start.
    """

    model_type = "hymba"

    vocab_size: int = 32001
    hidden_size: int = 1600
    intermediate_size: int = 5504
    num_hidden_layers: int = 32
    num_attention_heads: int = 25
    num_key_value_heads: int = 5
    mamba_d_state: int = 16
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_dt_rank: int | None = None
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    mamba_inner_layernorms: bool = True
    num_memory_tokens: int = 128
    sliding_window: int | None = 1024
    global_attn_idx: list[int] | None = None
    kv_reuse_group: list[list[int]] | None = None
    rope: bool = True
    rope_theta: float = 10000.0
    rope_type: str | None = "ntk"
    max_position_embeddings: int = 8192
    orig_max_position_embeddings: int | None = 2048
    kq_norm: str = "none"
    mlp_hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    decode_window: Literal["consistent", "official"] = "consistent"
    dt_init: str = "zero"
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = 0
    use_cache: bool = True

    def decoder_spec(self) -> DecoderSpec:
        depth = self.num_hidden_layers
        wide = set(self.global_attn_idx or ())
        if depth < 1 or not wide <= set(range(depth)):
            raise ConfigError(
                f"global_attn_idx={sorted(wide)} must be layers of the model, which has {depth} (0 to {depth - 1})"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ConfigError(f"sliding_window={self.sliding_window} must be at least 1, or None")
        layers = [self._layer(None if i in wide else self.sliding_window) for i in range(depth)]
        return DecoderSpec(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layers=share_kv(layers, self.kv_reuse_group or (), "kv_reuse_group"),
            intermediate_size=self.intermediate_size,
            mlp_activation=self.mlp_hidden_act,
            norm_eps=self.rms_norm_eps,
            round_first=True,
            num_meta_tokens=self.num_memory_tokens,
            max_positions=self.max_position_embeddings,
            initializer_range=self.initializer_range,
            padding_idx=self.pad_token_id,
        )

    def _layer(self, window: int | None) -> LayerSpec:
        return layer_spec(
            "hymba",
            {
                "num_heads": self.num_attention_heads,
                "num_kv_heads": self.num_key_value_heads,
                "window": None if window is None else window + 1,  # W tokens before itself, and itself
                "rope": self.rope,
                "rope_theta": self.rope_theta,
                "rope_type": self.rope_type or "default",
                "rope_original_positions": self.orig_max_position_embeddings,
                "qk_norm": self.kq_norm,
                "d_state": self.mamba_d_state,
                "d_conv": self.mamba_d_conv,
                "expand": self.mamba_expand,
                "dt_rank": self.mamba_dt_rank,
                "conv_bias": self.mamba_conv_bias,
                "proj_bias": self.mamba_proj_bias,
                "inner_norms": self.mamba_inner_layernorms,
                "dt_init": self.dt_init,
            },
        )
