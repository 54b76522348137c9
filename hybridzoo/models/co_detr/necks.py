"""From a backbone's maps to the encoder's: `ChannelMapper` (all but the ViT) and `SimpleFeaturePyramid` (the ViT)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution and group norm, optionally ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, groups: int, *, stride: int = 1, relu: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(groups, out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x.relu() if self.relu else x


class ChannelMapper(nn.Module):
    """1x1 convolutions on the backbone's maps, and stride-2 convolutions for further levels.

    Args:
        in_channels: of the backbone's maps, fine to coarse.
        out_channels: of every level.
        num_levels: at least as many as maps; the first further level comes from the last map, the next from that level.
        groups: of the group norms.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_levels: int, groups: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(ConvNorm(c, out_channels, 1, groups) for c in in_channels)
        extra = num_levels - len(in_channels)
        self.extra = nn.ModuleList(
            ConvNorm(in_channels[-1] if i == 0 else out_channels, out_channels, 3, groups, stride=2)
            for i in range(extra)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.init_rule = "xavier"  # type: ignore[assignment]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i) -> levels (B, out_channels, H_l, W_l)."""
        levels = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        last = maps[-1]
        for layer in self.extra:
            last = layer(last)
            levels.append(last)
        return levels


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, C, H, W), eps 1e-6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return y.permute(0, 3, 1, 2)


class SimpleFeaturePyramid(nn.Module):
    """Five levels of strides 4 to 64 from the ViT's one map of stride 16 (after https://arxiv.org/abs/2203.16527).

    Args:
        in_channels: C of the map.
        out_channels: of every level. The widths between follow from C: C / 2 for stride 8, then C / 4 for stride 4.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        c, half, quarter, out = in_channels, in_channels // 2, in_channels // 4, out_channels

        def up(a: int, b: int) -> list[nn.Module]:
            return [nn.Upsample(scale_factor=2, mode="nearest"), _conv(a, b, 3), ChannelNorm(b), nn.GELU()]

        def head(a: int) -> list[nn.Module]:
            return [_conv(a, out, 1), ChannelNorm(out), nn.GELU(), _conv(out, out, 3), ChannelNorm(out)]

        self.p2 = nn.Sequential(*up(c, half), *up(half, quarter), *head(quarter))
        self.p3 = nn.Sequential(*up(c, half), *head(half))
        self.p4 = nn.Sequential(*head(c))
        self.p5 = nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), *head(c))
        down = [_conv(c, c, 3, stride=2), ChannelNorm(c), nn.GELU()]
        self.p6 = nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), *down, *head(c))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[(B, C, h, w)] -> five maps (B, out, …) of 4h, 2h, h, h / 2 and h / 4 rows."""
        (x,) = maps
        return [level(x) for level in (self.p2, self.p3, self.p4, self.p5, self.p6)]


def _conv(a: int, b: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, kernel, stride=stride, padding=kernel // 2, bias=False)
