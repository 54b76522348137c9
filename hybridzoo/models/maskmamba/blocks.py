"""Layers of MaskMamba: norm, mixer, residual; norm, MLP, residual. And the condition's embeddings.

Legend: B batch, L length, D width, C condition tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridzoo.layers.autocast import autocast_dtype
from hybridzoo.models.maskmamba.configuration import MaskMambaConfig
from hybridzoo.models.maskmamba.mixers import BiMambaV2, SelfAttention, VimMamba
from hybridzoo.ops.add_layer_norm import add_layer_norm


def make_norm(width: int, config: MaskMambaConfig) -> nn.Module:
    """The configured norm over D."""
    return (nn.LayerNorm if config.norm == "layer_norm" else nn.RMSNorm)(width, eps=config.norm_eps)


def add_norm(norm: nn.Module, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
    """x + branch, or x without one, and its norm, in one pass if it is a layer norm.

    Under autocast the norm comes in the dtype of the matrix product that reads it.
    """
    if isinstance(norm, nn.LayerNorm):
        dtype = autocast_dtype(x.device.type)
        return add_layer_norm(x, branch, norm.weight, norm.bias, eps=norm.eps, out_dtype=dtype)
    x = x if branch is None else x + branch
    return x, norm(x)


def make_mixer(letter: str, width: int, num_heads: int, config: MaskMambaConfig) -> nn.Module:
    """The mixer of a letter: S self-attention, M the configured Mamba layer."""
    if letter == "S":
        return SelfAttention(width, num_heads, config.qkv_bias)
    if config.mamba_layer == "bi_mamba_v2":
        return BiMambaV2(width, config)
    return VimMamba(
        width,
        config.mamba_layer.removeprefix("vim_"),
        config.expand,
        config.d_state,
        config.d_conv,
        config.dt_rank,
        config.conv_bias,
        config.vim_divide,
        config.layer_scale_init_value,
    )


class GroupMixer(nn.Module):
    """Channels in equal groups, a mixer for each, concatenated: the grouped parallel schemes.

    Args:
        letters: one mixer per group, e.g. "MS".
    """

    def __init__(self, letters: str, config: MaskMambaConfig) -> None:
        super().__init__()
        n = len(letters)
        width, heads = config.hidden_size // n, config.num_heads // n
        self.mixers = nn.ModuleList(make_mixer(letter, width, heads, config) for letter in letters)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size) if config.group_projection else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.mixers), dim=-1)
        return self.proj(torch.cat([mix(part) for mix, part in zip(self.mixers, parts)], dim=-1))


class DropPath(nn.Module):
    """Leaves out a branch for whole samples in training, and scales the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        keep = torch.empty(x.shape[0], 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class MaskMambaBlock(nn.Module):
    """x + mixer(norm(x)), then x + MLP(norm(x)); the last sum is left to the next layer.

    Args:
        letters: mixers of the channel groups; one letter is a layer without groups.
        drop_path: rate of this layer.
    """

    def __init__(self, letters: str, config: MaskMambaConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = make_norm(width, config)
        single = len(letters) == 1
        self.mixer = make_mixer(letters, width, config.num_heads, config) if single else GroupMixer(letters, config)
        self.drop = nn.Dropout(config.dropout)
        self.drop_path = DropPath(drop_path)
        self.mlp: Mlp | None = None
        if config.mlp_ratio:
            self.norm2 = make_norm(width, config)
            self.mlp = Mlp(width, int(config.mlp_ratio * width), config.dropout)

    def forward(self, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Stream (B, L, D), and the branch that the layer before has left to add, if any.

        Returns:
            The stream and this layer's last branch, whose sum is the layer's output: the next norm adds them while it
            reads them.
        """
        x, normed = add_norm(self.norm1, x, branch)
        mixed = self.drop_path(self.drop(self.mixer(normed)))
        if self.mlp is None:
            return x, mixed
        x, normed = add_norm(self.norm2, x, mixed)
        return x, self.drop_path(self.mlp(normed))


class LayerStack(nn.Module):
    """The layers of a scheme in their order, with gradient checkpointing."""

    def __init__(self, config: MaskMambaConfig) -> None:
        super().__init__()
        layers = config.layers()
        top = max(len(layers) - 1, 1)
        self.layers = nn.ModuleList(
            MaskMambaBlock(letters, config, config.drop_path_rate * i / top) for i, letters in enumerate(layers)
        )
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Tensor]  # set by transformers when it is switched on

    def forward(self, x: Tensor) -> Tensor:
        branch = None
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x, branch = self._gradient_checkpointing_func(layer.__call__, x, branch)
            else:
                x, branch = layer(x, branch)
        return x if branch is None else x + branch


class ClassCondition(nn.Module):
    """A class -> one token. Row `num_classes` of the table is the null class (LlamaGen's LabelEmbedder).

    Args:
        num_classes: classes without the null class.
        width: D.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor, drop: Tensor | None = None) -> Tensor:
        """(B,) integers and which rows (B,) get the null class -> (B, 1, D)."""
        labels = labels if drop is None else torch.where(drop, self.num_classes, labels)
        return self.embedding_table(labels).unsqueeze(1)


class TextProjection(nn.Module):
    """Linear, tanh-GELU, linear; without biases."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width_in, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class TextCondition(nn.Module):
    """Text features -> C tokens; the null text is a fixed random table (LlamaGen's CaptionEmbedder).

    Args:
        text_dim: width of the features.
        width: D.
        length: C.
    """

    def __init__(self, text_dim: int, width: int, length: int) -> None:
        super().__init__()
        self.uncond_embedding: Tensor
        self.cap_proj = TextProjection(text_dim, width)
        self.register_buffer("uncond_embedding", torch.zeros(length, text_dim))

    def set_initial_values(self) -> None:
        """Normal, of unit length per row on average."""
        table = self.uncond_embedding
        table.copy_(torch.randn_like(table) / table.shape[1] ** 0.5)

    def forward(self, features: Tensor, drop: Tensor | None = None) -> Tensor:
        """(B, C, text_dim) and which rows (B,) get the null text -> (B, C, D)."""
        if drop is not None:
            null = self.uncond_embedding.to(features.dtype)
            features = torch.where(drop[:, None, None], null, features)
        return self.cap_proj(features)
