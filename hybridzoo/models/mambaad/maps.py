"""From the teacher's and the student's features to the anomaly map and the loss.

Legend: B batch, C_i H_i W_i maps of scale i, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

COSINE_EPS = 1e-8


def anomaly_map(teacher: Sequence[Tensor], student: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """(B, H, W) fp32: the scales' cosine distances, upsampled and summed, divided by the squared number of scales.

    The divisor is the original's (number of maps times sum of their weights); it only scales the map.
    """
    total = None
    for t, s in zip(teacher, student, strict=True):
        distance = 1 - F.cosine_similarity(t.float(), s.float(), dim=1, eps=COSINE_EPS)
        up = F.interpolate(distance.unsqueeze(1), size=size, mode="bilinear", align_corners=True).squeeze(1)
        total = up if total is None else total + up
    assert total is not None
    return total / len(teacher) ** 2


def smoothing_matrix(n: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(n, n): a Gaussian filter along one axis, cut at 4 sigma, with mirrored edges (each edge value twice)."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=device)
    weights = torch.exp(-0.5 / (sigma * sigma) * offsets.to(dtype) ** 2)
    weights = weights / weights.sum()
    reached = (torch.arange(n, device=device)[:, None] + offsets).remainder(2 * n)  # period of the mirrored row
    source = torch.minimum(reached, 2 * n - 1 - reached)
    matrix = torch.zeros(n, n, device=device, dtype=dtype)
    return matrix.scatter_add(1, source, weights.expand(n, -1))


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian filter over (B, H, W) as `scipy.ndimage.gaussian_filter` defines it; fp64 inside where there is fp64."""
    if not sigma:
        return maps
    wide = torch.float32 if maps.device.type == "mps" else torch.float64
    rows = smoothing_matrix(maps.shape[1], sigma, maps.device, wide)
    square = maps.shape[1] == maps.shape[2]
    columns = rows if square else smoothing_matrix(maps.shape[2], sigma, maps.device, wide)
    with torch.autocast(maps.device.type, enabled=False):
        return (rows @ maps.to(wide) @ columns.T).to(maps.dtype)


def feature_loss(
    teacher: Sequence[Tensor], student: Sequence[Tensor], weight: float, excluded: Tensor | None = None
) -> Tensor:
    """weight times the sum over the scales of the mean squared error.

    Args:
        teacher, student: (B, C_i, H_i, W_i).
        weight: 5 in the paper.
        excluded: (B, H, W) bool, pixels that are no example of the normal: a position whose field of pixels holds one
            of them does not count. A scale without any position left contributes 0.
    """
    total = torch.zeros((), device=student[0].device)
    for t, s in zip(teacher, student, strict=True):
        if excluded is None:
            total = total + F.mse_loss(s.float(), t.float())
            continue
        keep = 1 - F.adaptive_max_pool2d(excluded.float().unsqueeze(1), s.shape[2:])  # (B, 1, H_i, W_i)
        error = ((s.float() - t.float()) ** 2 * keep).sum()
        total = total + error / (keep.sum() * s.shape[1]).clamp(min=1)
    return weight * total
