"""Hymba's hybrid heads: attention and Mamba side by side on one projection of the same input.

Dong et al. 2024, https://arxiv.org/abs/2411.13676, section 2.1; original code: `HymbaBlock` in the repository
nvidia/Hymba-1.5B-Base. The outputs are normalised, averaged, and projected; the two norm weights are the paper's beta.

Legend: B rows, T positions, D model width, I inner width, H query heads, G key heads, K = D / H, V = I / H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybridzoo.layers.attention_mixer import (
    AttentionOptions,
    head_norm,
    merge_heads,
    rope_of,
    split_heads,
    turn,
    turn_pair,
)
from hybridzoo.layers.fused import fused, mean_of_norms
from hybridzoo.layers.kv import extend_kv
from hybridzoo.layers.mamba_mixer import MambaOptions, ssm_of
from hybridzoo.layers.mixer import KV, Mixer, MixerContext, MixerInfo, MixerOutput, State, require
from hybridzoo.layers.norms import RMSNorm
from hybridzoo.ops.hybrid_attention import hybrid_attention


@dataclass(frozen=True)
class HymbaOptions:
    """Options of `hymba`: those of `attention` (without head_dim and qkv_bias) and those of `mamba`."""

    num_heads: int = 8
    num_kv_heads: int | None = None
    window: int | None = None
    rope: bool = True
    rope_theta: float = 10_000.0
    rope_type: str = "default"
    rope_original_positions: int | None = None
    qk_norm: str = "none"
    d_state: int = 16
    d_conv: int = 4
    expand: float = 2.0
    dt_rank: int | None = None
    conv_bias: bool = True
    proj_bias: bool = False
    inner_norms: bool = True
    dt_init: str = "zero"


class HymbaMixer(Mixer):
    """out((norm(attention) + norm(mamba)) / 2); with `info.owns_kv` False it projects no keys and values."""

    options_class = HymbaOptions

    def __init__(self, hidden_size: int, options: HymbaOptions, info: MixerInfo) -> None:
        super().__init__()
        heads = options.num_heads
        groups = heads if options.num_kv_heads is None else options.num_kv_heads
        require(heads > 0 and groups > 0, f"num_heads={heads} and num_kv_heads={groups} must be at least 1")
        require(heads % groups == 0, f"num_heads={heads} must be a multiple of num_kv_heads={groups}")
        require(hidden_size % heads == 0, f"hidden_size={hidden_size} must be a multiple of num_heads={heads}")
        require(options.window is None or options.window > 0, f"window={options.window} must be at least 1, or None")
        shared = {f: getattr(options, f) for f in MambaOptions.__dataclass_fields__}
        inner, self.ssm = ssm_of(hidden_size, MambaOptions(**shared), info)
        require(inner % heads == 0, f"expand * hidden_size = {inner} must be a multiple of num_heads={heads}")
        self.heads, self.groups, self.window, self.owns_kv = heads, groups, options.window, info.owns_kv
        width, value_width = hidden_size // heads, inner // heads
        kv = [groups * width, groups * value_width] if info.owns_kv else []
        self.parts = [heads * width, *kv, inner, inner]  # q | k | v | ssm input | ssm gate
        self.in_proj = nn.Linear(hidden_size, sum(self.parts), bias=options.proj_bias)
        self.out_proj = nn.Linear(inner, hidden_size, bias=options.proj_bias)
        self.attention_norm = RMSNorm(inner, info.norm_eps, round_first=info.round_first)
        self.ssm_norm = RMSNorm(inner, info.norm_eps, round_first=info.round_first)
        self.q_norm = head_norm(options.qk_norm, width, heads)
        self.k_norm = head_norm(options.qk_norm, width, groups) if info.owns_kv else None
        named = {f: getattr(options, f) for f in ("rope", "rope_theta", "rope_type", "rope_original_positions")}
        self.rotary = rope_of(AttentionOptions(**named), width, info)

    def slots(self) -> int | None:
        return self.window if self.owns_kv else 0

    def forward(self, x: Tensor, ctx: MixerContext, state: State | None = None, kv: KV | None = None) -> MixerOutput:
        parts = self.in_proj(x).split(self.parts, -1)
        q = split_heads(parts[0], self.heads, ctx)
        q = q if self.q_norm is None else self.q_norm(q)
        kv_state: State | None = {} if ctx.return_state else None
        if self.owns_kv:
            k = split_heads(parts[1], self.groups, ctx)
            q, k = turn_pair(q, k if self.k_norm is None else self.k_norm(k), self.rotary, ctx)
            kv, kv_state = extend_kv(state, k, split_heads(parts[2], self.groups, ctx), self.window, ctx)
        else:
            q = turn(q, self.rotary, ctx)
        assert kv is not None
        attention = merge_heads(hybrid_attention(q, kv.k.to(q.dtype), kv.v.to(q.dtype), kv.plan), ctx)
        y, ssm_state = self.ssm(parts[-2], parts[-1], ctx, state)
        if self.attention_norm.round_first and not torch.is_grad_enabled():
            weights = self.attention_norm.weight, self.ssm_norm.weight
            mean = fused(mean_of_norms, attention, weights[0], y, weights[1], self.attention_norm.eps)
        else:
            mean = (self.attention_norm(attention) + self.ssm_norm(y)) / 2
        new = None if kv_state is None or ssm_state is None else {**kv_state, **ssm_state}
        return MixerOutput(self.out_proj(mean.to(x.dtype)), new, kv)
