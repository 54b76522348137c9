"""Configuration of RoBERTa-BiLSTM: a transformer encoder, a recurrent layer, a pooling and a two-layer head."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

from hybridzoo.configuration import ZooConfig
from hybridzoo.errors import ConfigError, unknown

POOLINGS = ("mean", "flatten", "max", "last", "attention", "cls")
CELLS = ("lstm", "gru", "none")
ACTIVATIONS = ("relu", "gelu", "tanh", "none")
PREPROCESS = ("none", "html", "tweet", "paper")

# roberta-base: what differs from transformers' RobertaConfig defaults.
ROBERTA_BASE = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}

# Encoders whose positions start at pad_token_id + 1, so that they hold that many tokens fewer.
_OFFSET_POSITIONS = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "mpnet"}
)


@strict
class RobertaBiLSTMConfig(ZooConfig):
    """Configuration of `RobertaBiLSTMForSequenceClassification`.

    The defaults are the modern reading of the paper (masked mean over the BiLSTM states, padding skipped, any length).
    `pooling="flatten", max_length=128, head_hidden_size=256, skip_padding=False` is its Algorithm 1 to the letter.

    Args:
        encoder: the encoder's configuration: a dictionary with a `model_type` of transformers (`"roberta"` if left out)
            and its values, or a config object. Left out: `roberta-base`.
        cell: `"lstm"`, `"gru"`, or `"none"` for the encoder alone.
        bidirectional: run the cell in both directions (the width doubles).
        lstm_hidden_size: units per direction.
        lstm_num_layers: stacked recurrent layers.
        lstm_dropout: between stacked recurrent layers; without effect for one layer.
        input_dropout: on the encoder's last hidden states.
        skip_padding: pads are neither run through the cell nor pooled, so a row's score does not depend on its batch.
            False reproduces implementations that feed pads to the LSTM; every row must then be padded to `max_length`.
        pooling: `"mean"`, `"max"`, `"attention"` (learned weights), `"last"` (the last state of each direction),
            `"cls"` (the first token's state) or `"flatten"` (all `max_length` states side by side).
        head_hidden_size: width of the first dense layer; 0 leaves it out (one linear layer).
        head_activation: after the first dense layer.
        head_dropout: before the last dense layer.
        max_length: tokens per text, special tokens included: the truncation length, and for `flatten` the only length.
        temperature: divides the logits in eval mode, never in training mode; fitted on validation data (1.0: no
            effect).
        preprocess: text cleaning that belongs to the weights (`hybridzoo.data.text_cleaning`), applied before
            tokenising.

    Raises:
        ConfigError: an unknown key, here or in `encoder`, or values that do not fit together.
    """

    model_type = "roberta_bilstm"
    sub_configs: ClassVar[dict[str, Any]] = {"encoder": PretrainedConfig}

    encoder: dict[str, Any] | PretrainedConfig | None = None
    cell: Literal["lstm", "gru", "none"] = "lstm"
    bidirectional: bool = True
    lstm_hidden_size: int = 256
    lstm_num_layers: int = 1
    lstm_dropout: float | int = 0.0
    input_dropout: float | int = 0.1
    skip_padding: bool = True
    pooling: Literal["mean", "flatten", "max", "last", "attention", "cls"] = "mean"
    head_hidden_size: int = 256
    head_activation: Literal["relu", "gelu", "tanh", "none"] = "relu"
    head_dropout: float | int = 0.1
    max_length: int = 512
    temperature: float | int = 1.0
    preprocess: Literal["none", "html", "tweet", "paper"] = "none"

    def __post_init__(self, **kwargs: Any) -> None:
        self.encoder = as_encoder_config(self.encoder)
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of the encoder's states."""
        return self.encoder.hidden_size  # type: ignore[union-attr]

    @property
    def pooled_size(self) -> int:
        """Width of what the head reads, for one position."""
        return self.hidden_size if self.cell == "none" else self.lstm_hidden_size * (1 + self.bidirectional)

    @property
    def fixed_length(self) -> int | None:
        """The only sequence length that the model takes (pad to it), or None for any length."""
        return self.max_length if self.pooling == "flatten" or not self.skip_padding else None

    @property
    def encoder_config(self) -> Any:
        """The encoder's transformers config: what `encoder` holds once this config is made."""
        return self.encoder

    @property
    def max_tokens(self) -> int | None:
        """Tokens that the encoder's position table holds, or None where positions are relative."""
        positions = getattr(self.encoder, "max_position_embeddings", None)
        if not positions or positions < 0:
            return None
        offset = (
            (self.encoder_config.pad_token_id or 0) + 1 if self.encoder_config.model_type in _OFFSET_POSITIONS else 0
        )
        return positions - offset

    def validate_values(self) -> None:
        for name, low in (("lstm_hidden_size", 1), ("lstm_num_layers", 1), ("head_hidden_size", 0), ("max_length", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {low}")
        for name in ("input_dropout", "lstm_dropout", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0 and below 1")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature} must be a positive number (1.0 leaves the logits alone)")
        if self.max_tokens is not None and self.max_length > self.max_tokens:
            raise ConfigError(
                f"max_length={self.max_length} is more than the {self.max_tokens} tokens that the encoder holds "
                f"({self.encoder_config.model_type}, max_position_embeddings="
                f"{self.encoder_config.max_position_embeddings}); lower max_length, or, for a "
                "model trained from scratch, raise encoder.max_position_embeddings"
            )


def as_encoder_config(encoder: dict[str, Any] | PretrainedConfig | None) -> PretrainedConfig:
    """The encoder's config object; roberta-base for None.

    Raises:
        ConfigError: an unknown `model_type` or key (with the nearest names), or an encoder-decoder.
    """
    if isinstance(encoder, PretrainedConfig):
        return encoder
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values = dict(ROBERTA_BASE if encoder is None else encoder)
    model_type = values.pop("model_type", "roberta")
    if model_type not in CONFIG_MAPPING:
        raise ConfigError(unknown("encoder.model_type", str(model_type), CONFIG_MAPPING.keys()))
    config_class = CONFIG_MAPPING[model_type]
    known = {f.name for f in fields(config_class)} | set(config_class.attribute_map)
    # `architectures` stands only in a config that transformers wrote: keys of another version of it are not a typing
    # error.
    if "architectures" not in values:
        for key in values:
            if key not in known and not key.startswith("_"):
                raise ConfigError(unknown(f"key of encoder ({config_class.__name__})", key, known))
    config = config_class(**values)
    if config.is_encoder_decoder or not hasattr(config, "hidden_size"):
        raise ConfigError(f"encoder.model_type={model_type!r} is not a text encoder; use e.g. 'roberta' or 'bert'")
    return config
