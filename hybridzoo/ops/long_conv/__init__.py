"""`long_conv`: depthwise convolution with kernels as long as the sequence, by FFT (exported: a Toeplitz product).

Backends: `torch` (the definition), `triton` (ours: Fourier transforms as matrix products).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Backend, Call, Example, Op, register_op, triton_backend
from hybridzoo.ops.long_conv.keeping import keeping
from hybridzoo.ops.long_conv.reference import conv_torch

__all__ = ["keeping", "long_conv"]


def long_conv(
    x: Tensor,
    kernel: Tensor,
    reverse_kernel: Tensor | None = None,
    skip: Tensor | None = None,
    *,
    backend: str = AUTO,
) -> Tensor:
    """y_t = sum_{s >= 0} kernel[:, s] x_{t - s}  +  sum_{s >= 1} reverse_kernel[:, s - 1] x_{t + s}  +  skip x_t.

    Computed in fp32 (fp64 for fp64 inputs); the triton backend transforms 16-bit inputs by products of scaled
    fp16, with sums in fp32. Positions outside the sequence are zero. Differentiable in all arguments.

    Args:
        x: (B, L, D).
        kernel: (D, M) with M <= L; kernel[:, 0] weighs the present position.
        reverse_kernel: (D, M') with M' < L for a bidirectional convolution; its first tap weighs the next position.
        skip: (D,).
        backend: `"auto"`, `"torch"` or `"triton"`.

    Returns:
        (B, L, D) in x's dtype.

    Raises:
        InputError: shapes that do not fit.
    """
    if x.dim() != 3 or 0 in x.shape:
        raise InputError(f"long_conv: x must be (B, L, D) with no empty dimension, it is {tuple(x.shape)}")
    _, length, channels = x.shape
    for name, taps, most in (("kernel", kernel, length), ("reverse_kernel", reverse_kernel, max(length - 1, 1))):
        if taps is not None and (taps.dim() != 2 or taps.shape[0] != channels or not 1 <= taps.shape[1] <= most):
            raise InputError(f"long_conv: {name} must be ({channels}, 1 to {most}), it is {tuple(taps.shape)}")
    if skip is not None and tuple(skip.shape) != (channels,):
        raise InputError(f"long_conv: skip must be ({channels},), it is {tuple(skip.shape)}")
    return OP({"x": x, "kernel": kernel, "reverse_kernel": reverse_kernel, "skip": skip}, backend)


def _run_triton(x: Tensor, kernel: Tensor, reverse_kernel: Tensor | None, skip: Tensor | None) -> Tensor:
    from hybridzoo.ops.long_conv.custom_ops import long_conv_triton

    return long_conv_triton(x, kernel, reverse_kernel, skip)


def _triton_supports(call: Call) -> str | None:
    for name, x in call.items():
        if x is not None and x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"the kernels compute in fp32 at most, {name} is {x.dtype}"
    if torch.version.hip is not None:
        return "the kernels have been checked on NVIDIA GPUs only"
    return None


def _examples(device: torch.device) -> list[Example]:
    def make(name: str, length: int, taps: int, reverse: int, dtype: torch.dtype = torch.float32) -> Example:
        g = torch.Generator().manual_seed(length)

        def rand(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g).to(device, dtype)

        call = {
            "x": rand(2, length, 6),
            "kernel": rand(6, taps),
            "reverse_kernel": rand(6, reverse) if reverse else None,
            "skip": rand(6),
        }
        return Example(name, call, tuple(n for n, x in call.items() if x is not None))

    return [
        make("short", 17, 17, 0),
        make("causal", 300, 300, 0),
        make("bidirectional", 257, 200, 256),
        make("segments, bidirectional", 5000, 5000, 4999),
        make("bf16", 300, 128, 0, torch.bfloat16),
        make("bf16, segments", 5000, 4999, 0, torch.bfloat16),
        make("bf16, segments, bidirectional", 9000, 9000, 8000, torch.bfloat16),
    ]


OP = register_op(
    Op(
        name="long_conv",
        backends=(
            triton_backend(_run_triton, _triton_supports),
            Backend(name="torch", priority=0, run=conv_torch, exportable=True),
        ),
        examples=_examples,
    )
)
