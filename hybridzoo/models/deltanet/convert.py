"""Between fla's DeltaNet checkpoints and the zoo's.

    model.embeddings            <->  model.embed_tokens
    model.layers.i.attn_norm    <->  model.layers.i.mixer_norm
    model.layers.i.attn.*       <->  model.layers.i.mixer.*
    model.layers.i.mlp*         <->  the same

Older files are read too: `mlp.gate_proj` that holds gate and up projection in one (until February 2025), and norms
inside the modules (`attn.norm`, `mlp.norm`; configurations with `norm_first`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from hybridzoo.errors import CheckpointError, ConfigError, unknown
from hybridzoo.models.deltanet.configuration import DeltaNetConfig

# Keys of fla's configuration that choose kernels or are stored by transformers, and change no number.
_WITHOUT_EFFECT = frozenset(
    {
        *("attn_mode", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy", "norm_first"),
        *("use_output_norm", "use_l2warp", "rope_scaling", "rope_theta", "clamp_min", "clamp_max"),
        *("model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "auto_map", "_name_or_path"),
        *(
            "_attn_implementation_autoset",
            "elementwise_affine",
            "pad_token_id_",
            "chunk_size",
            "rescale_prenorm_residual",
        ),
    }
)
_RENAMED = (
    (r"^model\.embeddings\.", "model.embed_tokens."),
    (r"^(model\.layers\.\d+)\.attn_norm\.", r"\1.mixer_norm."),
    (r"^(model\.layers\.\d+)\.attn\.norm\.", r"\1.mixer_norm."),  # norm_first
    (r"^(model\.layers\.\d+)\.mlp\.norm\.", r"\1.mlp_norm."),  # norm_first
    (r"^(model\.layers\.\d+)\.attn\.", r"\1.mixer."),
)
_BACK = (
    (r"^model\.embed_tokens\.", "model.embeddings."),
    (r"^(model\.layers\.\d+)\.mixer_norm\.", r"\1.attn_norm."),
    (r"^(model\.layers\.\d+)\.mixer\.", r"\1.attn."),
)


def config_from_original(config: Mapping[str, Any] | None, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Values of `DeltaNetConfig` from fla's configuration; None reads a plain DeltaNet from the shapes.

    Raises:
        ConfigError: a key that fla's DeltaNet does not have, or one with an effect that it does not have here.
        CheckpointError: no DeltaNet checkpoint.
    """
    if "model.embeddings.weight" not in state:
        raise CheckpointError(
            f"this is no checkpoint of fla's DeltaNet: no model.embeddings.weight (it has "
            f"{', '.join(list(state)[:4])}, …)"
        )
    if config is None:
        return _from_shapes(state)
    values = {}
    known = set(DeltaNetConfig.zoo_types)
    for key, value in config.items():
        if key in _WITHOUT_EFFECT:
            continue
        if key == "hidden_act":
            if value not in ("swish", "silu"):
                raise ConfigError(f"hidden_act={value!r}: fla's DeltaNet has swish (silu) MLPs only")
        elif key in known:
            values[key] = value
        else:
            raise ConfigError(unknown("key of fla's DeltaNetConfig", key, [*known, *_WITHOUT_EFFECT]))
    if values.get("pad_token_id") is not None:
        values["pad_token_id"] = int(values["pad_token_id"])
    return {k: v for k, v in values.items() if v is not None or k in ("attn", "intermediate_size", "pad_token_id")}


def _from_shapes(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Sizes of a DeltaNet without attention layers; activation and norm of q and k are taken as published."""
    vocab, width = state["model.embeddings.weight"].shape
    layers = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("model.layers."))
    first = "model.layers.0.attn."
    plain = [i for i in range(layers) if f"model.layers.{i}.attn.o_norm.weight" not in state]
    if plain:
        raise ConfigError(f"layers {plain} are attention layers, whose heads no shape shows: give fla's configuration")
    values = state[first + "v_proj.weight"].shape[0]
    heads = values // state[first + "o_norm.weight"].shape[0]
    gate = state["model.layers.0.mlp.gate_proj.weight"].shape[0]
    fused = "model.layers.0.mlp.up_proj.weight" not in state
    conv = state.get(first + "q_conv1d.weight")
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_heads": heads,
        "expand_k": state[first + "q_proj.weight"].shape[0] / width,
        "expand_v": values / width,
        "use_gate": first + "g_proj.weight" in state,
        "use_beta": first + "b_proj.weight" in state,
        "use_short_conv": conv is not None,
        "conv_size": 4 if conv is None else conv.shape[-1],
        "conv_bias": first + "q_conv1d.bias" in state,
        "intermediate_size": gate // 2 if fused else gate,
        "tie_word_embeddings": "lm_head.weight" not in state,
    }


def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        new, count = re.subn(pattern, replacement, key)
        if count:
            return new
    return key


def from_original(state: Mapping[str, torch.Tensor], config: DeltaNetConfig) -> dict[str, torch.Tensor]:
    """fla's keys -> the zoo's; unknown ones are kept, so that strict loading names them."""
    converted: dict[str, torch.Tensor] = {}
    hidden = config.decoder_spec().intermediate_size
    for key, tensor in state.items():
        new = _rename(key, _RENAMED)
        if new in converted:
            raise CheckpointError(f"two tensors of the checkpoint are {new}; one of them is {key}")
        if new.endswith("mlp.gate_proj.weight") and tensor.shape[0] == 2 * hidden:
            converted[new], converted[new.replace("gate_proj", "up_proj")] = tensor[:hidden], tensor[hidden:]
        else:
            converted[new] = tensor
    if config.tie_word_embeddings and "lm_head.weight" not in converted and "model.embed_tokens.weight" in converted:
        converted["lm_head.weight"] = converted["model.embed_tokens.weight"]
    return converted


def to_original(state: Mapping[str, torch.Tensor], config: DeltaNetConfig) -> dict[str, torch.Tensor]:
    """The zoo's keys -> fla's of today."""
    return {_rename(key, _BACK): tensor for key, tensor in state.items()}
