"""The Inception mixer of iFormer: convolution and max-pooling beside self-attention, on separate channels.

Shape legend: B batch, H W feature map, C width of the block, a attention heads, d head width, `low = a * d` channels
for attention, `high = C - low` channels for convolution and pooling. Tensors between these modules are (B, C, H, W) in
the channels_last memory format, so the permutes to (B, H, W, C) below are views, not copies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution computed as a matrix product over the channels-last view.

    Same parameters and result as `nn.Conv2d(kernel_size=1)`. A channel slice of a channels_last map is a strided
    matrix, which a matrix product reads in place, where a convolution would first copy it.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Stochastic depth: drops a whole residual branch per sample, and scales what is kept by 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class Mlp(nn.Module):
    """Linear, GELU, Linear over the last axis."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class HighFrequencyMixer(nn.Module):
    """Convolution on the first half of the channels, max-pooling on the second; twice as many channels come out.

    Args:
        high: channels in, even. (B, high, H, W) -> (B, 2 * high, H, W).
    """

    def __init__(self, high: int) -> None:
        super().__init__()
        half = high // 2
        self.out_channels = 2 * high
        self.conv1 = PointwiseConv2d(half, high, bias=False)
        self.proj1 = nn.Conv2d(high, high, kernel_size=3, padding=1, groups=high, bias=False)
        self.proj2 = PointwiseConv2d(half, high)

    def forward(self, x: Tensor) -> Tensor:
        for_conv, for_pool = x.chunk(2, dim=1)
        convolved = self.proj1(self.conv1(for_conv))
        pooled = self.proj2(F.max_pool2d(for_pool, kernel_size=3, stride=1, padding=1))
        return F.gelu(torch.cat((convolved, pooled), dim=1))


class AttentionMixer(nn.Module):
    """Multi-head self-attention over a pooled map, without an output projection, brought back to the map's size.

    The pooled map keeps its own height and width, so rectangular and odd maps work; an odd last row or column is not
    seen by the 2x2 pooling (as in the original's pooling layer) but still receives the upsampled result.

    Args:
        channels: channels in and out; `num_heads` divides it.
        num_heads: a. The scale is (channels / num_heads) ** -0.5.
        pool_size: 2 averages 2x2 windows before the attention and upsamples (nearest) after it; 1 does neither.
        qkv_bias: bias of the joint query, key and value projection.
    """

    def __init__(self, channels: int, num_heads: int, pool_size: int = 1, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.pool_size = pool_size
        self.out_channels = channels
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        if self.pool_size > 1:
            x = F.avg_pool2d(x, self.pool_size)
        h = x.shape[2]
        qkv = self.qkv(x.permute(0, 2, 3, 1).flatten(1, 2))  # (B, N, 3 * C), N = h * w in row-major order
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, a, N, d)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, C), channels by head
        y = y.unflatten(1, (h, -1)).permute(0, 3, 1, 2)
        return F.interpolate(y, size=size, mode="nearest") if self.pool_size > 1 else y


class InceptionMixer(nn.Module):
    """Splits the channels between a high-frequency and an attention path and fuses what they give.

        x (B, H, W, C) -+- first C - low channels --> high path --> 2 * (C - low) -+
                        +- last low channels ------> attention --> low ------------+-> y + depthwise3x3(y) -> 1x1 -> C

    Args:
        dim: C.
        num_heads: heads that C divides into; d = C / num_heads.
        attention_heads: a, of `num_heads`; the other heads' channels go to the high path.
        pool_size: see AttentionMixer.
        qkv_bias: see AttentionMixer.
        high_mixer: "inception" as in the paper, or "attention": the ablation whose high path is self-attention at
            full resolution too (its output is C - low channels wide, not twice that).
        proj_drop: dropout after the last projection.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attention_heads: int,
        pool_size: int = 1,
        qkv_bias: bool = True,
        high_mixer: str = "inception",
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.low = dim // num_heads * attention_heads
        self.high = dim - self.low
        self.high_mixer: HighFrequencyMixer | AttentionMixer
        if high_mixer == "inception":
            self.high_mixer = HighFrequencyMixer(self.high)
        else:
            self.high_mixer = AttentionMixer(self.high, num_heads - attention_heads, 1, qkv_bias)
        self.low_mixer = AttentionMixer(self.low, attention_heads, pool_size, qkv_bias)
        fused = self.high_mixer.out_channels + self.low
        self.conv_fuse = nn.Conv2d(fused, fused, kernel_size=3, padding=1, groups=fused, bias=False)
        self.proj = PointwiseConv2d(fused, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        high, low = x.permute(0, 3, 1, 2).split((self.high, self.low), dim=1)
        y = torch.cat((self.high_mixer(high), self.low_mixer(low)), dim=1)
        y = y + self.conv_fuse(y)
        return self.proj_drop(self.proj(y)).permute(0, 2, 3, 1)
