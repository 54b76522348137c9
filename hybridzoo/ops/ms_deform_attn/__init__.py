"""`ms_deform_attn`: multi-scale deformable attention (Zhu et al. 2020, https://arxiv.org/abs/2010.04159, equation 3).

Backends: `torch` (the definition, by bilinear sampling).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Backend, Example, Op, register_op

__all__ = ["ms_deform_attn"]


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    backend: str = AUTO,
) -> Tensor:
    """Every query's heads sample P points on each of L feature maps and sum them with their weights.

    A location (x, y) in [0, 1] spans the map from edge to edge; sampling is bilinear, zero outside. Sampled in fp32
    (fp64 for fp64 values). Differentiable in value, locations and weights.

    Args:
        value: (B, S, H, D), the L maps flattened row by row one after the other.
        spatial_shapes: L pairs (height, width) with heights x widths summing to S; a tensor (L, 2) is read to the host.
        sampling_locations: (B, Q, H, L, P, 2) as (x, y).
        attention_weights: (B, Q, H, L, P).
        backend: `"auto"` or `"torch"`.

    Returns:
        (B, Q, H * D) in value's dtype.

    Raises:
        InputError: shapes that do not fit.
    """
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = spatial_shapes.tolist()
    shapes = [(int(h), int(w)) for h, w in spatial_shapes]
    total = sum(h * w for h, w in shapes)
    if value.dim() != 4 or value.shape[1] != total:
        raise InputError(
            f"ms_deform_attn: value must be (B, {total}, H, D) for maps of {shapes}, it is {tuple(value.shape)}"
        )
    batch, _, heads, _ = value.shape
    weights = attention_weights
    if weights.dim() != 5 or weights.shape[0] != batch or weights.shape[2:4] != (heads, len(shapes)):
        raise InputError(
            f"ms_deform_attn: attention_weights must be ({batch}, Q, {heads}, {len(shapes)}, P), "
            f"it is {tuple(weights.shape)}"
        )
    if sampling_locations.shape != (*weights.shape, 2):
        raise InputError(
            f"ms_deform_attn: sampling_locations must be {(*weights.shape, 2)}, it is {tuple(sampling_locations.shape)}"
        )
    call = {"value": value, "shapes": shapes, "locations": sampling_locations, "weights": weights}
    return OP(call, backend)


def _run_torch(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    wide = torch.promote_types(value.dtype, torch.float32)
    (batch, _, heads, width), queries = value.shape, weights.shape[1]
    # x in [0, 1] -> [-1, 1]; (B, Q, H, L, P, 2) -> (L, B * H, Q, P, 2)
    grids = (2 * locations.to(wide) - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    strengths = weights.to(wide).permute(3, 0, 2, 1, 4).flatten(1, 2)  # (L, B * H, Q, P)
    maps = value.to(wide).permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], dim=2)
    out = value.new_zeros(batch * heads, width, queries, dtype=wide)
    for flat, (h, w), grid, strength in zip(maps, shapes, grids, strengths):
        sampled = F.grid_sample(flat.unflatten(2, (h, w)), grid, mode="bilinear", align_corners=False)
        out = out + (sampled * strength.unsqueeze(1)).sum(3)
    return out.view(batch, heads * width, queries).transpose(1, 2).to(value.dtype)


def _examples(device: torch.device) -> list[Example]:
    def make(name: str, dtype: torch.dtype) -> Example:
        g = torch.Generator().manual_seed(0)
        shapes = [(7, 9), (4, 5), (1, 2)]
        logits = torch.randn(2, 11, 4, 6, generator=g)
        call = {
            "value": torch.randn(2, sum(h * w for h, w in shapes), 4, 8, generator=g).to(device, dtype),
            "shapes": shapes,
            # some points lie outside; none within rounding of a kink, where the gradient jumps
            "locations": (torch.rand(2, 11, 4, 3, 2, 2, generator=g) * 1.2 - 0.1).to(device, dtype),
            "weights": logits.softmax(3).view(2, 11, 4, 3, 2).to(device, dtype),
        }
        return Example(name, call, ("value", "locations", "weights"))

    return [make("three maps", torch.float32)]


OP = register_op(
    Op(
        name="ms_deform_attn",
        backends=(Backend(name="torch", priority=0, run=_run_torch, exportable=True),),
        examples=_examples,
    )
)
