"""DeltaNet's mixer: linear attention whose state is corrected by the delta rule.

Yang et al. 2024, https://arxiv.org/abs/2406.06484; the options and their order of effect are those of fla's layer
(https://github.com/fla-org/flash-linear-attention, `fla/layers/delta_net.py`).

Legend: B rows, T positions, H heads, K key width, V value width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridzoo.layers.fused import fused, stands_for
from hybridzoo.layers.mixer import KV, Mixer, MixerContext, MixerInfo, MixerOutput, State, choose, require
from hybridzoo.layers.norms import RMSNorm
from hybridzoo.layers.short_conv import ShortConv
from hybridzoo.ops.delta_rule import delta_rule, delta_rule_step

QK_ACTIVATIONS = ("silu", "relu", "elu", "identity")
QK_NORMS = ("l2", "sum")
_EPS = 1e-6  # of the norms of q and k, fixed in the original


@dataclass(frozen=True)
class DeltaOptions:
    """Options of `delta`.

    Args:
        num_heads: H.
        expand_k, expand_v: widths of all keys and values, relative to hidden_size.
        use_short_conv: short convolutions of q, k and v.
        conv_size: their taps.
        conv_bias: whether they have biases.
        use_beta: a learned writing strength per head and position; else 1.
        allow_neg_eigval: strengths up to 2, so that the state can be reflected.
        use_gate: gate the output by silu of a projection.
        qk_activation: `"silu"`, `"relu"`, `"elu"` (plus 1) or `"identity"`.
        qk_norm: `"l2"` or `"sum"`.
    """

    num_heads: int = 4
    expand_k: float = 1.0
    expand_v: float = 1.0
    use_short_conv: bool = True
    conv_size: int = 4
    conv_bias: bool = False
    use_beta: bool = True
    allow_neg_eigval: bool = False
    use_gate: bool = False
    qk_activation: str = "silu"
    qk_norm: str = "l2"


class DeltaMixer(Mixer):
    """q, k, v -> short convolution, activation, norm -> delta rule -> norm (and gate) -> out."""

    options_class = DeltaOptions

    def __init__(self, hidden_size: int, options: DeltaOptions, info: MixerInfo) -> None:
        super().__init__()
        choose("qk_activation", options.qk_activation, QK_ACTIVATIONS)
        choose("qk_norm", options.qk_norm, QK_NORMS)
        heads = options.num_heads
        keys, values = int(hidden_size * options.expand_k), int(hidden_size * options.expand_v)
        require(
            heads > 0 and keys > 0 and values > 0 and keys % heads == 0 and values % heads == 0,
            f"hidden_size={hidden_size} with expand_k={options.expand_k}, expand_v={options.expand_v} gives {keys} key "
            f"and {values} value channels, which num_heads={heads} must divide",
        )
        require(options.conv_size > 0, f"conv_size={options.conv_size} must be at least 1")
        self.heads, self.options = heads, options
        self.q_proj = nn.Linear(hidden_size, keys, bias=False)
        self.k_proj = nn.Linear(hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(hidden_size, values, bias=False)
        self.b_proj = nn.Linear(hidden_size, heads, bias=False) if options.use_beta else None
        self.q_conv1d = self.k_conv1d = self.v_conv1d = None
        if options.use_short_conv:
            taps, bias = options.conv_size, options.conv_bias
            on_qk = "silu" if options.qk_activation == "silu" else None
            self.q_conv1d = ShortConv(keys, taps, bias=bias, activation=on_qk)
            self.k_conv1d = ShortConv(keys, taps, bias=bias, activation=on_qk)
            self.v_conv1d = ShortConv(values, taps, bias=bias, activation="silu")
        self.g_proj = nn.Linear(hidden_size, values, bias=False) if options.use_gate else None
        self.o_norm = RMSNorm(values // heads, info.norm_eps)
        self.o_proj = nn.Linear(values, hidden_size, bias=False)

    def forward(self, x: Tensor, ctx: MixerContext, state: State | None = None, kv: KV | None = None) -> MixerOutput:
        new: State | None = {} if ctx.return_state else None
        q = self._features(self.q_proj(x), self.q_conv1d, "conv_q", ctx, state, new)
        k = self._features(self.k_proj(x), self.k_conv1d, "conv_k", ctx, state, new)
        v = self._convolved(self.v_proj(x), self.v_conv1d, "conv_v", True, ctx, state, new).unflatten(
            2, (self.heads, -1)
        )
        if self.b_proj is None:
            beta = torch.ones(q.shape[:3], dtype=torch.float32, device=x.device)
        else:
            beta = self.b_proj(x).float().sigmoid()
        if self.options.allow_neg_eigval:
            beta = beta * 2
        if ctx.valid is not None and ctx.return_state:
            beta = beta.masked_fill(~ctx.valid.unsqueeze(2), 0.0)
        before = None if state is None else state["delta"]
        if x.shape[1] == 1 and before is not None and ctx.cu_seqlens is None:
            o, after = fused(delta_rule_step, before, q[:, 0], k[:, 0], v[:, 0], beta[:, 0], inplace=ctx.inplace)
            o = o.unsqueeze(1)
        else:
            o, after = delta_rule(
                q, k, v, beta, initial_state=before, return_final_state=True, cu_seqlens=ctx.cu_seqlens
            )
        if new is not None:
            new["delta"] = after
        o = self.o_norm(o)
        if self.g_proj is not None:
            o = o * F.silu(self.g_proj(x)).unflatten(2, (self.heads, -1))
        return MixerOutput(self.o_proj(o.to(x.dtype).flatten(2)), new)

    def _convolved(
        self,
        x: Tensor,
        conv: ShortConv | None,
        name: str,
        silu: bool,
        ctx: MixerContext,
        state: State | None,
        new: State | None,
    ) -> Tensor:
        if conv is None:
            return F.silu(x) if silu else x
        y, after = conv(x, ctx, None if state is None else state[name])
        if new is not None and after is not None:
            new[name] = after
        return y

    def _features(
        self, x: Tensor, conv: ShortConv | None, name: str, ctx: MixerContext, state: State | None, new: State | None
    ) -> Tensor:
        """(B, T, H * K) -> (B, T, H, K): convolution, activation, norm over the head's width (in fp32)."""
        kind = self.options.qk_activation
        y = self._convolved(x, conv, name, kind == "silu", ctx, state, new).unflatten(2, (self.heads, -1))
        if kind == "relu":
            y = F.relu(y)
        elif kind == "elu":
            y = F.elu(y) + 1
        norm = _l2_normalised if self.options.qk_norm == "l2" else _sum_normalised
        return fused(norm, y) if norm is _l2_normalised else norm(y)


def _l2_normalised(x: Tensor) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + _EPS)).to(x.dtype)


def _sum_normalised(x: Tensor) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide / (wide.abs().sum(-1, keepdim=True) + _EPS)).to(x.dtype)


stands_for("delta_step", delta_rule_step)
stands_for("unit", _l2_normalised, gradient=True)
