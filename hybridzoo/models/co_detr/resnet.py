"""transformers' ResNet with frozen batch norms: the same layers and numbers, half the memory in training.

A frozen norm is affine, so its gradient needs its factors only. Autograd would keep the input of each norm; here norm,
addition and ReLU write into one tensor, and that is all that is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _FrozenNorm(torch.autograd.Function):
    """relu(norm(x) + residual); both the residual and the ReLU may be left out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, norm: nn.BatchNorm2d, relu: bool) -> Tensor:
        y = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
        if residual is not None:
            y.add_(residual)
        if relu:
            y.relu_()
            ctx.save_for_backward(y)
        ctx.norm, ctx.relu = norm, relu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad, norm = grad_outputs[0], ctx.norm
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, ctx.saved_tensors[0], 0)
        # With 16-bit activations the factors stay fp32 and the product is rounded once.
        by_input = torch.mul(grad, _scale(norm), out=torch.empty_like(grad)) if ctx.needs_input_grad[0] else None
        return by_input, grad if ctx.needs_input_grad[1] else None, None, None


def _scale(norm: nn.BatchNorm2d) -> Tensor:
    """Factors (C, 1, 1) of a frozen norm, kept until its tensors change."""
    assert norm.running_var is not None
    tensors = norm.weight, norm.running_var
    key = tuple((id(x), x.data_ptr(), x._version, x.dtype) for x in tensors)
    kept = norm.__dict__.get("_kept_scale")
    if kept is None or kept[0] != key:
        scale = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
        kept = key, scale.view(-1, 1, 1), tensors  # held, so that no other tensor gets their ids
        norm.__dict__["_kept_scale"] = kept
    return kept[1]


def can_run_frozen(net: Any) -> bool:
    """Whether the norms are as `frozen_maps` needs them, and no graph is being recorded (which fuses them itself)."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[reportPrivateImportUsage]
        return False
    norm = net.embedder.embedder.normalization
    return type(norm) is nn.BatchNorm2d and not norm.training and not norm.weight.requires_grad


def frozen_maps(net: Any, pixel_values: Tensor) -> list[Tensor]:
    """The feature maps of a `ResNetBackbone` whose batch norms are frozen: (B, 3, H, W) -> maps (B, C_i, H_i, W_i)."""
    x = net.embedder.pooler(_conv_norm(net.embedder.embedder, pixel_values, relu=True))
    maps = []
    for i, stage in enumerate(net.encoder.stages, 1):
        for block in stage.layers:
            y = x
            *first, last = block.layer
            for layer in first:
                y = _conv_norm(layer, y, relu=True)
            residual = x if isinstance(block.shortcut, nn.Identity) else _conv_norm(block.shortcut, x, relu=False)
            x = _conv_norm(last, y, relu=True, residual=residual)
        if f"stage{i}" in net.out_features:
            maps.append(x)
    return maps


def _conv_norm(layer: Any, x: Tensor, *, relu: bool, residual: Tensor | None = None) -> Tensor:
    return _FrozenNorm.apply(layer.convolution(x), residual, layer.normalization, relu)  # type: ignore[return-value]
