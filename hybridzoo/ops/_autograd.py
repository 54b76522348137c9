"""The eager form of an op with hand-written gradients.

A `torch.library` operator costs the host about 100 microseconds a call, forward and backward each, more than many of
our kernels take on the device. Graphs need it; eager calls go through a plain autograd Function made of the same parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def eager_form(
    forward: Callable[..., Any], setup: Callable[[Any, tuple, Any], None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """`forward(*inputs)` with the gradients `backward(ctx, *output_gradients)`; `setup(ctx, inputs, output)` between.

    The three are what `torch.library`'s `register_autograd` takes. Not differentiable twice.
    """

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = forward(*inputs)
            setup(ctx, inputs, output)
            return output

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    return Eager.apply
