"""Mega's layer, the baseline that CHELA's recipe descends from: "Mega: Moving Average Equipped Gated Attention",
https://arxiv.org/abs/2209.10655 (https://github.com/facebookresearch/mega). The keys are the original's.

Legend: B rows, T positions, D width, Z query and key width, V value width, N averages of a channel.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from hybridzoo.errors import ConfigError, InputError
from hybridzoo.layers.chela.norms import make_norm, zero_padding
from hybridzoo.ops.long_conv import long_conv

ATTENTIONS = ("softmax", "laplace")


class MovingAverage(nn.Module):
    """Multi-dimensional damped moving average, a convolution with a sum of N geometric kernels; then SiLU.

    Args:
        width: D.
        averages: N.
        bidirectional: average over later positions, too; both directions include the present one.
        truncation: longest kernel; None: as long as the sequence.
    """

    def __init__(self, width: int, averages: int = 16, *, bidirectional: bool = True, truncation: int | None = None):
        super().__init__()
        rows = 2 * width if bidirectional else width
        self.bidirectional, self.truncation = bidirectional, truncation
        self.delta = nn.Parameter(torch.empty(rows, averages, 1))
        self.alpha = nn.Parameter(torch.empty(rows, averages, 1))
        self.beta = nn.Parameter(torch.empty(rows, averages, 1))
        self.gamma = nn.Parameter(torch.empty(rows, averages))
        self.omega = nn.Parameter(torch.empty(width))

    def init_weights(self) -> None:
        """As the original: alternating signs in beta, so that the averages start different."""
        init.normal_(self.delta, std=0.2)
        init.normal_(self.alpha, std=0.2)
        signs = torch.ones(self.beta.shape[1], 1)
        signs[1::2] = -1.0
        if not self.beta.is_meta:
            init.copy_(self.beta, torch.randn(self.beta.shape, device=self.beta.device) * 0.02 + signs.to(self.beta))
        init.normal_(self.gamma)
        init.normal_(self.omega)

    def kernel(self, length: int) -> Tensor:
        """(D or 2 D, taps)"""
        taps = length if self.truncation is None else min(length, self.truncation)
        p = self.delta.float().sigmoid()
        log_q = torch.log1p(-p * self.alpha.float().sigmoid())
        powers = torch.exp(log_q * torch.arange(taps, device=p.device, dtype=torch.float32))  # (rows, N, taps)
        weights = p * self.beta.float() * (self.gamma.float() * self.gamma.shape[1] ** -0.5).unsqueeze(2)
        return (weights * powers).sum(1)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        inputs = zero_padding(x, valid)
        with torch.autocast(x.device.type, enabled=False):
            kernel = self.kernel(x.shape[1])
            if not self.bidirectional:
                y = long_conv(inputs, kernel)
            else:
                back, ahead = kernel.chunk(2)  # both first taps act at the present position
                later = ahead[:, 1:] if ahead.shape[1] > 1 else None
                y = long_conv(inputs, back, later, ahead[:, 0])
        return F.silu(y + x * self.omega.to(x.dtype))


class RelativeBias(nn.Module):
    """A learned bias for each distance between positions."""

    def __init__(self, max_positions: int) -> None:
        super().__init__()
        self.max_positions = max_positions
        self.rel_pos_bias = nn.Parameter(torch.empty(2 * max_positions - 1))

    def init_weights(self) -> None:
        """N(0, 0.02)"""
        init.normal_(self.rel_pos_bias, std=0.02)

    def forward(self, length: int) -> Tensor:
        """(T, T)

        Raises:
            InputError: more positions than the table holds.
        """
        if length > self.max_positions:
            raise InputError(
                f"{length} positions are more than the {self.max_positions} of the bias table; cut the input, or build "
                "the model with a larger max_length or with chunk_size"
            )
        at = torch.arange(length, device=self.rel_pos_bias.device)
        return self.rel_pos_bias[self.max_positions - 1 + at.unsqueeze(0) - at.unsqueeze(1)]


class NormHolder(nn.Module):
    """Holds a norm under the original's key, `norm.norm`."""

    def __init__(self, kind: str, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = make_norm(kind, width, eps)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        return self.norm(x, valid)


class MegaLayer(nn.Module):
    """Gated attention whose queries and keys come from the moving average. (B, T, D) -> (B, T, D), residual included.

    Args:
        width, z_width, value_width, averages: D, Z, V, N.
        max_length: longest sequence.
        attention: "softmax" or "laplace".
        norm: see `make_norm`.
        pre_norm: norm before the layer instead of after the residual.
        chunk_size: attend inside chunks of this many positions; None: everywhere.
        causal: look back only.
        dropout: of the gated attention's output.
        norm_eps: of the norm.
    """

    def __init__(
        self,
        width: int,
        z_width: int,
        value_width: int,
        averages: int,
        max_length: int,
        *,
        attention: str = "softmax",
        norm: str = "layer",
        pre_norm: bool = False,
        chunk_size: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if attention not in ATTENTIONS:
            raise ConfigError(f"mega attention must be one of {ATTENTIONS}, got {attention!r}")
        self.z_width, self.value_width, self.pre_norm, self.causal = z_width, value_width, pre_norm, causal
        self.attention, self.chunk_size = attention, chunk_size
        self.move = MovingAverage(width, averages, bidirectional=not causal)
        self.v_proj = nn.Linear(width, value_width)
        self.mx_proj = nn.Linear(width, z_width + value_width + 2 * width)
        self.h_proj = nn.Linear(value_width, width)
        self.gamma, self.beta = nn.Parameter(torch.empty(2, z_width)), nn.Parameter(torch.empty(2, z_width))
        self.rel_pos_bias = RelativeBias(chunk_size or max_length)
        self.norm = NormHolder(norm, width, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """As the original."""
        init.normal_(self.gamma, std=0.02)
        init.zeros_(self.beta)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """valid (B, T) bool, False at padding."""
        residual = x
        if self.pre_norm:
            x = self.norm(x, valid)
        v = F.silu(self.v_proj(x))
        base = self.mx_proj(self.move(x, valid))
        width = x.shape[2]
        u, zr, hx = base.split((width, self.z_width + self.value_width, width), 2)
        z, r = F.silu(zr).split((self.z_width, self.value_width), 2)
        qk = z.unsqueeze(2) * self.gamma + self.beta
        q, k = qk.unbind(2)
        h = F.silu(hx + self.h_proj(self._attend(q, k, v, valid) * r))
        out = residual + u.sigmoid() * (self.dropout(h) - residual)
        return out if self.pre_norm else self.norm(out, valid)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
        rows, length, _ = q.shape
        size = self.chunk_size
        if size is None or length <= size:
            return self._attend_whole(q, k, v, valid)
        if length % size:
            pad = -length % size
            valid = torch.ones(rows, length, dtype=torch.bool, device=q.device) if valid is None else valid
            q, k, v = (F.pad(x, (0, 0, 0, pad)) for x in (q, k, v))
            valid = F.pad(valid, (0, pad))
        q, k, v = (x.unflatten(1, (-1, size)).flatten(0, 1) for x in (q, k, v))
        masks = None if valid is None else valid.unflatten(1, (-1, size)).flatten(0, 1)
        return self._attend_whole(q, k, v, masks).unflatten(0, (rows, -1)).flatten(1, 2)[:, :length]

    def _attend_whole(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
        length = q.shape[1]
        bias = self.rel_pos_bias(length)
        seen = torch.ones(length, length, dtype=torch.bool, device=q.device)
        seen = (seen.tril() if self.causal else seen).unsqueeze(0)
        if valid is not None:
            seen = seen & valid.unsqueeze(1)
        scores = q @ k.transpose(1, 2)
        if self.attention == "softmax":
            scores = scores * self.z_width**-0.5 + bias
            lost = ~seen.any(2, keepdim=True)  # a row of padding alone would give NaN
            weights = scores.float().masked_fill(~(seen | lost), float("-inf")).softmax(2)
            return weights.to(v.dtype) @ v
        counts = seen.sum(2, keepdim=True).clamp_min(1).to(scores.dtype)
        scores = (scores / counts + bias).float()
        mean, std = math.sqrt(0.5), math.sqrt(0.25 / math.pi)
        weights = 0.5 * (1 + torch.erf((scores - mean) / (std * math.sqrt(2.0))))
        return (weights * seen).to(v.dtype) @ v
