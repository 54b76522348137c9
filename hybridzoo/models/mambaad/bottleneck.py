"""The half pyramid: the teacher's three maps fused at the coarsest resolution, then three ResNet bottlenecks.

Parameter names and shapes are those of the original's `MFF_OCE`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with batch norm, plus the input (through a 1x1 convolution where the shape changes)."""

    def __init__(self, dim_in: int, width: int, dim: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(dim_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, dim, 1, bias=False), nn.BatchNorm2d(dim)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or dim_in != dim:
            self.downsample = nn.Sequential(nn.Conv2d(dim_in, dim, 1, stride=stride, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class HalfFPN(nn.Module):
    """Multi-scale fusion and one-class embedding.

    Args:
        channels: of the three maps, finest first.
        out_channels: of the result.
        width: inner width of the bottlenecks.
        layers: bottlenecks.
    """

    def __init__(self, channels: Sequence[int], out_channels: int, width: int = 128, layers: int = 3) -> None:
        super().__init__()
        c0, c1, c2 = channels
        self.conv1, self.bn1 = nn.Conv2d(c0, c1, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c1)
        self.conv2, self.bn2 = nn.Conv2d(c1, c2, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c2)
        self.conv21, self.bn21 = nn.Conv2d(c1, c1, 1), nn.BatchNorm2d(c1)
        self.conv31, self.bn31 = nn.Conv2d(c2, c2, 1), nn.BatchNorm2d(c2)
        self.convf, self.bnf = nn.Conv2d(c2, c2, 1), nn.BatchNorm2d(c2)
        first = Bottleneck(c2, width, out_channels, stride=2)
        rest = (Bottleneck(out_channels, width, out_channels) for _ in range(layers - 1))
        self.bn_layer = nn.Sequential(first, *rest)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), each half as large as the one before -> (B, out_channels, H_2 / 2, W_2 / 2)."""
        f0, f1, f2 = features
        # a teacher that rounds odd sizes down has smaller maps than the strided convolution
        p0 = F.relu(self.bn1(self.conv1(f0)))[:, :, : f1.shape[2], : f1.shape[3]]
        p1 = F.relu(self.bn21(self.conv21(f1))) + p0
        fused = F.relu(self.bn2(self.conv2(p1)))[:, :, : f2.shape[2], : f2.shape[3]]
        fused = fused + F.relu(self.bn31(self.conv31(f2)))
        return self.bn_layer(F.relu(self.bnf(self.convf(fused))))
