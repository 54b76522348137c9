"""`ms_deform_attn`: multi-scale deformable attention (Zhu et al. 2020, https://arxiv.org/abs/2010.04159, equation 3).

Backends: `torch` (the definition, by bilinear sampling), `triton` (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Backend, Call, Example, Op, register_op, triton_backend
from hybridzoo.ops.ms_deform_attn.reference import msda_torch

__all__ = ["ms_deform_attn"]

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


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
    (fp64 for fp64 values). Differentiable in value, locations and weights. Keep locations in fp32 beside 16-bit values:
    bfloat16's steps near 1 are 1/256, wider than a pixel of a large map.

    Args:
        value: (B, S, H, D), the L maps flattened row by row one after the other.
        spatial_shapes: L pairs (height, width) with heights x widths summing to S. An integer tensor (L, 2) is read to
            the host, which waits for a GPU and breaks a compiled graph: give a list there.
        sampling_locations: (B, Q, H, L, P, 2) as (x, y).
        attention_weights: (B, Q, H, L, P).
        backend: `"auto"`, `"torch"` or `"triton"`.

    Returns:
        (B, Q, H * D) in value's dtype.

    Raises:
        InputError: shapes, dtypes or devices that do not fit.
        BackendError: the backend asked for cannot run the call.
    """
    shapes = _pairs(spatial_shapes)
    call = {"value": value, "shapes": shapes, "locations": sampling_locations, "weights": attention_weights}
    _check(call)
    return OP(call, backend)


def _pairs(spatial_shapes: Sequence[tuple[int, int]] | Tensor) -> list[tuple[int, int]]:
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2 or spatial_shapes.is_floating_point():
            raise InputError(
                "ms_deform_attn: spatial_shapes must be integers (L, 2), a (height, width) for each map; "
                f"it is {tuple(spatial_shapes.shape)} {spatial_shapes.dtype}"
            )
        spatial_shapes = spatial_shapes.tolist()
    if not spatial_shapes or any(len(pair) != 2 or min(pair) < 1 for pair in spatial_shapes):
        raise InputError(
            "ms_deform_attn: spatial_shapes must be at least one (height, width), each at least 1; "
            f"it is {list(spatial_shapes)}"
        )
    return [(int(h), int(w)) for h, w in spatial_shapes]


def _check(call: dict[str, Any]) -> None:
    value, shapes, locations, weights = call.values()
    total = sum(h * w for h, w in shapes)
    if value.dim() != 4 or value.shape[1] != total:
        raise InputError(
            f"ms_deform_attn: value must be (B, {total}, H, D) for maps of {shapes}, it is {tuple(value.shape)}"
        )
    batch, _, heads, _ = value.shape
    if weights.dim() != 5 or weights.shape[0] != batch or weights.shape[2:4] != (heads, len(shapes)):
        raise InputError(
            f"ms_deform_attn: attention_weights must be ({batch}, Q, {heads}, {len(shapes)}, P), "
            f"it is {tuple(weights.shape)}"
        )
    if locations.shape != (*weights.shape, 2):
        raise InputError(
            f"ms_deform_attn: sampling_locations must be {(*weights.shape, 2)}, it is {tuple(locations.shape)}"
        )
    for name, x in (("value", value), ("sampling_locations", locations), ("attention_weights", weights)):
        if not x.is_floating_point():
            raise InputError(f"ms_deform_attn: {name} must be floating-point, it is {x.dtype}; use .float()")
        if (x.dtype == torch.float64) != (value.dtype == torch.float64):
            raise InputError(
                f"ms_deform_attn: float64 must be used for all three tensors or none; value is {value.dtype}, "
                f"{name} is {x.dtype}"
            )
        if x.device != value.device:
            raise InputError(
                f"ms_deform_attn: {name} is on {x.device}, value on {value.device}; move them to one device"
            )


def _run_triton(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    from hybridzoo.ops.ms_deform_attn.custom_op import MsDeformAttn, ms_deform_attn_op

    run = ms_deform_attn_op if torch.compiler.is_compiling() else MsDeformAttn.apply
    return run(value, [size for pair in shapes for size in pair], locations, weights)


def _triton_supports(call: Call) -> str | None:
    value, locations, weights = call["value"], call["locations"], call["weights"]
    for name in ("value", "locations", "weights"):
        if call[name].dtype not in KERNEL_DTYPES:
            return f"its dtypes are bfloat16, float16 and float32, {name} is {call[name].dtype}"
    if value.shape[3] > 256:
        return f"the kernels hold at most 256 channels a head in registers, value has {value.shape[3]}"
    if weights.shape[4] > 16:
        return f"the kernels unroll at most 16 points a map, there are {weights.shape[4]}"
    if weights.shape[0] > 65535 or weights.shape[2] > 65535:
        return "a launch takes at most 65535 batch entries and as many heads"
    if any(x[0].numel() >= 1 << 31 for x in (value, locations) if x.shape[0]):
        return "offsets inside a batch entry are 32-bit"
    if value.numel() == 0 or weights.numel() == 0:
        return "an input is empty"
    if torch.version.hip is not None:
        return "the kernels have been checked on NVIDIA GPUs only"
    return None


def _examples(device: torch.device) -> list[Example]:
    def make(name: str, channels: int, points: int, shapes: list[tuple[int, int]], dtype: torch.dtype) -> Example:
        g = torch.Generator().manual_seed(0)
        levels = len(shapes)
        logits = torch.randn(2, 11, 4, levels * points, generator=g)
        call = {
            "value": torch.randn(2, sum(h * w for h, w in shapes), 4, channels, generator=g).to(device, dtype),
            "shapes": shapes,
            # some points lie outside; none within rounding of a kink, where the gradient jumps
            "locations": (torch.rand(2, 11, 4, levels, points, 2, generator=g) * 1.2 - 0.1).to(device),
            "weights": logits.softmax(3).view(2, 11, 4, levels, points).to(device, dtype),
        }
        return Example(name, call, ("value", "locations", "weights"))

    maps = [(7, 9), (4, 5), (1, 2)]
    return [
        make("three maps", 8, 2, maps, torch.float32),
        make("one map, 3 points, 24 channels", 24, 3, maps[:1], torch.float32),
        make("bf16", 32, 4, maps, torch.bfloat16),
    ]


OP = register_op(
    Op(
        name="ms_deform_attn",
        backends=(
            triton_backend(_run_triton, _triton_supports, deterministic=False),
            Backend(name="torch", priority=0, run=msda_torch, exportable=True),
        ),
        examples=_examples,
    )
)
