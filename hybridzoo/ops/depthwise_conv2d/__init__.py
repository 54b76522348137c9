"""Depthwise convolution of channels-last maps; at 3x3 fused with its bias, concatenation, upsampling, GELU,
SiLU or a residual sum.

Floor (forward, bf16): 4 bytes an element, one read and one write. Separate kernels for the concatenation,
the convolution, the sum and GELU move three to five times that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.depthwise_conv2d.reference import depthwise_conv2d_reference
from hybridzoo.ops.dispatch import AUTO, Call, Example, register_kernel_op

EPILOGUES = ("none", "gelu", "silu", "residual")
MAX_PARTS = 3
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def depthwise_conv2d(
    x: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    epilogue: str = "none",
    backend: str = AUTO,
) -> Tensor:
    """Depthwise convolution, stride 1, zero padding of half the kernel, over the last axis as channels.

    Args:
        x: (B, H, W, C), or a sequence of maps (B, h_i, w_i, C_i) of one dtype that stands for their concatenation over
            channels. The first sets H and W; the others may be smaller and are upsampled (nearest).
        weight: (C, 1, K, K) with K odd, as in `nn.Conv2d(C, C, K, groups=C)`, any floating dtype (the sums are fp32 at
            least). The kernels take several parts, a bias and epilogues at K = 3.
        bias: (C,), part of conv(x), or None.
        epilogue: "none": conv(x); "gelu": exact GELU of conv(x); "silu": SiLU of it; "residual": x + conv(x).
        backend: "auto", or a name from `hybridzoo doctor`.

    Returns:
        (B, H, W, C) in x's dtype.

    Raises:
        InputError: shapes, dtypes or the epilogue do not fit.
    """
    parts = [x] if isinstance(x, Tensor) else list(x)
    if epilogue not in EPILOGUES:
        raise InputError(f"epilogue={epilogue!r}: give one of {', '.join(EPILOGUES)}")
    if not parts or any(part.ndim != 4 for part in parts):
        raise InputError(f"expected maps (B, H, W, C), got {[tuple(part.shape) for part in parts]}")
    if any(part.shape[0] != parts[0].shape[0] or part.dtype != parts[0].dtype for part in parts):
        given = [(tuple(part.shape), str(part.dtype)) for part in parts]
        raise InputError(f"all parts need one batch size and dtype, got {given}")
    channels = sum(part.shape[3] for part in parts)
    k = weight.shape[-1]
    if tuple(weight.shape) != (channels, 1, k, k) or k % 2 == 0:
        wanted = f"({channels}, 1, 3, 3), or another odd size"
        raise InputError(f"weight has shape {tuple(weight.shape)}; {channels} channels need {wanted}")
    if bias is not None and tuple(bias.shape) != (channels,):
        raise InputError(f"bias has shape {tuple(bias.shape)}; {channels} channels need ({channels},)")
    return _OP({"parts": parts, "weight": weight, "epilogue": epilogue, "bias": bias}, backend)


def _run_triton(parts: list[Tensor], weight: Tensor, epilogue: str, bias: Tensor | None) -> Tensor:
    from hybridzoo.ops.depthwise_conv2d.custom_op import DepthwiseConv2d, depthwise_conv2d_op

    if torch.compiler.is_compiling():
        return depthwise_conv2d_op(parts, weight, epilogue, bias)
    return DepthwiseConv2d.apply(weight, epilogue, bias, *parts)


def _supports_triton(call: Call) -> str | None:
    parts = call["parts"]
    if parts[0].dtype not in KERNEL_DTYPES:
        return f"its dtypes are bfloat16, float16 and float32, not {parts[0].dtype}"
    if len(parts) > MAX_PARTS:
        return f"it takes at most {MAX_PARTS} parts, not {len(parts)}"
    if any(part.stride(3) != 1 for part in parts):
        return "the channels of every part must be contiguous"
    if call["weight"].shape[3] != 3 and (len(parts) > 1 or call["epilogue"] != "none" or call["bias"] is not None):
        return "several parts, a bias and epilogues need a 3x3 kernel"
    height, width = parts[0].shape[1:3]
    for part in parts[1:]:
        if part.shape[1:3] != (height, width) and (2 * part.shape[1], 2 * part.shape[2]) != (height, width):
            return f"a part of {tuple(part.shape[1:3])} is neither the size of the first nor half of it"
    return None


def _examples(device: torch.device) -> list[Example]:
    def draw(*shape: int, seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)

    def example(
        name: str, shapes: list[tuple[int, ...]], epilogue: str, dtype: torch.dtype, kernel: int = 3, bias: bool = False
    ) -> Example:
        parts = [draw(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]
        weight = 0.3 * draw(sum(shape[3] for shape in shapes), 1, kernel, kernel, seed=9)
        added = draw(weight.shape[0], seed=8) if bias else None
        call: dict[str, Any] = {"parts": parts, "weight": weight, "epilogue": epilogue, "bias": added}
        return Example(name, call, ("parts", "weight", "bias") if bias else ("parts", "weight"))

    bf16 = torch.bfloat16
    return [
        example("B2-7x7-C33-fp32", [(2, 7, 7, 33)], "none", torch.float32),
        example("B2-10x9-C40-gelu-fp32", [(2, 10, 9, 40)], "gelu", torch.float32),
        example(
            "B2-8x6-C16+8+24up-residual-fp32", [(2, 8, 6, 16), (2, 8, 6, 8), (2, 4, 3, 24)], "residual", torch.float32
        ),
        example("B2-9x10-C40-bias-silu-fp32", [(2, 9, 10, 40)], "silu", torch.float32, bias=True),
        example("B1-6x5-C8+16up-bias-fp32", [(1, 6, 4, 8), (1, 3, 2, 16)], "none", torch.float32, bias=True),
        example("B2-14x14-C64-silu-bf16", [(2, 14, 14, 64)], "silu", bf16),
        example("B2-14x14-C64-gelu-bf16", [(2, 14, 14, 64)], "gelu", bf16),
        example("B2-9x18-C33-5x5-fp32", [(2, 9, 18, 33)], "none", torch.float32, 5),
        example("B1-17x7-C64-7x7-fp32", [(1, 17, 7, 64)], "none", torch.float32, 7),
        example("B2-8x8-C8-5x5-bf16", [(2, 8, 8, 8)], "none", bf16, 5),
    ]  # fmt: skip


_OP = register_kernel_op(
    "depthwise_conv2d",
    triton=_run_triton,
    supports=_supports_triton,
    reference=depthwise_conv2d_reference,
    examples=_examples,
)
