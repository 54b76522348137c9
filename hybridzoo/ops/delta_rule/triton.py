"""Launches of the Triton kernels of `delta_rule`: three forward, six backward, whatever the length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2
from hybridzoo.ops.delta_rule import _kernels as forward_kernels
from hybridzoo.ops.delta_rule import _kernels_backward as backward_kernels

C = 64
"""Positions of a chunk; the kernels' inverse is written for this many."""

_FULL = 132
"""Programs that fill the device: the multiprocessors of an H100."""


class Tuning(NamedTuple):
    """Constants that decide speed only."""

    walk_values: int = 64  # value channels of a program that walks a segment, at most
    walk_stages: int = 3  # chunks whose loads are on their way there, at most
    walk_stages_shared: int = 2  # the same where there are more programs than multiprocessors: two fit into one then
    walk_stages_back: int = 2
    output_values: int = 128  # value channels of a program of the output
    output_warps: int = 4


TUNING = Tuning()


@dataclass(frozen=True)
class Shape:
    """Sizes of a call and how its rows fall into chunks."""

    batch: int
    length: int
    heads: int
    keys: int
    values: int
    segments: int
    per_row: int  # chunks of a row of an unpacked batch
    chunks: int  # programs per head; for packed rows an upper bound, found without asking the device
    bounds: Tensor | None
    firsts: Tensor | None  # each segment's first chunk

    @property
    def numbers(self) -> tuple[int, ...]:
        """What kernels over chunks take before their strides."""
        return self.segments, self.length, self.per_row, self.heads, self.keys, self.values


