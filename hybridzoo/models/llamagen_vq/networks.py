"""Encoder and decoder of the LlamaGen tokenizer: the convolutional network of VQGAN.

Layouts are NCHW. Parameter names are those of the original, FoundationVision/LlamaGen
`tokenizer/tokenizer_image/vq_model.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from hybridzoo.models.llamagen_vq.configuration import GROUPS

NORM_EPS = 1e-6


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of 32 groups."""
    return nn.GroupNorm(GROUPS, channels, eps=NORM_EPS)


class ResBlock(nn.Module):
    """x + conv(drop(silu(norm(conv(silu(norm(x)))))); a 1x1 convolution carries x where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + y


class AttnBlock(nn.Module):
    """x + self-attention of one head over all pixels of norm(x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (f(y).flatten(2).transpose(1, 2).unsqueeze(1) for f in (self.q, self.k, self.v))  # (B, 1, H * W, C)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(y.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """3x3 convolution of stride 2, padded by one at the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest, twice the size, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, an attention after each where `attention`, and then the change of size."""

    def __init__(
        self, channels_in: int, channels_out: int, blocks: int, dropout: float, attention: bool, resize: str | None
    ) -> None:
        super().__init__()
        widths = [channels_in, *[channels_out] * blocks]
        self.res = nn.ModuleList(ResBlock(a, b, dropout) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(channels_out) for _ in range(blocks if attention else 0))
        if resize == "down":
            self.downsample = Downsample(channels_out)
        elif resize == "up":
            self.upsample = Upsample(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            return self.downsample(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


def _middle(channels: int, dropout: float) -> nn.ModuleList:
    block = ResBlock(channels, channels, dropout)
    return nn.ModuleList([block, AttnBlock(channels), ResBlock(channels, channels, dropout)])


class Network(nn.Module):
    """Runs blocks one after the other, with gradient checkpointing where transformers switched it on."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def run(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        for block in blocks:
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(block.__call__, x)
            else:
                x = block(x)
        return x


class Encoder(Network):
    """(B, num_channels, H, W) -> (B, z_channels, H / f, W / f), f = 2 ** (levels - 1)."""

    def __init__(
        self, in_channels: int, channels: int, ch_mult: Sequence[int], res_blocks: int, z_channels: int, dropout: float
    ) -> None:
        super().__init__()
        widths = [channels * m for m in ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            Level(before, width, res_blocks, dropout, attention=i == last, resize=None if i == last else "down")
            for i, (before, width) in enumerate(zip([channels, *widths], widths))
        )
        self.mid = _middle(widths[-1], dropout)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.run((*self.conv_blocks, *self.mid), self.conv_in(x))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(Network):
    """(B, z_channels, h, w) -> (B, num_channels, h f, w f). Its first level is the smallest map."""

    def __init__(
        self, out_channels: int, channels: int, ch_mult: Sequence[int], res_blocks: int, z_channels: int, dropout: float
    ) -> None:
        super().__init__()
        widths = [channels * m for m in reversed(ch_mult)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0], dropout)
        self.conv_blocks = nn.ModuleList(
            Level(before, width, res_blocks + 1, dropout, attention=i == 0, resize=None if i == last else "up")
            for i, (before, width) in enumerate(zip([widths[0], *widths], widths))
        )
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """Weight that the adaptive weight of an adversarial loss is measured at."""
        return self.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        z = self.run((*self.mid, *self.conv_blocks), self.conv_in(z))
        return self.conv_out(F.silu(self.norm_out(z)))
