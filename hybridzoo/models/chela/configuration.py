"""Configuration of CHELA classifiers and of the baselines that share their code."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from hybridzoo.errors import ConfigError, unknown
from hybridzoo.layers.chela.options import PRESETS, ChelaOptions
from hybridzoo.layers.decoder_spec import DecoderConfig, DecoderSpec, layer_spec

MIXERS = ("chela", "mega", "attention")


@strict
class ChelaConfig(DecoderConfig):
    """Sizes and choices of `ChelaForSequenceClassification`, its siblings, and `ChelaForCausalLM`.

    The defaults are the ListOps encoder. `mixer_options` sets the choices of the layer one by one.

    Args:
        inputs: "tokens" or "pixels"; classifiers of images take pixels in any case.
        vocab_size: of the tokens (unused where pixels come in).
        hidden_size: D.
        num_hidden_layers: layers.
        ffn_hidden_size: of the feed-forward part of a layer; 0 leaves it out.
        max_length: longest sequence, in tokens or pixels.
        mixer: "chela", or a baseline: "mega" (moving average and gated attention), "attention" (softmax, with rotary
            positions).
        preset: "default"; "literal": the plainest reading of the summaries (separate q and k, values from the
            convolutions, sigmoid gate); "averaged": positive features and their sum as the denominator, which starts
            calmly on thousands of positions.
        mixer_options: fields of `ChelaOptions` that differ from the preset; for "mega" z_width, value_width, averages,
            attention ("softmax" or "laplace") and chunk_size; for "attention" num_heads.
        norm: "layer", "rms", "scale", "batch" or "none".
        pre_norm: norm before a layer's parts and at the end, instead of after each residual.
        norm_eps: of the norms.
        dropout: after the embedding, the mixer, inside and after the feed-forward part.
        classifier_hidden_size: between pooling and classes; None: the value width.
        classifier_dropout: before the last layer.
        num_documents: 2 compares two texts (retrieval), else 1.
        image_size, num_channels, image_mean, image_std, crop_pct, interpolation: of images, read row by row.
        pad_token_id: of the tokens.
        initializer_range: standard deviation of linear layers.
        temperature: divides the logits in eval mode; fitted on validation data.
        tie_word_embeddings, bos_token_id, eos_token_id, use_cache: of language models, whose norms are RMSNorms before
            each part, whose feed-forward part is gated, and which take mixer "chela" or "attention".

    Raises:
        ConfigError: unknown keys or values that do not fit together.
    """

    model_type = "chela"

    inputs: Literal["tokens", "pixels"] = "tokens"
    vocab_size: int = 18
    hidden_size: int = 80
    num_hidden_layers: int = 6
    ffn_hidden_size: int = 160
    max_length: int = 2048
    mixer: Literal["chela", "mega", "attention"] = "chela"
    preset: Literal["default", "literal", "averaged"] = "default"
    mixer_options: dict[str, Any] | None = None
    norm: Literal["layer", "rms", "scale", "batch", "none"] = "layer"
    pre_norm: bool = False
    norm_eps: float = 1e-5
    dropout: float | int = 0.1
    classifier_hidden_size: int | None = None
    classifier_dropout: float | int = 0.0
    num_documents: int = 1
    image_size: int = 32
    num_channels: int = 1
    image_mean: list[float] | tuple[float, ...] = (0.5,)
    image_std: list[float] | tuple[float, ...] = (0.5,)
    crop_pct: float | int = 1.0
    interpolation: str = "bilinear"
    pad_token_id: int | None = 0
    initializer_range: float = 0.02
    temperature: float | int = 1.0
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    use_cache: bool = True

    def options(self) -> ChelaOptions:
        """The layer's choices; raises ConfigError with the nearest names."""
        given = dict(self.mixer_options or {})
        names = [f.name for f in dataclasses.fields(ChelaOptions)]
        for key in given:
            if key not in names:
                raise ConfigError(unknown("option of the CHELA layer", key, names))
        return ChelaOptions(**{**PRESETS[self.preset], **given})

    @property
    def value_width(self) -> int:
        """V"""
        return int((self.mixer_options or {}).get("value_width") or 2 * self.hidden_size)

    def decoder_spec(self) -> DecoderSpec:
        """The decoder of `ChelaForCausalLM`; raises ConfigError for choices that it does not have."""
        if self.mixer == "mega":
            raise ConfigError("mixer='mega' is an encoder here; language models take mixer 'chela' or 'attention'")
        if not self.pre_norm or self.norm != "rms" or self.dropout or self.inputs != "tokens":
            raise ConfigError(
                "language models of this family have norm='rms', pre_norm=True, dropout=0 and inputs='tokens', got "
                f"norm={self.norm!r}, pre_norm={self.pre_norm}, dropout={self.dropout}, inputs={self.inputs!r}"
            )
        options: dict[str, Any] = dict(self.mixer_options or {})
        if self.mixer == "chela":
            options = {f.name: getattr(self.options(), f.name) for f in dataclasses.fields(ChelaOptions)}
        return DecoderSpec(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layers=(layer_spec(self.mixer, options),) * self.num_hidden_layers,
            intermediate_size=self.ffn_hidden_size,
            norm_eps=self.norm_eps,
            max_positions=self.max_length,
            initializer_range=self.initializer_range,
            padding_idx=self.pad_token_id,
        )

    def validate_values(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_length", "num_documents"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in (
            "dropout",
            "classifier_dropout",
        ):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: a probability, 0 or more and below 1")
        if self.num_documents > 2:
            raise ConfigError(f"num_documents={self.num_documents}: 1, or 2 for pairs")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(f"pad_token_id={self.pad_token_id} is outside the vocabulary of {self.vocab_size}")
        if self.mixer == "chela":
            self.options().check(self.hidden_size)
        known = {
            "mega": ("z_width", "value_width", "averages", "attention", "chunk_size"),
            "attention": ("num_heads",),
        }
        for key in self.mixer_options or {}:
            if self.mixer in known and key not in known[self.mixer]:
                raise ConfigError(unknown(f"option of mixer {self.mixer!r}", key, known[self.mixer]))
        heads = (self.mixer_options or {}).get("num_heads", 1)
        if self.mixer == "attention" and (self.hidden_size % heads or self.hidden_size // heads % 2):
            raise ConfigError(f"num_heads={heads} must divide hidden_size={self.hidden_size} into even widths")