def shape_of(k: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> Shape:
    """The chunks of a call."""
    batch, length, heads, keys = k.shape
    per_row = cdiv(length, C)
    if cu_seqlens is None:
        return Shape(batch, length, heads, keys, v.shape[3], batch, per_row, batch * per_row, None, None)
    bounds = cu_seqlens.to(device=k.device, dtype=torch.int32).clamp(0, length).cummax(0).values.to(torch.int32)
    counts = (bounds.diff() + C - 1) // C
    firsts = (counts.cumsum(0) - counts).to(torch.int32)
    segments = cu_seqlens.shape[0] - 1
    return Shape(batch, length, heads, keys, v.shape[3], segments, per_row, per_row + segments, bounds, firsts)


def _constants(shape: Shape) -> dict[str, Any]:
    # Blocks of 64 even for fewer channels: with 16 by 16 products in 16 bits, Triton 3.6 has computed wrong states.
    return {"C": C, "BK": 64, "BV": 64, "NK": cdiv(shape.keys, 64), "NV": cdiv(shape.values, 64)}


def _pick(constants: dict[str, Any], *names: str, **others: Any) -> dict[str, Any]:
    return {name: constants[name] for name in ("C", *names)} | others


def _walk(k: Tensor, shape: Shape, back: bool = False) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and blocks of the kernels that walk segments: every key channel, and a block of values.

    A walk is a chain of small products: blocks of values are made smaller until the device is full, as far as products
    stay efficient, and loads run ahead as far as shared memory holds them.
    """
    keys = max(64, next_power_of_2(shape.keys))
    values = TUNING.walk_values if keys <= 128 else 32
    chains = shape.segments * shape.heads
    if values > 32 and chains * cdiv(shape.values, values) < _FULL:
        values = 32
    stage = C * (2 * keys + values) * k.element_size()
    blocks = cdiv(shape.values, values)
    most = TUNING.walk_stages_shared if chains * blocks > _FULL else TUNING.walk_stages
    stages = max(1, min(TUNING.walk_stages_back if back else most, 150_000 // stage))
    return (blocks, chains), {"C": C, "BK": keys, "BV": values, "num_stages": stages}


def _transform(k: Tensor, v: Tensor, beta: Tensor, inverse: Tensor, shape: Shape, *, invert: bool, keep: bool):
    constants = _constants(shape)
    precision = "tf32x3" if k.dtype == torch.float32 else "tf32"  # the inverse is rounded to 16 bits then
    w, u = torch.empty_like(k), torch.empty_like(v)
    launch(forward_kernels.transform_kernel, (shape.chunks, shape.heads),
        k, v, beta, inverse, w, u, shape.bounds, shape.firsts, *shape.numbers,
        **_pick(constants, INVERT=invert, KEEP=keep, PRECISION=precision), **_blocks(constants),
    )  # fmt: skip
    return w, u


def _blocks(constants: dict[str, Any]) -> dict[str, Any]:
    return {name: constants[name] for name in ("BK", "BV", "NK", "NV")}


def _states(k: Tensor, w: Tensor, u: Tensor, initial: Tensor | None, final: Tensor | None, shape: Shape):
    grid, blocks = _walk(k, shape)
    states = k.new_empty(shape.chunks, shape.heads, shape.keys, shape.values)
    written = torch.empty_like(u)
    launch(forward_kernels.state_kernel, grid,
        k, w, u, initial, final, states, written, shape.bounds, shape.firsts, *shape.numbers[1:], **blocks,
    )  # fmt: skip
    return states, written


def delta_rule_forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, scale: float, initial: Tensor | None, cu_seqlens: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output (B, T, H, V), final states (S, H, K, V) fp32, and X (chunks, H, C, C) if `keep`, else nothing in it."""
    q, k, v, beta = (x.contiguous() for x in (q, k, v, beta))
    initial = None if initial is None else initial.contiguous()
    shape = shape_of(k, v, cu_seqlens)
    inverse = k.new_empty((shape.chunks, shape.heads, C, C) if keep else 0)
    w, u = _transform(k, v, beta, inverse, shape, invert=True, keep=keep)
    final = torch.empty(shape.segments, shape.heads, shape.keys, shape.values, dtype=torch.float32, device=k.device)
    states, written = _states(k, w, u, initial, final, shape)
    constants = _constants(shape)
    out = torch.empty_like(v)
    block = min(TUNING.output_values, max(64, next_power_of_2(shape.values)))
    launch(forward_kernels.output_kernel, (cdiv(shape.values, block), shape.chunks, shape.heads),
        q, k, states, written, out, shape.bounds, shape.firsts, *shape.numbers, scale,
        num_warps=TUNING.output_warps, **_pick(constants, "BK", "NK", BV=block),
    )  # fmt: skip
    return out, final, inverse


def delta_rule_backward(
    grad_o: Tensor, grad_final: Tensor | None, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, scale: float,
    initial: Tensor | None, cu_seqlens: Tensor | None, inverse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of q, k, v, beta and the initial state."""
    q, k, v, beta, grad_o = (x.contiguous() for x in (q, k, v, beta, grad_o))
    initial, grad_final = (None if x is None else x.contiguous() for x in (initial, grad_final))
    shape = shape_of(k, v, cu_seqlens)
    constants = _constants(shape)
    tables = (shape.bounds, shape.firsts)
    everything = {**_pick(constants), **_blocks(constants)}
    w, u = _transform(k, v, beta, inverse, shape, invert=False, keep=False)
    states, written = _states(k, w, u, initial, None, shape)
    grad_written = torch.empty_like(v)
    launch(backward_kernels.local_kernel, (shape.chunks, shape.heads),
        q, k, grad_o, grad_written, *tables, *shape.numbers, scale, **everything,
    )  # fmt: skip
    grid, blocks = _walk(k, shape, back=True)
    grad_states = torch.empty_like(states)
    grad_initial = None if initial is None else torch.empty_like(initial)
    launch(backward_kernels.state_backward_kernel, grid,
        q, k, w, grad_o, grad_final, grad_initial, grad_states, grad_written, *tables, *shape.numbers[1:], scale,
        **blocks,
    )  # fmt: skip
    grad_q, inner_k, grad_w = torch.empty_like(q), torch.empty_like(k), w  # W is not read any more
    launch(backward_kernels.inner_backward_kernel, (constants["NK"], shape.chunks, shape.heads),
        q, k, states, written, grad_o, grad_states, grad_written, grad_q, inner_k, grad_w,
        *tables, *shape.numbers, scale, **_pick(constants, "BK", "BV", "NV"),
    )  # fmt: skip
    grad_k, grad_v, grad_beta = torch.empty_like(k), u, torch.empty_like(beta)  # nor is U
    launch(backward_kernels.transform_backward_kernel, (shape.chunks, shape.heads),
        k, v, beta, inverse, grad_w, grad_written, inner_k, grad_k, grad_v, grad_beta, *tables, *shape.numbers,
        **everything,
    )  # fmt: skip
    return grad_q, grad_k, grad_v, grad_beta, grad_initial
