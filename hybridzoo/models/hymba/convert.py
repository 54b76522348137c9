"""Between NVIDIA's Hymba checkpoints and the zoo's.

    model.memory_tokens                         <->  model.meta_tokens
    model.final_layernorm                       <->  model.norm
    model.layers.i.input_layernorm              <->  model.layers.i.mixer_norm
    model.layers.i.pre_moe_layernorm            <->  model.layers.i.mlp_norm
    model.layers.i.moe.experts.0.*              <->  model.layers.i.mlp.*
    model.layers.i.mamba.{in,out}_proj          <->  model.layers.i.mixer.{in,out}_proj
    model.layers.i.mamba.pre_avg_layernorm1, 2  <->  model.layers.i.mixer.attention_norm, ssm_norm
    model.layers.i.mamba.self_attn.{q,k}_norm   <->  model.layers.i.mixer.{q,k}_norm
    model.layers.i.mamba.{dt,B,C}_layernorm     <->  model.layers.i.mixer.ssm.{dt,B,C}_norm
    model.layers.i.mamba.{x_proj.0, A_log.0, …} <->  model.layers.i.mixer.ssm.{x_proj, A_log, …}

Layers that read another layer's keys own a k_norm in the original that is never used; it is dropped on the way in and
written as ones on the way out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from hybridzoo.errors import CheckpointError, ConfigError, unknown
from hybridzoo.models.hymba.configuration import HymbaConfig

_RENAMED = (
    (r"^model\.memory_tokens$", "model.meta_tokens"),
    (r"^model\.final_layernorm\.", "model.norm."),
    (r"^(model\.layers\.\d+)\.input_layernorm\.", r"\1.mixer_norm."),
    (r"^(model\.layers\.\d+)\.pre_moe_layernorm\.", r"\1.mlp_norm."),
    (r"^(model\.layers\.\d+)\.moe\.experts\.0\.", r"\1.mlp."),
    (r"^(model\.layers\.\d+)\.mamba\.(in_proj|out_proj)\.", r"\1.mixer.\2."),
    (r"^(model\.layers\.\d+)\.mamba\.pre_avg_layernorm1\.", r"\1.mixer.attention_norm."),
    (r"^(model\.layers\.\d+)\.mamba\.pre_avg_layernorm2\.", r"\1.mixer.ssm_norm."),
    (r"^(model\.layers\.\d+)\.mamba\.self_attn\.(q|k)_norm\.", r"\1.mixer.\2_norm."),
    (r"^(model\.layers\.\d+)\.mamba\.conv1d\.", r"\1.mixer.ssm.conv1d."),
    (r"^(model\.layers\.\d+)\.mamba\.(dt|B|C)_layernorm\.", r"\1.mixer.ssm.\2_norm."),
    (r"^(model\.layers\.\d+)\.mamba\.(x_proj|dt_proj)\.0\.", r"\1.mixer.ssm.\2."),
    (r"^(model\.layers\.\d+)\.mamba\.(A_log|D)\.0$", r"\1.mixer.ssm.\2"),
)
_BACK = (
    (r"^model\.meta_tokens$", "model.memory_tokens"),
    (r"^model\.norm\.", "model.final_layernorm."),
    (r"^(model\.layers\.\d+)\.mixer_norm\.", r"\1.input_layernorm."),
    (r"^(model\.layers\.\d+)\.mlp_norm\.", r"\1.pre_moe_layernorm."),
    (r"^(model\.layers\.\d+)\.mlp\.", r"\1.moe.experts.0."),
    (r"^(model\.layers\.\d+)\.mixer\.(in_proj|out_proj)\.", r"\1.mamba.\2."),
    (r"^(model\.layers\.\d+)\.mixer\.attention_norm\.", r"\1.mamba.pre_avg_layernorm1."),
    (r"^(model\.layers\.\d+)\.mixer\.ssm_norm\.", r"\1.mamba.pre_avg_layernorm2."),
    (r"^(model\.layers\.\d+)\.mixer\.(q|k)_norm\.", r"\1.mamba.self_attn.\2_norm."),
    (r"^(model\.layers\.\d+)\.mixer\.ssm\.conv1d\.", r"\1.mamba.conv1d."),
    (r"^(model\.layers\.\d+)\.mixer\.ssm\.(dt|B|C)_norm\.", r"\1.mamba.\2_layernorm."),
    (r"^(model\.layers\.\d+)\.mixer\.ssm\.(x_proj|dt_proj)\.", r"\1.mamba.\2.0."),
    (r"^(model\.layers\.\d+)\.mixer\.ssm\.(A_log|D)$", r"\1.mamba.\2.0"),
)
# Keys of the original's configuration that must have the value shown, because nothing else was ever published or runs.
_FIXED: dict[str, tuple[Any, ...]] = {
    "num_experts": (1,),
    "num_experts_per_tok": (1,),
    "num_mamba": (1,),
    "memory_tokens_interspersed_every": (0,),
    "hidden_act": ("silu",),
    "kv_weight_reuse": (False,),
}
_WITHOUT_EFFECT = frozenset(
    {
        "use_cache",  # false in the published file, where it would make generation quadratic
        *(
            "attention_dropout",
            "attn_implementation",
            "attn_implementation_new",
            "calc_logits_for_entire_prompt",
            "conv_dim",
        ),
        *(
            "layer_type",
            "seq_length",
            "router_aux_loss_coef",
            "output_router_logits",
            "v_head_dim",
            "use_mamba_kernels",
        ),
        *("expert_layer_offset", "expert_layer_period", "attn_layer_offset", "attn_layer_period", "mamba_dt_init"),
        *("model_type", "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "_name_or_path"),
        *("attn_reuse_every_i_layer", "mamba_reuse_every_i_layer", "modify_attention_mask", "num_attn_per_block"),
        *("layers_block_type", "rope_scaling", "sep_token_id", "rotary_emb_base"),
    }
)


def is_original_config(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is NVIDIA's, whose model_type is the same as ours."""
    return "num_mamba" in values or "attn_implementation_new" in values


