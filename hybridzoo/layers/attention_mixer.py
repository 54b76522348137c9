"""Softmax attention as a mixer: grouped heads, rotary positions, an optional window, keys and values shared by layers.

Legend: B rows, T positions, H query heads, G key heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from hybridzoo.layers.fused import fused, rotated_pair
from hybridzoo.layers.kv import extend_kv
from hybridzoo.layers.mixer import KV, Mixer, MixerContext, MixerInfo, MixerOutput, State, choose, require
from hybridzoo.layers.norms import HeadRMSNorm
from hybridzoo.layers.rotary import Rotary, rotate
from hybridzoo.ops.hybrid_attention import hybrid_attention

QK_NORMS = ("none", "rms", "perhead-rms")


@dataclass(frozen=True)
class AttentionOptions:
    """Options of `attention`.

    Args:
        num_heads: H.
        num_kv_heads: G; as many as H if left out.
        head_dim: K; hidden_size / num_heads if left out.
        window: keys that a query sees, itself included; None for all.
        qkv_bias: biases of the three input projections.
        rope: rotary positions.
        rope_theta: their base.
        rope_type: `"default"`, `"ntk"` or `"dynamic_ntk"` (see `Rotary`).
        rope_original_positions: for the NTK types.
        qk_norm: `"none"`, `"rms"` (one weight for all heads) or `"perhead-rms"`, before the rotation.
    """

    num_heads: int = 8
    num_kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    qkv_bias: bool = False
    rope: bool = True
    rope_theta: float = 10_000.0
    rope_type: str = "default"
    rope_original_positions: int | None = None
    qk_norm: str = "none"


@dataclass(frozen=True)
class SlidingAttentionOptions(AttentionOptions):
    """Options of `swa`: as `attention`, with a window."""

    window: int | None = 1024


def split_heads(x: Tensor, heads: int, ctx: MixerContext) -> Tensor:
    """(B, T, H * K) -> (R, H, T, K); packed documents are cut into their rows again."""
    x = x.unflatten(2, (heads, -1))
    if ctx.cu_seqlens is not None:
        x = x.view(ctx.rows, -1, *x.shape[2:])
    return x.transpose(1, 2)


def merge_heads(x: Tensor, ctx: MixerContext) -> Tensor:
    """(R, H, T, K) -> (B, T, H * K)"""
    x = x.transpose(1, 2).flatten(2)
    return x.reshape(1, -1, x.shape[2]) if ctx.cu_seqlens is not None else x


def rope_of(options: AttentionOptions, width: int, info: MixerInfo) -> Rotary | None:
    """The rotary embedding of a layer."""
    if not options.rope:
        return None
    kind, original = options.rope_type, options.rope_original_positions
    return Rotary(width, options.rope_theta, kind, info.max_positions, original)


def turn(x: Tensor, rotary: Rotary | None, ctx: MixerContext) -> Tensor:
    """Rotate (R, H, T, K) by the call's positions."""
    if rotary is None:
        return x
    cos, sin = ctx.rope(rotary)
    if ctx.cu_seqlens is not None:
        cos, sin = (t.view(ctx.rows, -1, t.shape[2]) for t in (cos, sin))
    return fused(rotate, x, cos, sin)


def turn_pair(q: Tensor, k: Tensor, rotary: Rotary | None, ctx: MixerContext) -> tuple[Tensor, Tensor]:
    """`turn` for queries and keys of the same positions."""
    if rotary is None or ctx.cu_seqlens is not None:
        return turn(q, rotary, ctx), turn(k, rotary, ctx)
    return fused(rotated_pair, q, k, *ctx.rope(rotary))


def head_norm(kind: str, width: int, heads: int) -> HeadRMSNorm | None:
    """The norm that `qk_norm` names."""
    choose("qk_norm", kind, QK_NORMS)
    return None if kind == "none" else HeadRMSNorm(width, heads if kind == "perhead-rms" else None)


class AttentionMixer(Mixer):
    """Causal attention; with `info.owns_kv` False it reads the keys and values of an earlier layer."""

    options_class = AttentionOptions

    def __init__(self, hidden_size: int, options: AttentionOptions, info: MixerInfo) -> None:
        super().__init__()
        heads = options.num_heads
        groups = heads if options.num_kv_heads is None else options.num_kv_heads
        require(heads > 0 and groups > 0, f"num_heads={heads} and num_kv_heads={groups} must be at least 1")
        require(heads % groups == 0, f"num_heads={heads} must be a multiple of num_kv_heads={groups}")
        require(
            options.head_dim is not None or hidden_size % heads == 0,
            f"hidden_size={hidden_size} is no multiple of num_heads={heads}: give head_dim",
        )
        require(options.window is None or options.window > 0, f"window={options.window} must be at least 1, or None")
        self.heads, self.groups, self.window = heads, groups, options.window
        width = options.head_dim or hidden_size // heads
        self.q_proj = nn.Linear(hidden_size, heads * width, bias=options.qkv_bias)
        own = info.owns_kv
        self.k_proj = nn.Linear(hidden_size, groups * width, bias=options.qkv_bias) if own else None
        self.v_proj = nn.Linear(hidden_size, groups * width, bias=options.qkv_bias) if own else None
        self.o_proj = nn.Linear(heads * width, hidden_size, bias=False)
        self.q_norm = head_norm(options.qk_norm, width, heads)
        self.k_norm = head_norm(options.qk_norm, width, groups) if own else None
        self.rotary = rope_of(options, width, info)

    def slots(self) -> int | None:
        return 0 if self.k_proj is None else self.window

    def forward(self, x: Tensor, ctx: MixerContext, state: State | None = None, kv: KV | None = None) -> MixerOutput:
        q = split_heads(self.q_proj(x), self.heads, ctx)
        q = q if self.q_norm is None else self.q_norm(q)
        if self.k_proj is not None and self.v_proj is not None:
            k = split_heads(self.k_proj(x), self.groups, ctx)
            q, k = turn_pair(q, k if self.k_norm is None else self.k_norm(k), self.rotary, ctx)
            v = split_heads(self.v_proj(x), self.groups, ctx)
            kv, state = extend_kv(state, k, v, self.window, ctx)
        else:
            q, state = turn(q, self.rotary, ctx), {} if ctx.return_state else None
        assert kv is not None
        y = hybrid_attention(q, kv.k.to(q.dtype), kv.v.to(q.dtype), kv.plan)
        return MixerOutput(self.o_proj(merge_heads(y, ctx)), state, kv)


class SlidingAttentionMixer(AttentionMixer):
    """Attention that must have a window."""

    options_class = SlidingAttentionOptions

    def __init__(self, hidden_size: int, options: SlidingAttentionOptions, info: MixerInfo) -> None:
        require(options.window is not None, "mixer 'swa' needs a window; 'attention' sees everything")
        super().__init__(hidden_size, replace(options), info)
