"""The encoder of CHELA classifiers: embedding, layers of a mixer and a feed-forward part, mean over positions.

Legend: B rows, T positions, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from hybridzoo.layers.chela.block import ChelaMixing
from hybridzoo.layers.chela.norms import added_and_normed, make_norm
from hybridzoo.layers.rotary import Rotary, rotate
from hybridzoo.models.chela.configuration import ChelaConfig
from hybridzoo.models.chela.mega import MegaLayer, NormHolder


class PixelEmbedding(nn.Module):
    """An affine map of each pixel: (B, T, C) -> (B, T, D)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """x times weight plus bias"""
        return x @ self.weight + self.bias


class SelfAttention(nn.Module):
    """Softmax attention of several heads over the valid positions, with rotary positions; the baseline."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.rotary = Rotary(width // num_heads)
        self.qkv, self.o_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        tables = self.rotary.tables(torch.arange(x.shape[1], device=x.device).unsqueeze(0), x.shape[1])
        q, k = rotate(q, *tables), rotate(k, *tables)
        seen = None if valid is None else valid[:, None, None, :]
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, SiLU, linear, with its own norm and residual. Keys as Mega's."""

    def __init__(self, config: ChelaConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.fc1 = nn.Linear(config.hidden_size, config.ffn_hidden_size)
        self.fc2 = nn.Linear(config.ffn_hidden_size, config.hidden_size)
        self.norm = NormHolder(config.norm, config.hidden_size, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        y = self.norm(x, valid) if self.pre_norm else x
        y = self.dropout(self.fc2(self.dropout(F.silu(self.fc1(y)))))
        return x + y if self.pre_norm else added_and_normed(x, y, self.norm.norm, valid)


class ChelaLayer(GradientCheckpointingLayer):
    """A mixer with norm and residual, then the feed-forward part."""

    def __init__(self, config: ChelaConfig) -> None:
        super().__init__()
        options = dict(config.mixer_options or {})
        self.pre_norm, self.whole = config.pre_norm, config.mixer == "mega"
        width = config.hidden_size
        if config.mixer == "mega":
            self.mix: nn.Module = MegaLayer(
                width,
                options.get("z_width") or max(1, width // 2),
                config.value_width,
                options.get("averages", 16),
                config.max_length,
                attention=options.get("attention", "softmax"),
                norm=config.norm,
                pre_norm=config.pre_norm,
                chunk_size=options.get("chunk_size"),
                dropout=float(config.dropout),
                norm_eps=config.norm_eps,
            )
        else:
            self.norm = make_norm(config.norm, width, config.norm_eps)
            self.dropout = nn.Dropout(config.dropout)
            if config.mixer == "attention":
                self.mix = SelfAttention(width, options.get("num_heads", 1))
            else:
                self.mix = ChelaMixing(width, config.max_length, config.options(), causal=False, eps=config.norm_eps)
        self.ffn = FeedForward(config) if config.ffn_hidden_size else None

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        if self.whole:
            x = self.mix(x, valid)
        else:
            inputs = self.norm(x, valid) if self.pre_norm else x
            y = self.mix(inputs, valid, x) if isinstance(self.mix, ChelaMixing) else self.mix(inputs, valid)
            y = self.dropout(y)
            x = x + y if self.pre_norm else added_and_normed(x, y, self.norm, valid)
        return x if self.ffn is None else self.ffn(x, valid)


class ChelaEncoder(nn.Module):
    """Tokens or pixels -> states (B, T, D) and their mean over valid positions (B, D).

    Args:
        config: sizes and choices.
        pixels: embed channels of pixels instead of tokens.
    """

    def __init__(self, config: ChelaConfig, *, pixels: bool) -> None:
        super().__init__()
        width = config.hidden_size
        if pixels:
            self.embed: nn.Module = PixelEmbedding(config.num_channels, width)
        else:
            self.embed = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(ChelaLayer(config) for _ in range(config.num_hidden_layers))
        self.final_norm = NormHolder(config.norm, width, config.norm_eps) if config.pre_norm else None

    def forward(
        self, inputs: Tensor, valid: Tensor | None, *, embeds: Tensor | None = None, all_states: bool = False
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
        """States, pooled states, and the states after every layer if asked for."""
        x = self.embed(inputs) if embeds is None else embeds
        x = self.dropout(x)
        states = [x]
        for layer in self.layers:
            x = layer(x, valid)
            states.append(x)
        if self.final_norm is not None:
            x = self.final_norm(x, valid)
        if valid is None:
            pooled = x.mean(1, dtype=torch.promote_types(x.dtype, torch.float32))
        else:
            kept = valid.unsqueeze(2)
            total = torch.where(kept, x, 0.0).sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
            pooled = total / kept.sum(1).clamp_min(1)
        return x, pooled.to(x.dtype), tuple(states) if all_states else None


def init_module(module: Any, config: ChelaConfig) -> None:
    """Initial values of one module, as CHELA's recipe has them from Mega."""
    if isinstance(module, nn.Linear):
        init.normal_(module.weight, std=config.initializer_range)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight, std=config.hidden_size**-0.5)
        if module.padding_idx is not None:
            init.zeros_(module.weight[module.padding_idx])
    elif isinstance(module, PixelEmbedding):
        init.normal_(module.weight)
        init.normal_(module.bias, std=0.1)
    elif hasattr(module, "init_weights") and not hasattr(module, "config"):
        module.init_weights()  # convolutions, moving averages, scales and shifts
    elif hasattr(module, "reset_parameters") and next(module.parameters(recurse=False), None) is not None:
        for name, value in module.named_parameters(recurse=False):
            (init.ones_ if name in ("weight", "scalar") else init.zeros_)(value)
    elif hasattr(module, "scalar"):
        init.ones_(module.scalar)