def config_from_original(config: Mapping[str, Any] | None, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Values of `HymbaConfig` from the original's configuration.

    Raises:
        ConfigError: no configuration, an unknown key, or a value that the original only declares.
        CheckpointError: no Hymba checkpoint.
    """
    if "model.embed_tokens.weight" not in state or not any(".mamba.in_proj." in k for k in state):
        raise CheckpointError(
            f"this is no checkpoint of Hymba: no model.layers.i.mamba.in_proj (it has {', '.join(list(state)[:4])}, …)"
        )
    if config is None:
        raise ConfigError(
            "heads, window and shared keys of Hymba cannot be read from shapes: give config=, the dictionary of its "
            "config.json, or load_original('hymba_1_5b', weights) for the published size"
        )
    values: dict[str, Any] = {"global_attn_idx": None, "kv_reuse_group": None}
    known = set(HymbaConfig.zoo_types)
    for key, value in config.items():
        if key in _FIXED:
            if value is not None and value not in _FIXED[key]:
                raise ConfigError(f"{key}={value!r}: only {_FIXED[key][0]!r} exists in published Hymba models")
        elif key in ("kq_head_dim", "attn_hidden_size"):
            width = config["hidden_size"] // (config["num_attention_heads"] if key == "kq_head_dim" else 1)
            if value is not None and value > 0 and value != width:
                raise ConfigError(f"{key}={value}: the original runs with -1 only, which is {width} here")
        elif key == "kv_reuse_every_i_layer":
            continue
        elif key in known and key not in _WITHOUT_EFFECT:
            values[key] = value
        elif key not in _WITHOUT_EFFECT:
            raise ConfigError(unknown("key of Hymba's configuration", key, [*known, *_FIXED, *_WITHOUT_EFFECT]))
    every = config.get("kv_reuse_every_i_layer", -1) or -1
    if not values["kv_reuse_group"] and every > 1:
        depth = values["num_hidden_layers"]
        values["kv_reuse_group"] = [list(range(i, min(i + every, depth))) for i in range(0, depth, every)]
    groups = values["kv_reuse_group"]
    if groups:
        values["kv_reuse_group"] = [_members(group) for group in groups]
    if isinstance(values.get("mamba_dt_rank"), str):  # "auto"
        values["mamba_dt_rank"] = None
    nullable = ("global_attn_idx", "kv_reuse_group", "sliding_window", "rope_type", "orig_max_position_embeddings")
    nullable += ("pad_token_id", "mamba_dt_rank")
    return {k: v for k, v in values.items() if v is not None or k in nullable}


def _members(group: Any) -> list[int]:
    """A group as the configuration file has it, or as the original's model rewrites it."""
    if isinstance(group, Mapping):
        return [group["producer"], *group["consumer"]]
    return list(group)


def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        new, count = re.subn(pattern, replacement, key)
        if count:
            return new
    return key


def _unused_k_norms(config: HymbaConfig) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the norms that the original owns and never uses."""
    if config.kq_norm == "none":
        return {}
    width, groups = config.hidden_size // config.num_attention_heads, config.num_key_value_heads
    shape = (1, groups, 1, width) if config.kq_norm == "perhead-rms" else (width,)
    layers = config.decoder_spec().layers
    names = [f"model.layers.{i}.mamba.self_attn.k_norm.weight" for i, e in enumerate(layers) if e.kv_from is not None]
    return dict.fromkeys(names, shape)


def from_original(state: Mapping[str, torch.Tensor], config: HymbaConfig) -> dict[str, torch.Tensor]:
    """The original's keys -> the zoo's; unknown ones are kept, so that strict loading names them."""
    unused = _unused_k_norms(config)
    converted = {
        _rename(key, _RENAMED): tensor
        for key, tensor in state.items()
        if key not in unused and not key.endswith("rotary_emb.inv_freq")
    }
    if config.tie_word_embeddings and "lm_head.weight" not in converted:
        converted["lm_head.weight"] = converted["model.embed_tokens.weight"]
    return converted


def to_original(state: Mapping[str, torch.Tensor], config: HymbaConfig) -> dict[str, torch.Tensor]:
    """The zoo's keys -> the original's."""
    original = {_rename(key, _BACK): tensor for key, tensor in state.items()}
    like = original["model.embed_tokens.weight"]
    for key, shape in _unused_k_norms(config).items():
        original[key] = like.new_ones(shape)
    return original
