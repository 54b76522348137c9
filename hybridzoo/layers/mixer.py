"""What every sequence mixer of the decoder agrees on: its call, its state, and the table of names.

A mixer is a causal map (B, T, D) -> (B, T, D). What it remembers of earlier positions is a `State`, a dictionary of
tensors with the batch first, so that caches, beams and CUDA graphs treat all mixers alike.

Legend: B batch, T positions of this call, D model width, S segments of packed rows.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hybridzoo.errors import ConfigError, InputError, unknown
from hybridzoo.layers.rotary import Rotary
from hybridzoo.ops.hybrid_attention import AttentionPlan

State = dict[str, Tensor]


@dataclass(frozen=True)
class MixerInfo:
    """What a mixer is told about its place.

    Args:
        layer_index: from 0.
        norm_eps: of the model's norms.
        num_meta_tokens: positions before the text that everybody sees.
        owns_kv: False: the keys and values come from an earlier layer.
        max_positions: the length that the model is made for.
        round_first: how norms round, see `RMSNorm`.
    """

    layer_index: int = 0
    norm_eps: float = 1e-6
    num_meta_tokens: int = 0
    owns_kv: bool = True
    max_positions: int = 2048
    round_first: bool = False


@dataclass(eq=False)
class KV:
    """Keys and values as an attention layer used them, for the layers that share them.

    k (R, G, S, K), v (R, G, S, V), rotated and not repeated; R is the number of rows.
    """

    k: Tensor
    v: Tensor
    plan: AttentionPlan


class MixerOutput(NamedTuple):
    """y (B, T, D), the state after the call (None if it was not asked for), and the keys and values if it has any."""

    y: Tensor
    state: State | None = None
    kv: KV | None = None


@dataclass(eq=False)
class MixerContext:
    """Everything about one call that is the same for all layers.

    Padding is always at the right end of a row: the decoder sorts tokens to the front and puts the outputs back. So
    pads need care only where a state is returned, which they must not change.

    Args:
        positions: (1 or B, T) of each token in its own sequence; meta tokens count.
        past: positions seen before this call: an int, the same for all rows, or (B, 1).
        seen: an int not below any row's `past`.
        counts: (B,) tokens of each row that are no padding; None: all T.
        valid: (B, T) bool, False at padding; None: no padding.
        cu_seqlens: (S + 1,) packed segments of the one row (B is 1); states then have S rows.
        rows: packed rows before they were put one after the other (attention works row by row).
        seq_idx: (rows, T / rows) segment numbers of packed rows.
        num_meta: meta tokens of the model.
        return_state: whether the state after the call is wanted.
        inplace: write states over the old ones (static caches).
        fresh: no position has been seen by any row.
        narrow: how many keys fewer a window shows in this call (NVIDIA's decoding rule).
    """

    positions: Tensor
    past: int | Tensor = 0
    seen: int = 0
    counts: Tensor | None = None
    valid: Tensor | None = None
    cu_seqlens: Tensor | None = None
    rows: int = 1
    seq_idx: Tensor | None = None
    num_meta: int = 0
    return_state: bool = False
    inplace: bool = False
    fresh: bool = True
    narrow: int = 0
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """T"""
        return self.positions.shape[1]

    @property
    def after(self) -> int | Tensor:
        """Positions seen after this call, as `past`; packed: (1, T), of each token's own segment."""
        if self.cu_seqlens is not None:
            if "after" not in self.memo:
                ends = self.cu_seqlens[1:].long()
                at = torch.arange(self.length, device=ends.device)
                owner = torch.searchsorted(ends, at, right=True)
                sizes = (ends - self.cu_seqlens[:-1].long())[owner.clamp_max(ends.numel() - 1)]
                self.memo["after"] = (sizes + self.num_meta).unsqueeze(0)
            return self.memo["after"]
        if self.counts is not None:
            return self.past + self.counts.unsqueeze(1)
        return self.past + self.length

    def rope(self, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """cos and sin for this call's positions, shared by the layers."""
        key = ("rope", rotary)
        if key not in self.memo:
            self.memo[key] = rotary.tables(self.positions, self.after)
        return self.memo[key]


class Mixer(nn.Module):
    """Base of the sequence mixers.

    A subclass names its options, a frozen dataclass, and takes `(hidden_size, options, info)`.
    """

    options_class: ClassVar[type]
    reads_residual: bool = False  # the layer leaves its input, before the norm, in `ctx.memo["residual"]`

    def forward(self, x: Tensor, ctx: MixerContext, state: State | None = None, kv: KV | None = None) -> MixerOutput:
        """Mix.

        Args:
            x: (B, T, D), normalised.
            ctx: see `MixerContext`.
            state: what an earlier call returned; None at the start.
            kv: of the producing layer, if this layer owns none.
        """
        raise NotImplementedError

    def init_weights(self, std: float) -> None:
        """Set parameters that N(0, std) would be wrong for; called after all linear layers were drawn."""

    def slots(self) -> int | None:
        """Positions of the text that a cache keeps for this layer; 0 without keys and values, None for all."""
        return 0

    def position_limit(self) -> int | None:
        """Positions, meta tokens included, beyond which the mixer cannot run; None: any number."""
        return None


SLOT_DIMS = {"k": 2, "v": 2, "history": 1}
"""Entries of a state that keep something of single positions, and the dimension that counts these."""

_TABLE: dict[str, tuple[str, str]] = {}  # kind -> (letter, "module:Class")


def register_mixer(kind: str, *, letter: str, target: str) -> None:
    """Add a mixer to the names that configurations and patterns use.

    Args:
        kind: as in `{"mixer": kind}`.
        letter: one upper-case letter for patterns.
        target: `"module:Class"`, imported at first use.

    Raises:
        ValueError: the kind or the letter is taken.
    """
    if kind in _TABLE or letter in letters():
        raise ValueError(f"mixer {kind!r} or its letter {letter!r} is already registered: {letters()}")
    if len(letter) != 1 or not letter.isupper():
        raise ValueError(f"the letter of mixer {kind!r} must be one upper-case letter, got {letter!r}")
    _TABLE[kind] = (letter, target)


def letters() -> dict[str, str]:
    """Pattern letter -> kind."""
    return {letter: kind for kind, (letter, _) in _TABLE.items()}


register_mixer("attention", letter="A", target="hybridzoo.layers.attention_mixer:AttentionMixer")
register_mixer("swa", letter="S", target="hybridzoo.layers.attention_mixer:SlidingAttentionMixer")
register_mixer("delta", letter="D", target="hybridzoo.layers.delta_mixer:DeltaMixer")
register_mixer("mamba", letter="M", target="hybridzoo.layers.mamba_mixer:MambaMixer")
register_mixer("hymba", letter="H", target="hybridzoo.layers.hymba_mixer:HymbaMixer")
register_mixer("chela", letter="C", target="hybridzoo.layers.chela.mixer:ChelaMixer")


def mixer_class(kind: str) -> type[Mixer]:
    """The class of a kind; raises ConfigError with the nearest names."""
    if kind not in _TABLE:
        raise ConfigError(unknown("mixer", kind, _TABLE))
    module, _, name = _TABLE[kind][1].partition(":")
    return getattr(importlib.import_module(module), name)


def parse_pattern(pattern: str, num_layers: int | None = None) -> list[str]:
    """`"D D A"` or `"DDA"` -> kinds, repeated to num_layers.

    Raises:
        ConfigError: an unknown letter, an empty pattern, or a length that does not divide num_layers.
    """
    known = letters()
    found = [c for c in pattern if not c.isspace() and c not in ",-"]
    for c in found:
        if c not in known:
            choices = ", ".join(f"{letter} {kind}" for letter, kind in sorted(known.items()))
            raise ConfigError(f"unknown letter {c!r} in pattern {pattern!r}; the letters are {choices}")
    if not found:
        raise ConfigError("an empty pattern; give one letter a layer, such as 'DDDA'")
    if num_layers is not None and num_layers % len(found):
        raise ConfigError(
            f"pattern {pattern!r} has {len(found)} layers, which do not divide num_hidden_layers={num_layers}"
        )
    return [known[c] for c in found] * ((num_layers or len(found)) // len(found))


def make_options(kind: str, values: Mapping[str, Any]) -> Any:
    """Typed options of a kind from plain values.

    Raises:
        ConfigError: an unknown option (with the nearest names) or a wrong type.
    """
    cls = mixer_class(kind).options_class
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    checked = {}
    for key, value in values.items():
        if key not in names:
            raise ConfigError(unknown(f"option of mixer {kind!r}", key, names))
        hint = hints[key]
        allowed = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        plain = tuple(str if typing.get_origin(a) is typing.Literal else a for a in allowed)
        if float in plain and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if (isinstance(value, bool) and bool not in plain) or not isinstance(value, plain):
            names_of = " or ".join(getattr(a, "__name__", str(a)) for a in plain)
            raise ConfigError(f"option {key!r} of mixer {kind!r} must be {names_of}, got {value!r}")
        checked[key] = value
    return cls(**checked)


def require(condition: bool, message: str) -> None:
    """Raise ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def choose(kind: str, value: str, choices: Sequence[str]) -> None:
    """Raise ConfigError unless value is one of the choices."""
    if value not in choices:
        raise ConfigError(unknown(kind, value, choices))


def no_packing(ctx: MixerContext, kind: str) -> None:
    """For mixers without a packed form."""
    if ctx.cu_seqlens is not None:
        raise InputError(f"mixer {kind!r} cannot run packed documents; pad them instead (attention_mask)")
