"""Convolution of channels-last maps with bias, a residual sum and ReLU in one pass: the layer of a frozen ResNet.

Floor: 2 operations a product. cuDNN runs strict fp32 outside of the tensor cores (22 TFLOPS measured for ResNet-34's
3x3 convolutions on an H200), and batch norm, sum and ReLU are passes of their own. Here an operand is the sum of two
TF32 numbers, three tensor-core products keep fp32's accuracy, and what follows happens in registers. Where cuDNN may
use TF32 (`torch.backends.cudnn.allow_tf32`, torch's default), one product is made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.conv2d_relu.reference import conv2d_relu_reference
from hybridzoo.ops.dispatch import AUTO, Call, Example, register_kernel_op


def conv2d_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    stride: int = 1,
    relu: bool = True,
    tf32: bool | None = None,
    backend: str = AUTO,
) -> Tensor:
    """`relu(conv(x) + bias + residual)`, zero padding of half the kernel.

    Args:
        x: (B, H, W, C).
        weight: (N, C, K, K) with K odd, as in `nn.Conv2d`; read without a copy where its memory is channels-last.
        bias: (N,).
        residual: (B, H', W', N), or None.
        stride: of the kernel, both ways.
        relu: False leaves the ReLU out.
        tf32: whether TF32 is exact enough; None: what `torch.backends.cudnn.allow_tf32` says.
        backend: "auto", or a name from `hybridzoo doctor`. The kernel has no gradients.

    Returns:
        (B, H', W', N) in x's dtype, H' = ceil(H / stride).

    Raises:
        InputError: shapes do not fit.
    """
    if x.ndim != 4 or weight.ndim != 4 or x.shape[3] != weight.shape[1]:
        raise InputError(f"x (B, H, W, C) and weight (N, C, K, K) do not fit: {tuple(x.shape)}, {tuple(weight.shape)}")
    outputs, _, k, across = weight.shape
    if k != across or k % 2 == 0 or stride < 1:
        raise InputError(
            f"a kernel of {k} x {across}, stride {stride}: give an odd square kernel and a positive stride"
        )
    if tuple(bias.shape) != (outputs,):
        raise InputError(f"bias has shape {tuple(bias.shape)}; {outputs} outputs need ({outputs},)")
    shape = output_shape(x, weight, stride)
    if residual is not None and tuple(residual.shape) != shape:
        raise InputError(f"residual has shape {tuple(residual.shape)}; the output's is {shape}")
    call = {"x": x, "weight": weight, "bias": bias, "residual": residual, "stride": stride, "relu": relu}
    call["tf32"] = torch.backends.cudnn.allow_tf32 if tf32 is None else tf32
    return _OP(call, backend)


def output_shape(x: Tensor, weight: Tensor, stride: int) -> tuple[int, int, int, int]:
    """(B, H', W', N)."""
    return x.shape[0], -(-x.shape[1] // stride), -(-x.shape[2] // stride), weight.shape[0]


def accelerated(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether a call takes a kernel: only then is it worth leaving the network's own layers."""
    call = {"x": x, "weight": weight, "bias": bias, "residual": None, "stride": 1, "relu": True, "tf32": False}
    return _OP.select(call).name != "torch"


def _run_triton(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, relu: bool, tf32: bool
) -> Tensor:
    from hybridzoo.ops.conv2d_relu.custom_op import conv2d_relu_op
    from hybridzoo.ops.conv2d_relu.triton import conv2d_forward

    run = conv2d_relu_op if torch.compiler.is_compiling() else conv2d_forward
    return run(x, weight, bias, residual, stride, relu, tf32)


def _supports_triton(call: Call) -> str | None:
    tensors = [t for t in call.values() if isinstance(t, Tensor)]
    if any(t.dtype != torch.float32 for t in tensors):
        return f"its dtype is float32, not {', '.join(sorted({str(t.dtype) for t in tensors}))}"
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return "it has no gradients"
    if torch.is_autocast_enabled(tensors[0].device.type):
        return "autocast asks for another precision"
    return "the input is empty" if any(t.numel() == 0 for t in tensors) else None


def _examples(device: torch.device) -> list[Example]:
    def example(
        name: str,
        *shape: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        residual: bool = False,
        relu: bool = True,
    ) -> Example:
        g = torch.Generator().manual_seed(0)
        x, weight = torch.randn(shape, generator=g), torch.randn(outputs, shape[3], kernel, kernel, generator=g)
        added = torch.randn(output_shape(x, weight, stride), generator=g).to(device) if residual else None
        call = {
            "x": x.to(device),
            "weight": weight.to(device),
            "bias": torch.randn(outputs, generator=g).to(device),
            "residual": added,
            "stride": stride,
            "relu": relu,
            "tf32": False,
        }
        return Example(name, call, ())

    return [
        example("B2-5x7-C40-N33-3x3-fp32", 2, 5, 7, 40, outputs=33),
        example("B1-9x6-C32-N64-3x3-residual-fp32", 1, 9, 6, 32, outputs=64, residual=True),
        example("B2-8x7-C64-N16-3x3-stride2-fp32", 2, 8, 7, 64, outputs=16, stride=2),
        example("B2-7x6-C32-N48-1x1-stride2-fp32", 2, 7, 6, 32, outputs=48, kernel=1, stride=2, relu=False),
        example("B1-11x13-C3-N20-7x7-stride2-fp32", 1, 11, 13, 3, outputs=20, kernel=7, stride=2),
        example("B2-128x132-C20-N24-1x1-fp32", 2, 128, 132, 20, outputs=24, kernel=1),  # warp groups
    ]


_OP = register_kernel_op(
    "conv2d_relu", triton=_run_triton, supports=_supports_triton, reference=conv2d_relu_reference, examples=_examples
)
