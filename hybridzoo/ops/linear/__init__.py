"""Matrix product with a weight, in fp32 on tensor cores: `x W^T + b` and its three gradients.

Floor (forward): 2 M N K operations. cuBLAS runs strict fp32 outside of the tensor cores (67 TFLOPS on an H100; 25 were
measured for the tall products of MambaAD). With each operand split into a sum of two TF32 numbers, three tensor-core
products (165 TFLOPS at best; 100 by single warps, see `_split_product`) keep fp32's accuracy: what is left out is 2^-22
of a product. The gradient of the bias is summed by the kernel that makes the weight's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Call, Example, register_kernel_op
from hybridzoo.ops.linear.reference import linear_reference


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = AUTO) -> Tensor:
    """`torch.nn.functional.linear`: `x @ weight.T + bias`, under autocast in its dtype.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,), or None.
        backend: "auto", or a name from `hybridzoo doctor`.

    Returns:
        (..., N) in x's dtype, or in autocast's.

    Raises:
        InputError: shapes do not fit.
    """
    if x.ndim < 2 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise InputError(f"x (..., K) and weight (N, K) do not fit: {tuple(x.shape)} and {tuple(weight.shape)}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise InputError(f"bias has shape {tuple(bias.shape)}; {weight.shape[0]} outputs need ({weight.shape[0]},)")
    return _OP({"x": x, "weight": weight, "bias": bias}, backend)


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return linear(input, self.weight, self.bias)


def _run_triton(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    from hybridzoo.ops.linear.custom_op import eager, linear_op

    run = linear_op if torch.compiler.is_compiling() else eager
    return run(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


def _supports_triton(call: Call) -> str | None:
    x, tensors = call["x"], [t for t in call.values() if t is not None]
    if any(t.dtype != torch.float32 for t in tensors):
        return f"its dtype is float32, not {', '.join(sorted({str(t.dtype) for t in tensors}))}"
    if x.is_cuda and torch.backends.cuda.matmul.allow_tf32:
        return "TF32 is allowed, where one product on the tensor cores does"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast asks for another precision"
    return "the input is empty" if 0 in (x.numel(), call["weight"].numel()) else None


def _examples(device: torch.device) -> list[Example]:
    def example(name: str, *shape: int, outputs: int, bias: bool = True, dtype: torch.dtype = torch.float32) -> Example:
        g = torch.Generator().manual_seed(0)
        call: dict[str, Tensor | None] = {
            "x": (1 + torch.randn(shape, generator=g)).to(device, dtype),
            "weight": torch.randn(outputs, shape[-1], generator=g).to(device, dtype),
            "bias": torch.randn(outputs, generator=g).to(device, dtype) if bias else None,
        }
        return Example(name, call, tuple(key for key, value in call.items() if value is not None))

    large = example("M17000-K30-N66-fp32", 17000, 30, outputs=66)  # warp groups forward, nothing else in its gradients
    return [
        example("M37-K33-N20-fp32", 37, 33, outputs=20),
        example("B2-5x4-K64-N130-fp32", 2, 5, 4, 64, outputs=130, bias=False),
        example("M600-K128-N288-fp32", 600, 128, outputs=288),
        Example(large.name, large.call, ()),
        example("M24-K32-N16-bf16", 24, 32, outputs=16, dtype=torch.bfloat16),
    ]


_OP = register_kernel_op(
    "linear", triton=_run_triton, supports=_supports_triton, reference=linear_reference, examples=_examples
)
