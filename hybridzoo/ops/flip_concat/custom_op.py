"""`flip_concat` with autograd: a torch.library operator for graphs, an eager form beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops._autograd import eager_form
from hybridzoo.ops.flip_concat.triton import flip_concat_forward


@torch.library.custom_op("hybridzoo::flip_concat", mutates_args=())
def flip_concat_op(first: Tensor | None, second: Tensor) -> Tensor:
    return flip_concat_forward(first, second)


@flip_concat_op.register_fake
def _(first, second):
    channels = second.shape[2] + (0 if first is None else first.shape[2])
    return second.new_empty((*second.shape[:2], channels))


def _setup(ctx: Any, inputs: tuple[Tensor | None, Tensor], output: Tensor) -> None:
    ctx.channels = None if inputs[0] is None else inputs[0].shape[2]


def _backward(
    ctx: Any, grad: Tensor, run: Callable[[None, Tensor], Tensor] = flip_concat_op
) -> tuple[Tensor | None, Tensor]:
    grad = grad if grad.stride(2) == 1 else grad.contiguous()
    if ctx.channels is None:
        return None, run(None, grad)
    return grad[..., : ctx.channels], run(None, grad[..., ctx.channels :])


flip_concat_op.register_autograd(_backward, setup_context=_setup)
eager = eager_form(flip_concat_forward, _setup, lambda ctx, grad: _backward(ctx, grad, flip_concat_forward))
