"""The attention layers of the transformer: deformable attention over the maps, self-attention between queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hybridzoo.layers.autocast import autocast_dtype
from hybridzoo.ops.ms_deform_attn import ms_deform_attn

_AT_ONCE = 200 * 2**20  # see _TwoLinears


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (https://arxiv.org/abs/2010.04159, equation 3) with its residual.

    Args:
        dim, num_heads, num_levels, num_points: sizes.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        references: Tensor,
        shapes: Sequence[tuple[int, int]],
        map_sizes: Tensor,
        padding: Tensor | None,
    ) -> Tensor:
        """Args:
            query, query_pos: (B, Q, C).
            memory: (B, S, C), the levels one after the other.
            references: (B, Q, L, 2) points or (B, Q, L, 4) cxcywh boxes, relative to the padded maps.
            shapes: (height, width) per level.
            map_sizes: (L, 2) the same as (width, height).
            padding: (B, S) bool, True where memory is not read, or None.

        Returns:
            (B, Q, C), the query plus what it read.
        """
        batch, queries = query.shape[:2]
        value = self.value_proj(memory)
        if padding is not None:
            # in place only without gradients: autograd would copy the gradient of what is a view
            fill = value.masked_fill if torch.is_grad_enabled() else value.masked_fill_
            value = fill(padding[..., None], 0.0)
        value = value.unflatten(-1, (self.num_heads, -1))
        grid = (batch, queries, self.num_heads, self.num_levels, self.num_points)
        # Locations stay in fp32 under autocast: 16 bits cannot tell the pixels of a large map apart.
        offsets, weights = self._where(query, query_pos)
        offsets, weights = offsets.view(*grid, 2), weights.view(*grid[:3], -1).softmax(-1).view(grid)
        if references.shape[-1] == 2:
            start, scale = references, map_sizes.reciprocal()[:, None]
        else:
            start, scale = references[..., :2], references[:, :, None, :, None, 2:] * (0.5 / self.num_points)
        locations = torch.addcmul(start[:, :, None, :, None], offsets, scale)
        return query + self.output_proj(ms_deform_attn(value, shapes, locations, weights.to(value.dtype)))

    def _where(self, query: Tensor, query_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (B, Q, H L P 2) and logits of the weights (B, Q, H L P) of the queries at their positions."""
        layers = self.sampling_offsets, self.attention_weights
        if not torch.is_grad_enabled() or not _plain(*layers):
            q = query + query_pos
            return self.sampling_offsets(q), self.attention_weights(q)
        tensors = _for_autocast(*(t for layer in layers for t in (layer.weight, layer.bias)), kind=query.device.type)
        return _LinearsOfSum.apply(query, query_pos, *tensors)  # type: ignore[return-value]


def offset_bias(num_heads: int, num_levels: int, num_points: int) -> Tensor:
    """First bias of `sampling_offsets`: head h looks along the angle 2 pi h / H, point p at p + 1 pixels."""
    angles = torch.arange(num_heads, dtype=torch.float32) * (2.0 * math.pi / num_heads)
    grid = torch.stack((angles.cos(), angles.sin()), -1)
    grid = grid / grid.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, num_points + 1, dtype=torch.float32)
    return (grid[:, None, None] * steps[:, None]).expand(-1, num_levels, -1, -1).reshape(-1)


class SelfAttention(nn.Module):
    """Multi-head attention of the queries among themselves, with its residual; positions enter query and key only."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, pos: Tensor, allowed: Tensor | None = None) -> Tensor:
        """x, pos (B, Q, C); allowed (Q, Q) bool, True where a row may look -> (B, Q, C)."""
        dim = x.shape[-1]
        weights, biases = (t.split((2 * dim, dim)) for t in (self.in_proj_weight, self.in_proj_bias))
        q, k = F.linear(x + pos, weights[0], biases[0]).chunk(2, -1)
        v = F.linear(x, weights[1], biases[1])
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, H, Q, D)
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return x + self.out_proj(read.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """x + fc2(relu(fc1(x)))."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        layers = self.fc1, self.fc2
        if not _plain(*layers):
            return x + self.fc2(F.relu(self.fc1(x)))
        tensors = [x.flatten(0, -2), *(t for layer in layers for t in (layer.weight, layer.bias))]
        return x + _TwoLinears.apply(*_for_autocast(*tensors, kind=x.device.type)).view_as(x)  # type: ignore[union-attr]


def _plain(*layers: nn.Module) -> bool:
    """Whether weights may be read past these layers: nothing is recorded, and none is an adapter's module."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[reportPrivateImportUsage]
        return False
    return all(type(layer) is nn.Linear for layer in layers)


def _for_autocast(*tensors: Tensor, kind: str) -> tuple[Tensor, ...]:
    """The tensors as autocast of a kind of device would hand them to a product."""
    dtype = autocast_dtype(kind)
    return tensors if dtype is None else tuple(t.to(dtype) for t in tensors)


class _LinearsOfSum(torch.autograd.Function):
    """Two linear layers of x + pos (B, N, C). The sum is not kept for the gradient but computed again: x and pos are
    kept by others anyway, and in the encoder it would be a tensor of all tokens in every layer.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, pos: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
    ) -> tuple[Tensor, Tensor]:
        q = (x + pos).to(w1.dtype)
        ctx.save_for_backward(x, pos, w1, w2)
        return F.linear(q, w1, b1), F.linear(q, w2, b2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, pos, w1, w2 = ctx.saved_tensors
        g1, g2 = (g.flatten(0, -2) for g in grad_outputs)
        by_x = by_pos = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            by_x = by_pos = torch.addmm(g1 @ w1, g2, w2).view_as(x)
            if pos.shape != x.shape:  # one for all images
                by_pos = by_pos.sum(0, keepdim=True)
        q = (x + pos).to(w1.dtype).flatten(0, -2)
        return by_x, by_pos, g1.t() @ q, g1.sum(0), g2.t() @ q, g2.sum(0)


class _TwoLinears(torch.autograd.Function):
    """fc2(relu(fc1(x))) of (N, C), all of one dtype. The hidden layer, the widest tensor of the network, is touched as
    little as can be: on a GPU the product applies bias and ReLU before it writes, and its gradient is masked in place,
    of at most `_AT_ONCE` bytes of rows at a time, for there the memory of a training step is at its highest.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        hidden = torch.ops.aten._addmm_activation(b1, x, w1.t()) if x.is_cuda else torch.addmm(b1, x, w1.t()).relu_()
        ctx.save_for_backward(x, w1, w2, hidden)
        return torch.addmm(b2, hidden, w2.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, w1, w2, hidden) = grad_outputs, ctx.saved_tensors
        by_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        by_w1 = by_b1 = None
        parts = max(-(-hidden.nbytes // _AT_ONCE), 1)
        for i in range(parts):
            part = slice(i * len(x) // parts, (i + 1) * len(x) // parts)
            inner = grad[part] @ w2
            torch.ops.aten.threshold_backward.grad_input(inner, hidden[part], 0, grad_input=inner)
            if by_x is not None:
                torch.mm(inner, w1, out=by_x[part])
            if by_w1 is None or by_b1 is None:
                by_w1, by_b1 = inner.t() @ x[part], inner.sum(0)
            else:
                by_w1.addmm_(inner.t(), x[part])
                by_b1 += inner.sum(0)
        return by_x, by_w1, by_b1, grad.t() @ hidden, grad.sum(0)
