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
        x = F.gelu(self.norm1(self.proj1(x)))
        return self.norm2(self.proj2(x)).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """3x3 convolution of stride 2 with batch norm. (B, H, W, in_dim) -> (B, ceil(H / 2), ceil(W / 2), dim)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, kernel_size=3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class ResidualNorm(nn.LayerNorm):
    """Adds a branch to the residual stream and normalises the sum, in one pass over memory.

    x, y (B, H, W, C), scale (C,), factors (B,) -> x + factors * scale * y in the wider dtype, and its LayerNorm in the
    dtype that the next matrix product wants (autocast's, if it is on). The stream stays fp32 under autocast.
    """

    def forward(
        self, x: Tensor, y: Tensor | None = None, scale: Tensor | None = None, factors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        kind = x.device.type
        autocast = kind != "meta" and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else x.dtype
        return add_layer_norm(
            x, y, self.weight, self.bias, scale=scale, row_scale=factors, eps=self.eps, out_dtype=dtype
        )


def add_branch(x: Tensor, y: Tensor, scale: Tensor | None, factors: Tensor | None) -> Tensor:
    """x + factors * scale * y for maps (B, H, W, C)."""
    y = y if scale is None else y * scale
    return x + (y if factors is None else y * factors.view(-1, 1, 1, 1))


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
        self, x: Tensor, y: Tensor | None = None, scale: Tensor | None = None, factors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stream (B, H, W, C) and the previous block's branch with its scale and per-sample factors, if there is one.

        Returns:
            The stream with the mixer's branch added, and the MLP's branch; scale it by `layer_scale_2` and `drop_path`.
        """
        x, normed = self.norm1(x, y, scale, factors)
        x, normed = self.norm2(x, self.attn(normed), self.layer_scale_1, self.drop_path(x))
        return x, self.mlp(normed)
