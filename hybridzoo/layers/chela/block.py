"""The CHELA layer, reconstructed from what is public of "Short-Long Convolutions Help Hardware-Efficient Linear
Attention to Focus on Long Sequences" (https://arxiv.org/abs/2406.08128). There is no official code; every open choice
is an option.

    c = LongConv(SiLU(ShortConv(x)))                      several scales, seen from every position
    q, k from c;  v from x;  m = LinearAttention(q, k, v) what the data select
    y = (gate(c) * Norm(m)) W_o                           the convolutions' view gates the attention's

Legend: B rows, T positions, D width, Z query and key width, V value width, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from hybridzoo.layers.autocast import autocast_dtype
from hybridzoo.layers.chela.long_conv import MultiScaleConv
from hybridzoo.layers.chela.norms import make_norm, zero_padding
from hybridzoo.layers.chela.options import ChelaOptions
from hybridzoo.layers.chela.short_conv import ShortConv
from hybridzoo.layers.rotary import Rotary, rotate
from hybridzoo.ops.linear_attention import linear_attention


class ChelaMixing(nn.Module):
    """What the layer does between its norms: (B, T, D) -> (B, T, D), to be added to its input by the caller.

    Args:
        width: D.
        max_length: longest sequence.
        options: see `ChelaOptions`.
        causal: look back only.
        eps: of the norm after the attention.
    """

    def __init__(self, width: int, max_length: int, options: ChelaOptions, *, causal: bool, eps: float = 1e-5) -> None:
        super().__init__()
        z, v = options.check(width)
        self.options, self.causal, self.z_width, self.value_width = options, causal, z, v
        o = options
        self.short = None
        if o.use_short:
            self.short = ShortConv(
                width,
                o.short_width,
                o.short_branches,
                identity=o.short_identity,
                causal=causal,
                norm=o.branch_norm,
                merged=o.merged,
            )
        self.long, self.beside = None, None
        if o.use_long:
            self.long = MultiScaleConv(
                width,
                max_length if o.kernel_length is None else o.kernel_length,
                kernel_dim=o.kernel_dim,
                n_scales=o.n_scales,
                init_scale=o.init_scale,
                bidirectional=not causal,
                mode=o.long_mode,
                interpolation=o.interpolation,
                decay=o.decay,
                decay_min=o.decay_min,
                decay_max=o.decay_max,
                any_length=o.kernel_length is not None,
            )
            if o.long_short_parallel:
                taps = o.long_short_parallel
                self.beside = ShortConv(
                    width, taps, ((taps, 1),), identity=False, causal=causal, norm=o.branch_norm, merged=o.merged
                )
        self.rotary = None
        if o.use_attention:
            if o.qk_proj == "shared":
                self.z_proj = nn.Linear(width, z)
                self.gamma, self.beta = nn.Parameter(torch.empty(2, z)), nn.Parameter(torch.empty(2, z))
            else:
                self.q_proj, self.k_proj = nn.Linear(width, z), nn.Linear(width, z)
            kind = o.attn_norm if o.attn_norm in ("rms", "layer") else "none"
            self.attn_norm = make_norm(kind, v // o.num_heads, eps)
            if o.positions == "rotary":
                self.rotary = Rotary(z // o.num_heads)
        self.v_proj, self.g_proj, self.o_proj = nn.Linear(width, v), nn.Linear(width, v), nn.Linear(v, width)
        if o.gate_residual == "update":
            self.u_proj, self.h_proj = nn.Linear(width, width), nn.Linear(width, width)

    def init_weights(self) -> None:
        """Scales near 1 and shifts 0; linear layers and convolutions are drawn by the model."""
        if self.options.use_attention and self.options.qk_proj == "shared":
            init.normal_(self.gamma, mean=1.0, std=0.02)
            init.zeros_(self.beta)

    def convolve(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """c (B, T, D)."""
        x = zero_padding(autocasted(x), valid)
        if self.options.conv_order == "long_short":
            y = self._long(x, valid)
            return y if self.short is None else self.short(zero_padding(F.silu(y), valid), valid)
        if self.short is not None:
            x = zero_padding(self.short(x, valid, "silu"), valid)
        return self._long(x, valid)

    def _long(self, x: Tensor, valid: Tensor | None) -> Tensor:
        if self.long is None:
            return x
        if self.beside is None:
            return self.long(x)
        if self.beside.follows_batches:
            return self.long(x) + self.beside(x, valid)
        taps, bias = self.beside.kernel()
        y = self.long(x, taps)
        return y if bias is None else y + bias.to(y.dtype)

    def queries_keys(self, c: Tensor, tables: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """(B, T, H, Z / H) each, feature map and rotation applied."""
        if self.options.qk_proj == "shared":
            z = F.silu(self.z_proj(c))
            q, k = z * self.gamma[0] + self.beta[0], z * self.gamma[1] + self.beta[1]
        else:
            q, k = self.q_proj(c), self.k_proj(c)
        heads = (self.options.num_heads, self.z_width // self.options.num_heads)
        q, k = (feature_map(x.unflatten(2, heads), self.options.feature_map) for x in (q, k))
        if self.rotary is not None:
            at = tables or self.rotary.tables(torch.arange(c.shape[1], device=c.device).unsqueeze(0), c.shape[1])
            q, k = (rotate(x.transpose(1, 2), *at).transpose(1, 2) for x in (q, k))
        return q, k

    def values(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, T, H, V / H)"""
        v = F.silu(self.v_proj(x if self.options.value_source == "input" else c))
        return v.unflatten(2, (self.options.num_heads, -1))

    def select(
        self,
        x: Tensor,
        c: Tensor,
        valid: Tensor | None,
        tables: tuple[Tensor, Tensor] | None = None,
        before: Tensor | None = None,
        keep_state: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """m (B, T, V), and the attention's state after the last position if it is to be kept.

        Args:
            x: (B, T, D) the layer's input.
            c: (B, T, D) what the convolutions make of it.
            valid: (B, T) bool, False at padding.
            tables: cos and sin of the positions; None: they start at 0.
            before: the state before the first position, see `linear_attention`.
            keep_state: return the state; causal only.
        """
        v = self.values(x, c)
        if not self.options.use_attention:
            return v.flatten(2), None
        q, k = self.queries_keys(c, tables)
        dtype = v.dtype
        v = v.float() if dtype == torch.float16 else v  # sums over many positions leave its range before their norm
        if valid is not None:
            k = k * valid[:, :, None, None].to(k.dtype)
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast the scales and shifts are fp32
        found = linear_attention(
            q,
            k,
            v,
            causal=self.causal,
            normalize=self.options.attn_norm == "denominator",
            initial_state=before,
            return_final_state=keep_state,
        )
        m, after = found if isinstance(found, tuple) else (found, None)
        return self.attn_norm(m).flatten(2).to(dtype), after

    def combine(self, x: Tensor, c: Tensor, m: Tensor) -> Tensor:
        """Gate m (B, T, V) and project; x (B, T, D) is the residual stream, which "update" blends with."""
        gate = self.g_proj(c)
        y = self.o_proj((F.silu(gate) if self.options.gate_act == "silu" else gate.sigmoid()) * m)
        if self.options.gate_residual == "update":
            return self.u_proj(c).sigmoid() * (F.silu(self.h_proj(c) + y) - x)
        return y

    def forward(self, x: Tensor, valid: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Mix a whole sequence.

        Args:
            x: (B, T, D).
            valid: (B, T) bool, False at padding, whose outputs mean nothing.
            residual: (B, T, D) what the result is added to, where that is not x (pre-norm).

        Returns:
            (B, T, D)
        """
        residual, x = x if residual is None else residual, autocasted(x)  # cast once for all that take it
        c = self.convolve(x, valid)
        m, _ = self.select(x, c, valid)
        return self.combine(residual, c, m)

    def merge(self) -> None:
        """See `ShortConv.merge`."""
        for part in (self.short, self.beside):
            if part is not None:
                part.merge()


def merge_convolutions(model: nn.Module, config: Any) -> None:
    """Merge the parallel convolutions of all layers, and note it in a configuration that has `mixer_options`."""
    found = [module for module in model.modules() if isinstance(module, ChelaMixing)]
    for module in found:
        module.merge()
    if found:
        config.mixer_options = {**(config.mixer_options or {}), "merged": True}


def autocasted(x: Tensor) -> Tensor:
    """x in the type that linear layers would take it in: under autocast a norm's output is fp32, twice the memory."""
    dtype = autocast_dtype(x.device.type)
    return x if dtype is None or x.dtype != torch.float32 else x.to(dtype)


def undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay would only harm: kernels, decay rates, scales and shifts."""
    words = (".kernel_list.", ".decay.", ".long.D.", ".gamma.", ".beta.")
    return {name for name, _ in model.named_parameters() if any(word in f".{name}." for word in words)}


def feature_map(x: Tensor, kind: str) -> Tensor:
    """phi over the last dimension."""
    if kind == "elu1":
        return F.elu(x) + 1
    if kind == "relu":
        return F.relu(x)
    if kind == "silu":
        return F.silu(x)
    return x.softmax(-1) if kind == "softmax" else x
