"""What a hybrid decoder is made of: a list of typed layers, checked before any weight is allocated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybridzoo.configuration import ZooConfig
from hybridzoo.errors import ConfigError
from hybridzoo.layers.gated_mlp import ACTIVATIONS
from hybridzoo.layers.mixer import choose, make_options, require


@dataclass(frozen=True)
class LayerSpec:
    """One layer: the kind of its mixer, the mixer's options, and the layer whose keys and values it reads (or None)."""

    kind: str
    options: Any
    kv_from: int | None = None


@dataclass(frozen=True)
class DecoderSpec:
    """A whole decoder.

    Args:
        vocab_size, hidden_size: V and D.
        layers: bottom up.
        intermediate_size: hidden width of the MLPs; 0 for layers without.
        mlp_activation: see `GatedMLP`.
        norm_eps, round_first: of all norms, see `RMSNorm`.
        num_meta_tokens: learned rows in front of every sequence.
        max_positions: the length that the model is made for.
        initializer_range: standard deviation of the random start.
        padding_idx: the token whose embedding starts at zero and gets no gradient.
    """

    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    intermediate_size: int
    mlp_activation: str = "silu"
    norm_eps: float = 1e-6
    round_first: bool = False
    num_meta_tokens: int = 0
    max_positions: int = 2048
    initializer_range: float = 0.02
    padding_idx: int | None = None

    def __post_init__(self) -> None:
        sizes = {"vocab_size": self.vocab_size, "hidden_size": self.hidden_size, "layers": len(self.layers)}
        for name, size in sizes.items():
            require(size > 0, f"{name}={size} must be at least 1")
        for name, size in (("intermediate_size", self.intermediate_size), ("num_meta_tokens", self.num_meta_tokens)):
            require(size >= 0, f"{name}={size} must not be negative")
        require(self.norm_eps > 0, f"norm_eps={self.norm_eps} must be above 0")
        require(self.max_positions > 0, f"max_position_embeddings={self.max_positions} must be at least 1")
        choose("MLP activation", self.mlp_activation, ACTIVATIONS)
        pad = self.padding_idx
        require(pad is None or 0 <= pad < self.vocab_size, f"pad_token_id={pad} is outside the vocabulary")


class DecoderConfig(ZooConfig):
    """Base of the configurations whose model is the shared decoder."""

    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012  transformers' own attribute

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that this configuration describes; raises ConfigError where it describes none."""
        raise NotImplementedError(f"{type(self).__name__} does not define decoder_spec")

    def validate_values(self) -> None:
        """Impossible values are found when the decoder is described."""
        self.decoder_spec()


def layer_spec(kind: str, options: Mapping[str, Any]) -> LayerSpec:
    """A layer from plain options; see `make_options`."""
    return LayerSpec(kind, make_options(kind, options))


def share_kv(
    layers: Sequence[LayerSpec], groups: Sequence[Sequence[int]], name: str = "kv_groups"
) -> tuple[LayerSpec, ...]:
    """Let the layers of each group read the keys and values of the group's first layer.

    Raises:
        ConfigError: a group that is not consecutive, overlaps another, has no producer in the model, or whose layers
            could not share (no keys and values, other heads, another window).
    """
    shared, taken = list(layers), set()
    for group in groups:
        members = [int(i) for i in group]
        require(len(members) > 0, f"{name}: an empty group; leave it out")
        first = members[0]
        if any(not 0 <= i < len(layers) for i in members):
            raise ConfigError(
                f"{name}: group {members} names layers outside the model's 0 to {len(layers) - 1}, so its producer or "
                "a consumer is missing"
            )
        if members != list(range(first, first + len(members))):
            raise ConfigError(
                f"{name}: group {members} is not consecutive; its first layer produces the keys and values that the "
                f"layers right after it read, as in {list(range(min(members), min(members) + len(members)))}"
            )
        if taken & set(members):
            raise ConfigError(f"{name}: layers {sorted(taken & set(members))} are in two groups")
        taken |= set(members)
        for i in members:
            if not hasattr(layers[i].options, "num_kv_heads"):
                raise ConfigError(
                    f"{name}: layer {i} is a {layers[i].kind!r} mixer, which has no keys and values to share"
                )
            mine, theirs = _kv_sizes(layers[i]), _kv_sizes(layers[first])
            if mine != theirs:
                raise ConfigError(
                    f"{name}: layer {i} cannot read the keys and values of layer {first}: (heads, key heads, window, "
                    f"width) are {mine} and {theirs}"
                )
            if i != first:
                shared[i] = replace(layers[i], kv_from=first)
    return tuple(shared)


def _kv_sizes(layer: LayerSpec) -> tuple[Any, ...]:
    o = layer.options
    extra = getattr(o, "head_dim", None), getattr(o, "expand", None)
    return o.num_heads, o.num_kv_heads, o.window, extra
