"""Launches of the Triton kernels of `delta_rule`: three forward, two to six backward, whatever the length.

Backward: a walk over the chunks and one kernel for all the rest. Keys that are too wide for those have more kernels
(`_TWO`, `_LOCAL`), and without `Tuning.keep` two of the forward run again.
"""

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

_FULL = 128
"""Programs that fill the device but for a few of the 132 multiprocessors of an H100."""

_TWO, _LOCAL = 256, 512
"""Bytes of a key. With more, what follows the walk back is two kernels, and the local part of dV' one before it."""


class Tuning(NamedTuple):
    """Constants that decide speed and memory only."""

    walk_values: int = 64  # value channels of a program that walks a segment, at most
    walk_stages: int = 3  # chunks whose loads are on their way there, at most
    walk_stages_shared: int = 2  # the same where there are more programs than multiprocessors: two fit into one then
    walk_stages_back: int = 2
    walk_stages_back_shared: int = 1
    output_values: int = 128  # value channels of a program of the output
    chunk_stages: int = 2  # of the kernel after the walk back
    keep: bool = True  # W, states and V' for the backward instead of computing them again: memory for time


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
    blocks = {"BK": 64, "BV": 64, "NK": cdiv(shape.keys, 64), "NV": cdiv(shape.values, 64)}
    return {"C": C, **blocks}


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
    while values > 32 and chains * cdiv(shape.values, values) < _FULL:
        values //= 2
    stage = C * ((3 if back else 2) * keys + values) * k.element_size()
    blocks = cdiv(shape.values, values)
    if chains * blocks > _FULL:
        stages = TUNING.walk_stages_back_shared if back else TUNING.walk_stages_shared
    else:
        stages = TUNING.walk_stages_back if back else TUNING.walk_stages
    room = 210_000 if back else 150_000
    return (blocks, chains), {"C": C, "BK": keys, "BV": values, "num_stages": max(1, min(stages, room // stage))}


def _transform(k: Tensor, v: Tensor, beta: Tensor, inverse: Tensor, shape: Shape, *, invert: bool, keep: bool):
    constants = _constants(shape)
    precision = "tf32x3" if k.dtype == torch.float32 else "tf32"  # the inverse is rounded to 16 bits then
    w, u = torch.empty_like(k), torch.empty_like(v)
    launch(forward_kernels.transform_kernel, (shape.chunks * shape.heads,),
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


def kept_shapes(k: Tensor, v: Tensor, chunks: Any, keep: bool) -> tuple[Any, ...]:
    """Shapes of what a forward leaves to its backward: X, W, the states before each chunk, V'. Empty if not kept."""
    heads, keys = k.shape[2:]
    rest = (k.shape, (chunks, heads, keys, v.shape[3]), v.shape) if keep and TUNING.keep else (0, 0, 0)
    return ((chunks, heads, C, C) if keep else 0, *rest)


def delta_rule_forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, scale: float, initial: Tensor | None, cu_seqlens: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output (B, T, H, V), final states (S, H, K, V) fp32, and what `kept_shapes` names."""
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
    blocks = cdiv(shape.values, block)
    launch(forward_kernels.output_kernel, (blocks * shape.chunks * shape.heads,),
        q, k, states, written, out, shape.bounds, shape.firsts, *shape.numbers, scale,
        **_pick(constants, "BK", "NK", BV=block, BLOCKS=blocks),
    )  # fmt: skip
    if keep and TUNING.keep:
        return out, final, inverse, w, states, written
    return out, final, inverse, k.new_empty(0), k.new_empty(0), k.new_empty(0)


def delta_rule_backward(
    grad_o: Tensor, grad_final: Tensor | None, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, scale: float,
    initial: Tensor | None, cu_seqlens: Tensor | None, inverse: Tensor, w: Tensor, states: Tensor, written: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of q, k, v, beta and the initial state; empty `states`: W, states and V' are computed again."""
    q, k, v, beta, grad_o = (x.contiguous() for x in (q, k, v, beta, grad_o))
    initial, grad_final = (None if x is None else x.contiguous() for x in (initial, grad_final))
    shape = shape_of(k, v, cu_seqlens)
    constants = _constants(shape)
    tables = (shape.bounds, shape.firsts)
    everything = {**_pick(constants), **_blocks(constants)}
    if not states.numel():
        w, u = _transform(k, v, beta, inverse, shape, invert=False, keep=False)
        states, written = _states(k, w, u, initial, None, shape)
        del u
    grad_written = torch.empty_like(v)
    width = shape.keys * k.element_size()
    if width > _LOCAL:
        launch(backward_kernels.local_kernel, (shape.chunks * shape.heads,),
            q, k, grad_o, grad_written, *tables, *shape.numbers, scale, **everything,
        )  # fmt: skip
    grid, blocks = _walk(k, shape, back=True)
    grad_states = torch.empty_like(states)
    grad_initial = None if initial is None else torch.empty_like(initial)
    launch(backward_kernels.state_backward_kernel, grid,
        q, k, w, grad_o, grad_final, grad_initial, grad_states, grad_written, *tables, *shape.numbers[1:], scale,
        **blocks, LOCAL=width <= _LOCAL,
    )  # fmt: skip
    del w
    grad_q, grad_k, grad_v, grad_beta = (torch.empty_like(x) for x in (q, k, v, beta))
    if width <= _TWO:
        launch(backward_kernels.chunk_backward_kernel, (shape.chunks * shape.heads,),
            q, k, v, beta, inverse, states, written, grad_o, grad_states, grad_written, grad_q, grad_k, grad_v,
            grad_beta, *tables, *shape.numbers, scale, num_stages=TUNING.chunk_stages,
            **_pick(constants, "BV", "NV", BK=blocks["BK"]),
        )  # fmt: skip
        return grad_q, grad_k, grad_v, grad_beta, grad_initial
    inner_k, grad_w = torch.empty_like(k), torch.empty_like(k)
    launch(backward_kernels.inner_backward_kernel, (constants["NK"] * shape.chunks * shape.heads,),
        q, k, states, written, grad_o, grad_states, grad_written, grad_q, inner_k, grad_w,
        *tables, *shape.numbers, scale, num_stages=1,
        **_pick(constants, "BK", "BV", "NV", BLOCKS=constants["NK"]),
    )  # fmt: skip
    launch(backward_kernels.transform_backward_kernel, (shape.chunks * shape.heads,),
        k, v, beta, inverse, grad_w, grad_written, inner_k, grad_k, grad_v, grad_beta, *tables, *shape.numbers,
        **everything,
    )  # fmt: skip
    return grad_q, grad_k, grad_v, grad_beta, grad_initial
