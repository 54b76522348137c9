"""Key names of tiduswr/RoBERTa-BiLSTM-Replication, both ways. It is independent too: there is no official code.

    roberta.*  <->  encoder.*          RoBERTa's states; its pooler is in their file but never used in their forward
    lstm.*     <->  rnn.*              torch's own names follow (`bilstm.*` is read as well)
    fc1.*      <->  head.dense.*
    fc2.*      <->  head.out_proj.*

Their network has no switches: flatten over 128 padded tokens, padding run through the LSTM, one dense layer of the
width of the LSTM, ReLU, no dropout in the head. A file whose `fc1` reads one state instead of all of them comes from
a reading of "flatten" as the mean over all positions; it is recognised by that shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hybridzoo.errors import CheckpointError, ConfigError, unknown

TO_ORIGINAL = {"encoder.": "roberta.", "rnn.": "lstm.", "head.dense.": "fc1.", "head.out_proj.": "fc2."}
FROM_ORIGINAL = {**{theirs: ours for ours, theirs in TO_ORIGINAL.items()}, "bilstm.": "rnn."}
# In their files and without effect: the unused pooler, and index buffers that old transformers versions saved.
IGNORED = ("roberta.pooler.", "roberta.embeddings.position_ids", "roberta.embeddings.token_type_ids")
# Their settings (names in model/config.py, upper case there) -> ours.
SETTINGS = ("max_length", "hidden_dim", "dropout_prob", "num_labels", "num_attention_heads")


def config_from_original(config: Mapping[str, Any] | None, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Configuration values for a state dict in the replication's layout.

    Args:
        config: their settings, in upper or lower case: MAX_LENGTH, HIDDEN_DIM, DROPOUT_PROB, num_labels; and
            num_attention_heads, which no shape shows (hidden size / 64, as in RoBERTa, if left out).
        state: key -> tensor.

    Returns:
        Values of `RobertaBiLSTMConfig`.

    Raises:
        ConfigError: an unknown setting, or one that contradicts the shapes.
        CheckpointError: keys that the layout must have are missing.
    """
    given = {str(k).lower(): v for k, v in (config or {}).items()}
    for key in given:
        if key not in SETTINGS:
            raise ConfigError(unknown("setting of the original", key, SETTINGS))
    recurrent = "bilstm" if "bilstm.weight_hh_l0" in state else "lstm"
    needed = (f"{recurrent}.weight_hh_l0", "fc1.weight", "fc2.weight", "roberta.embeddings.word_embeddings.weight")
    absent = [key for key in needed if key not in state]
    if absent:
        raise CheckpointError(
            f"these weights are not in the replication's layout: {', '.join(absent)} missing "
            f"(found {', '.join(list(state)[:4])}…)"
        )
    hidden = state[f"{recurrent}.weight_hh_l0"].shape[1]
    width, flat = state["fc1.weight"].shape
    if flat % (2 * hidden):
        raise CheckpointError(f"fc1 reads {flat} values, which is no multiple of the 2 x {hidden} of the LSTM")
    steps = flat // (2 * hidden)
    labels = state["fc2.weight"].shape[0]
    for name, value, found in (
        ("max_length", given.get("max_length"), steps if steps > 1 else None),
        ("hidden_dim", given.get("hidden_dim"), hidden),
        ("num_labels", given.get("num_labels"), labels),
    ):
        if value is not None and found is not None and int(value) != found:
            raise ConfigError(f"{name}={value} contradicts the weights, which say {found}; leave it out or correct it")
    return {
        "encoder": _encoder(state, given.get("num_attention_heads")),
        "cell": "lstm",
        "bidirectional": True,
        "lstm_hidden_size": hidden,
        "lstm_num_layers": 1,
        "input_dropout": float(given.get("dropout_prob", 0.1)),
        "skip_padding": False,
        "pooling": "flatten" if steps > 1 else "mean",
        "head_hidden_size": width,
        "head_activation": "relu",
        "head_dropout": 0.0 if steps > 1 else 0.1,
        "max_length": steps if steps > 1 else int(given.get("max_length", 128)),
        "num_labels": labels,
    }


def _encoder(state: Mapping[str, torch.Tensor], heads: int | None) -> dict[str, Any]:
    vocab_size, hidden_size = state["roberta.embeddings.word_embeddings.weight"].shape
    layers = {int(k.split(".")[3]) for k in state if k.startswith("roberta.encoder.layer.")}
    if not layers:
        raise CheckpointError("these weights hold no encoder layer (roberta.encoder.layer.0…)")
    return {
        "model_type": "roberta",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": int(heads or max(1, hidden_size // 64)),
        "intermediate_size": state["roberta.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": state["roberta.embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": state["roberta.embeddings.token_type_embeddings.weight"].shape[0],
        "layer_norm_eps": 1e-5,
    }


def from_original(state: Mapping[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """Their key names to ours; unknown keys are kept, so that strict loading names them."""
    renamed = {}
    for key, tensor in state.items():
        if key.startswith(IGNORED):
            continue
        prefix = next((p for p in FROM_ORIGINAL if key.startswith(p)), "")
        renamed[FROM_ORIGINAL.get(prefix, "") + key[len(prefix) :]] = tensor
    return renamed


def to_original(state: Mapping[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """Our key names to theirs. Their unused pooler is filled with zeros, so that their strict load takes the file.

    Raises:
        CheckpointError: a model that their network cannot hold (another pooling, cell or encoder).
    """
    theirs = (config.cell, config.bidirectional, config.lstm_num_layers, config.pooling, config.encoder.model_type)
    if theirs != ("lstm", True, 1, "flatten", "roberta") or not config.head_hidden_size:
        raise CheckpointError(
            "the replication's layout holds one BiLSTM, flatten, a dense layer and a RoBERTa encoder; this model has "
            f"cell={config.cell!r}, bidirectional={config.bidirectional}, lstm_num_layers={config.lstm_num_layers}, "
            f"pooling={config.pooling!r}, head_hidden_size={config.head_hidden_size}, "
            f"encoder.model_type={config.encoder.model_type!r}"
        )
    renamed = {}
    for key, tensor in state.items():
        prefix = next(p for p in TO_ORIGINAL if key.startswith(p))
        renamed[TO_ORIGINAL[prefix] + key[len(prefix) :]] = tensor
    word = renamed["roberta.embeddings.word_embeddings.weight"]
    renamed["roberta.pooler.dense.weight"] = word.new_zeros(word.shape[1], word.shape[1])
    renamed["roberta.pooler.dense.bias"] = word.new_zeros(word.shape[1])
    return renamed
