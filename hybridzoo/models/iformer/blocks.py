"""The parts of iFormer around the mixer: stem, downsampling, position tables and the residual block.

Shape legend: B batch, H W feature map, C width; maps between these modules are (B, H, W, C), contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridzoo.models.iformer.mixers import DropPath, InceptionMixer, Mlp
from hybridzoo.models.iformer.sizes import NUM_STAGES, STEM_STRIDES
from hybridzoo.ops.add_layer_norm import add_layer_norm


def table_sides(img_size: int | Sequence[int], stem_stride: int = 4) -> list[tuple[int, int]]:
    """Height and width of the four position tables: the image's over the stem's stride, then halved, rounded down."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return [(max(1, height // stem_stride >> k), max(1, width // stem_stride >> k)) for k in range(NUM_STAGES)]


def resize_table(table: Tensor, size: tuple[int, int]) -> Tensor:
    """A position table (1, h, w, C) at another size (1, H, W, C): bilinear, corners not aligned, no antialiasing."""
    resized = F.interpolate(table.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """norm(conv(x)) with the convolution's bias moved into the norm, which saves a pass over the map, and in training
    another for a gradient that is zero: batch statistics cancel the bias, only the running mean sees it."""
    if type(norm) is not nn.BatchNorm2d or conv.bias is None or norm.momentum is None or not norm.track_running_stats:
        return norm(conv(x))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    y = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
    if not norm.training:
        shift = norm.bias + conv.bias * norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, shift, eps=norm.eps)
    norm.num_batches_tracked.add_(1)
    bias = conv.bias.detach()
    mean = norm.running_mean - bias
    shift = norm.bias + 0 * conv.bias  # the gradient is zero, not missing
    y = F.batch_norm(y, mean, norm.running_var, norm.weight, shift, True, norm.momentum, norm.eps)
    norm.running_mean.copy_(mean + bias)
    return y


class Stem(nn.Module):
    """Two 3x3 convolutions with batch norm. (B, in_chans, H, W) -> (B, H / s, W / s, dim), s = stem_stride."""

    def __init__(self, in_chans: int, dim: int, stem_stride: int = 4) -> None:
        super().__init__()
        first, second = STEM_STRIDES[stem_stride]
        self.proj1 = nn.Conv2d(in_chans, dim // 2, kernel_size=3, stride=first, padding=1)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.proj2 = nn.Conv2d(dim // 2, dim, kernel_size=3, stride=second, padding=1)
        self.norm2 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        # The one place where the memory layout is set: everything after the stem is channels-last without a copy.
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.gelu(conv_norm(self.proj1, self.norm1, x))
        return conv_norm(self.proj2, self.norm2, x).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """3x3 convolution of stride 2 with batch norm. (B, H, W, in_dim) -> (B, ceil(H / 2), ceil(W / 2), dim)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, kernel_size=3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm(self.proj, self.norm, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ResidualNorm(nn.LayerNorm):
    """Adds a branch to the residual stream and normalises the sum, in one pass over memory.

    x, y (B, H, W, C), y_bias, scale (C,), factors (B,) -> x + factors * scale * (y + y_bias) in the wider dtype, and
    its LayerNorm in the dtype that the next matrix product computes in. The stream stays fp32 under autocast.
    """

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        y_bias: Tensor | None = None,
        scale: Tensor | None = None,
        factors: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        return add_layer_norm(
            x, y, self.weight, self.bias,
            y_bias=y_bias, scale=scale, row_scale=factors, eps=self.eps, out_dtype=dtype,
        )  # fmt: skip


class InceptionBlock(nn.Module):
    """Pre-norm residual block: the mixer, then the MLP, each scaled by a learned vector if asked for.

    The MLP's branch is returned beside the stream, not added: the next block's norm adds it while it reads the stream.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        attention_heads: int,
        pool_size: int,
        mlp_ratio: float,
        qkv_bias: bool,
        high_mixer: str,
        norm_eps: float,
        layer_scale_init_value: float | None,
        proj_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.layer_scale_init_value = layer_scale_init_value
        self.norm1 = ResidualNorm(dim, eps=norm_eps)
        self.attn = InceptionMixer(dim, num_heads, attention_heads, pool_size, qkv_bias, high_mixer, proj_drop)
        self.norm2 = ResidualNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), proj_drop)
        self.drop_path = DropPath(drop_path)
        scales = None if layer_scale_init_value is None else torch.full((2, dim), layer_scale_init_value)
        self.layer_scale_1 = None if scales is None else nn.Parameter(scales[0].clone())
        self.layer_scale_2 = None if scales is None else nn.Parameter(scales[1].clone())

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        y_bias: Tensor | None = None,
        scale: Tensor | None = None,
        factors: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Stream (B, H, W, C) and the previous block's branch with its bias, scale and per-sample factors, if any;
        `dtype` is the one that matrix products compute in, the stream's if None.

        Returns:
            The stream with the mixer's branch added; the MLP's branch and its bias. Scale these by `layer_scale_2` and
            `drop_path`.
        """
        x, normed = self.norm1(x, y, y_bias, scale, factors, dtype)
        x, normed = self.norm2(x, *self.attn(normed), self.layer_scale_1, self.drop_path(x), dtype)
        return x, *self.mlp(normed)
