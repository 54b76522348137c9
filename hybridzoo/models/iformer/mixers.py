"""The Inception mixer of iFormer: convolution and max-pooling beside self-attention, on separate channels.

Shape legend: B batch, H W feature map, C width of the block, a attention heads, d head width, `low = a * d` channels
for attention, `high = C - low` channels for convolution and pooling. Maps are (B, H, W, C) throughout: 1x1 convolutions
are matrix products over the last axis that read a slice of channels in place, and nothing is concatenated before the
last depthwise convolution, which reads the paths where they lie.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridzoo.layers.dense_gradient import dense_gradient
from hybridzoo.ops.avg_pool2x2 import avg_pool2x2
from hybridzoo.ops.bias_gelu import bias_gelu
from hybridzoo.ops.depthwise_conv2d import depthwise_conv2d
from hybridzoo.ops.max_pool3x3 import max_pool3x3


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution of a channels-last map, as a matrix product: (B, H, W, C_in) -> (B, H, W, C_out).

    Same parameters as `nn.Conv2d(kernel_size=1)`. A channel slice of a map is a strided matrix, which a matrix product
    reads in place, where a convolution would first copy it.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[3])  # a view also of a slice, so that the bias is added by the product's epilogue
        return F.linear(rows, self.weight.flatten(1), self.bias).view(*x.shape[:3], -1)


class DropPath(nn.Module):
    """Stochastic depth: drops a whole residual branch per sample, and scales what is kept by 1 / (1 - rate).

    Called with x (B, ...), it gives the factor of each sample, (B,), for `add_layer_norm`; None if nothing is dropped.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor | None:
        if self.rate == 0.0 or not self.training:
            return None
        keep = 1.0 - self.rate
        return torch.empty(x.shape[0], device=x.device, dtype=torch.float32).bernoulli_(keep) / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def product(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The output of a linear layer without its bias, and the bias, for an op that adds it while it reads the output.

    A layer of another class (an adapter, a quantised layer) is simply called; its bias is then in its output.
    """
    if not isinstance(layer, (nn.Linear, PointwiseConv2d)) or type(layer) not in (nn.Linear, PointwiseConv2d):
        return layer(x), None
    rows = x.reshape(-1, x.shape[-1])  # a view also of a slice of channels
    return F.linear(rows, layer.weight.flatten(1)).view(*x.shape[:-1], -1), layer.bias


def product_gelu(layer: nn.Module, x: Tensor) -> Tensor:
    """GELU of a linear layer's output."""
    y, bias = product(layer, x)
    return F.gelu(y) if bias is None else bias_gelu(y, bias)


def product_dropout(layer: nn.Module, x: Tensor, drop: nn.Dropout) -> tuple[Tensor, Tensor | None]:
    """Dropout of a linear layer's output; as `product` if nothing is dropped."""
    y, bias = product(layer, x)
    if drop.p == 0.0 or not drop.training:
        return y, bias
    return drop(y if bias is None else y + bias.to(y.dtype)), None


class Mlp(nn.Module):
    """Linear, GELU, Linear over the last axis; returns the last product and its bias apart, as `product` does."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return product_dropout(self.fc2, self.drop(product_gelu(self.fc1, x)), self.drop)


class HighFrequencyMixer(nn.Module):
    """Convolution on the first half of the channels, max-pooling on the second; each gives twice its channels.

    Args:
        high: channels in, even. Two maps (B, H, W, high / 2) -> two maps (B, H, W, high).
    """

    def __init__(self, high: int) -> None:
        super().__init__()
        self.in_channels = (high // 2, high // 2)
        self.out_channels = 2 * high
        self.conv1 = PointwiseConv2d(high // 2, high, bias=False)
        self.proj1 = nn.Conv2d(high, high, kernel_size=3, padding=1, groups=high, bias=False)
        self.proj2 = PointwiseConv2d(high // 2, high)

    def forward(self, for_conv: Tensor, for_pool: Tensor) -> tuple[Tensor, Tensor]:
        convolved = depthwise_conv2d(self.conv1(for_conv), self.proj1.weight, epilogue="gelu")
        pooled = product_gelu(self.proj2, max_pool3x3(for_pool))
        return convolved, pooled


class AttentionMixer(nn.Module):
    """Multi-head self-attention over a pooled map, without an output projection: (B, H, W, C) -> (B, h, w, C).

    The pooled map keeps its own height and width, so rectangular and odd maps work; an odd last row or column is not
    seen by the 2x2 pooling (as in the original's pooling layer) but still receives the upsampled result.

    Args:
        channels: channels in and out; `num_heads` divides it.
        num_heads: a. The scale is (channels / num_heads) ** -0.5.
        pool_size: 2 averages 2x2 windows before the attention (h = H // 2); whoever reads the result upsamples it,
            nearest. 1 does neither.
        qkv_bias: bias of the joint query, key and value projection.
    """

    def __init__(self, channels: int, num_heads: int, pool_size: int = 1, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.pool_size = pool_size
        self.in_channels = (channels,)
        self.out_channels = channels
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if self.pool_size == 2:
            x = avg_pool2x2(x)
        size = x.shape[:3]
        qkv = self.qkv(x.reshape(-1, x.shape[3]))  # (B * N, 3 * C), N = h * w in row-major order
        q, k, v = qkv.view(size[0], -1, 3, self.num_heads, x.shape[3] // self.num_heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, a, N, d)
        return (dense_gradient(y.transpose(1, 2).reshape(*size, -1)),)  # channels by head


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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, H, W, C) -> (B, H, W, C) without the last projection's bias, and that bias, as `product` does."""
        *high, low = x.split((*self.high_mixer.in_channels, self.low), dim=3)
        parts = (*self.high_mixer(*high), *self.low_mixer(low))
        y = depthwise_conv2d(parts, self.conv_fuse.weight, epilogue="residual")
        return product_dropout(self.proj, y, self.proj_drop)
