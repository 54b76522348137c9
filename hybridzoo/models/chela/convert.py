"""From Mega's LRA encoder (facebookresearch/mega, `fairseq/models/lra/mega_lra_encoder.py`) to the zoo's and back.

CHELA itself has no official code or weights; Mega is its exactly testable baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import CheckpointError, ConfigError, unknown

_NORMS = {"layernorm": "layer", "batchnorm": "batch", "syncbatchnorm": "batch", "scalenorm": "scale", "rmsnorm": "rms"}
_KNOWN = {
    *("attention_activation", "embedding_dim", "embedding_type", "ffn_hidden_dim", "hidden_dim", "max_seq_len"),
    *("n_dim", "norm_type", "normalize_before", "num_encoder_layers", "padding_idx", "rel_pos_bias", "sen_rep_type"),
    *("vocab_size", "z_dim", "chunk_size", "dropout"),
}


def config_from_original(config: Mapping[str, Any] | None, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Values of `ChelaConfig`.

    Args:
        config: keyword arguments of the original's `MegaLRAEncoder`; None reads the sizes from the shapes, with its
            defaults for what they do not tell (softmax attention, pre-norm where a final norm exists).
        state: the encoder's state dict.

    Raises:
        ConfigError: an unknown argument.
        CheckpointError: not such an encoder.
    """
    first = "layers.0.mega_layer."
    if f"{first}mx_proj.weight" not in state:
        raise CheckpointError(
            "CHELA has no official weights; what can be converted is a Mega LRA encoder (keys layers.N.mega_layer.*), "
            f"and these keys are none: {', '.join(sorted(state)[:4])}"
        )
    given = dict(config or {})
    for key in given:
        if key not in _KNOWN:
            raise ConfigError(unknown("argument of Mega's LRA encoder", key, _KNOWN))
    if given.get("rel_pos_bias", "simple") != "simple" or given.get("sen_rep_type", "mp") != "mp":
        raise ConfigError(
            "only rel_pos_bias='simple' and sen_rep_type='mp' are supported, got "
            f"{given.get('rel_pos_bias')!r} and {given.get('sen_rep_type')!r}"
        )
    value_width, width = state[f"{first}v_proj.weight"].shape
    pixels = "embed_tokens.weight" in state
    chunk = given.get("chunk_size")
    norm = given.get("norm_type")
    if norm is None:
        keys = (f"{first}norm.norm.scalar", f"{first}norm.norm.running_mean")
        norm = "scalenorm" if keys[0] in state else "batchnorm" if keys[1] in state else "layernorm"
    if norm not in _NORMS:
        raise ConfigError(unknown("norm_type", norm, _NORMS))
    positions = (state[f"{first}rel_pos_bias.rel_pos_bias"].shape[0] + 1) // 2
    values: dict[str, Any] = {
        "mixer": "mega",
        "inputs": "pixels" if pixels else "tokens",
        "hidden_size": width,
        "num_hidden_layers": len({k.split(".")[1] for k in state if k.startswith("layers.")}),
        "ffn_hidden_size": state["layers.0.nffn.fc1.weight"].shape[0],
        "max_length": given.get("max_seq_len") or positions,
        "norm": _NORMS[norm],
        "pre_norm": bool(given.get("normalize_before", "final_norm.norm.weight" in state)),
        "dropout": float(given.get("dropout", 0.0)),
        "mixer_options": {
            "z_width": state[f"{first}gamma"].shape[1],
            "value_width": value_width,
            "averages": state[f"{first}move.gamma"].shape[1],
            "attention": given.get("attention_activation", "softmax"),
            "chunk_size": None if chunk in (None, -1) else chunk,
        },
    }
    if not pixels:
        values["vocab_size"] = state["embed_tokens.embed.weight"].shape[0]
        values["pad_token_id"] = given.get("padding_idx", 1)
    return values


def from_original(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Keys and shapes of the zoo."""
    found = {}
    for key, value in state.items():
        if key.startswith("classifier."):  # a head of ours, see `to_original`
            found[key] = value
            continue
        new = key.replace(".mega_layer.", ".mix.").replace(".nffn.", ".ffn.")
        if key == "embed_tokens.embed.weight":
            new = "embed.weight"
        elif key.startswith("embed_tokens."):
            new = key.replace("embed_tokens.", "embed.")
            value = value.view(config.num_channels, -1) if key.endswith("weight") else value
        elif key == "version":
            continue
        found[f"encoder.{new}"] = value
        if key.endswith("running_mean"):  # a counter that not every save has; unused with a fixed momentum
            found.setdefault(f"encoder.{new}".replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return found


def to_original(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Back; a classifier, which is the zoo's own, keeps its names.

    Raises:
        CheckpointError: a model without Mega's layers.
    """
    if config.mixer != "mega":
        raise CheckpointError(f"there is no original layout for mixer={config.mixer!r}; only Mega encoders have one")
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if not key.startswith("encoder."):
            found[key] = value
            continue
        name = key.removeprefix("encoder.").replace(".mix.", ".mega_layer.").replace(".ffn.", ".nffn.")
        if name == "embed.weight":
            name = "embed_tokens.weight" if config.inputs == "pixels" else "embed_tokens.embed.weight"
            value = value.flatten() if config.inputs == "pixels" else value
        elif name == "embed.bias":
            name = "embed_tokens.bias"
        if name.endswith("num_batches_tracked"):
            continue
        found[name] = value
    return found
