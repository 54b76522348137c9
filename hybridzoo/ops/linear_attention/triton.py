"""Launches of the Triton kernels of `linear_attention`: three forward, seven backward at most, whatever the length.

What the kernels get (o' stands for the gradient of o, s for the denominators, R for the states of the backward):

    sums, carry        x  y  factor  bias       FLIP
      forward          k  v  -       ones       no        states S before each span
      backward         q  o' 1 / s   -(o' . o)  yes       states R after each span; the last one is S_0's gradient
    values             x  y  v   factor
      o                q  k  v   -              no        with S
      gradient of v    k  q  o'  1 / s          yes       with R
    keys               x  v  y   rows   columns
      gradient of q    o' v  k   1 / s  -       no        with S; puts the bias right
      gradient of k    v  o' q   -      1 / s   yes       with R
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2
from hybridzoo.ops.linear_attention import _kernels


class Tuning(NamedTuple):
    """Constants that decide speed only."""

    span: int = 256  # positions between states
    tile: int = 64
    carry_block: int = 256  # elements of the states that a program carries, two a thread
    carry_ahead: int = 8  # spans it reads before it writes: loads in flight


TUNING = Tuning()


class Shape(NamedTuple):
    """Sizes of a call and the blocks of its kernels."""

    batch: int
    length: int
    heads: int
    keys: int
    values: int
    width: int  # columns of a state
    spans: int  # of a row
    causal: bool
    BK: int
    BV: int

    @property
    def numbers(self) -> tuple[int, ...]:
        """What most kernels take before their scalars."""
        return self.length, self.heads, self.keys, self.values, self.width, self.spans

    @property
    def tiles(self) -> int:
        return self.batch * self.spans * (TUNING.span // TUNING.tile)


def shape_of(q: Tensor, v: Tensor, causal: bool, normalize: bool) -> Shape:
    """The cut of a call."""
    batch, length, heads, keys = q.shape
    values = v.shape[3]
    # Blocks of 64 even for fewer channels: with 16 by 16 products in 16 bits, Triton 3.6 has computed wrong results.
    BK = max(64, next_power_of_2(keys))
    BV = 64 if BK > 64 or values <= 64 or q.dtype == torch.float32 else 128
    return Shape(batch, length, heads, keys, values, values + normalize, cdiv(length, TUNING.span), causal, BK, BV)


def _constants(shape: Shape, normalize: bool, **others: Any) -> dict[str, Any]:
    sizes = {"C": TUNING.tile, "SPAN": TUNING.span, "BK": shape.BK, "BV": shape.BV}
    return {"NORMALIZE": normalize, **others, **sizes, "num_stages": 2}


def _states(
    x: Tensor, y: Tensor, factor: Tensor | None, bias: Tensor | None, decay: Tensor | None, initial: Tensor | None,
    shape: Shape, normalize: bool, flip: bool, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """States between spans (B * spans, H, K, WIDTH), and the last one (B, H, K, WIDTH), fp32."""
    size = shape.keys * shape.width
    states = torch.empty(
        shape.batch * shape.spans, shape.heads, shape.keys, shape.width, dtype=torch.float32, device=x.device
    )
    final = torch.empty(shape.batch, shape.heads, shape.keys, shape.width, dtype=torch.float32, device=x.device)
    grid = (cdiv(shape.values, shape.BV), shape.batch * shape.spans, shape.heads)
    launch(_kernels.sums_kernel, grid,
        x, y, factor, bias, decay, states, *shape.numbers, scale, **_constants(shape, normalize, FLIP=flip),
    )  # fmt: skip
    block = min(TUNING.carry_block, next_power_of_2(size))
    launch(_kernels.carry_kernel, (cdiv(size, block), shape.batch * shape.heads),
        states, initial, final, decay, shape.length, shape.heads, size, shape.spans,
        CAUSAL=shape.causal, FLIP=flip, SPAN=TUNING.span, BLOCK=block,
        AHEAD=min(TUNING.carry_ahead, next_power_of_2(shape.spans)), num_stages=1,
    )  # fmt: skip
    return states, final


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if x is None else x.contiguous() for x in tensors]


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, causal: bool, normalize: bool, scale: float, eps: float,
    initial: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output (B, T, H, V), final state (B, H, K, WIDTH) fp32, states between spans, denominators (B, T, H) or nothing.

    Not causal, the final state is the sum over all positions, and there are no states between spans.
    """
    q, k, v, decay, initial = _contiguous(q, k, v, decay, initial)
    shape = shape_of(q, v, causal, normalize)
    states, final = _states(k, v, None, None, decay, initial, shape, normalize, False, 1.0)
    out = torch.empty_like(v)
    sums = torch.empty(q.shape[:3] if normalize else 0, dtype=torch.float32, device=q.device)
    launch(_kernels.values_kernel, (cdiv(shape.values, shape.BV), shape.tiles, shape.heads),
        q, k, v, None, decay, states if causal else final, out, sums, *shape.numbers, scale, scale, eps,
        **_constants(shape, normalize, CAUSAL=causal, FLIP=False),
    )  # fmt: skip
    return out, final, states if causal else states.new_empty(0), sums


def attention_backward(
    grad_out: Tensor, grad_final: Tensor | None, q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, causal: bool,
    normalize: bool, scale: float, eps: float, out: Tensor, final: Tensor, states: Tensor, sums: Tensor, learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v (in their dtypes), of the initial state, and if `learned` of decay (H,) fp32, else empty."""
    dtype = q.dtype
    if normalize and dtype == torch.float16:  # q / s leaves the range of fp16
        q, k, v, grad_out, out = (x.float() for x in (q, k, v, grad_out, out))
    q, k, v, decay, grad_out, grad_final = _contiguous(q, k, v, decay, grad_out, grad_final)
    shape = shape_of(q, v, causal, normalize)
    factor, bias = None, None
    if normalize:
        factor, bias = torch.empty_like(sums), torch.empty_like(sums)
        launch(_kernels.quotient_kernel, (cdiv(sums.numel(), 64),),
            grad_out, out, sums, factor, bias, sums.numel(), shape.values, C=64, BV=64, NV=cdiv(shape.values, 64),
        )  # fmt: skip
    before = states if causal else final
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    keys = {**_constants(shape, normalize, CAUSAL=causal), "NV": cdiv(shape.values, shape.BV)}
    queries = dict(keys)
    if normalize:  # one more matrix in registers, two for the gradient of decay
        queries |= {"BV": 64, "NV": cdiv(shape.values, 64)}
        queries["num_warps"] = 8 if shape.BK > 64 or learned or dtype == torch.float32 else 4
    shares = torch.empty(2, *q.shape[:3], dtype=torch.float32, device=q.device) if learned else [None, None]
    launch(_kernels.keys_kernel, (shape.tiles, shape.heads),
        grad_out, v, k, factor, None, bias, None, decay, before, q, grads[0], shares[0],
        *shape.numbers, scale, scale, eps, FLIP=False, **queries,
    )  # fmt: skip
    # from here on the bias is exact
    after, grad_initial = _states(q, grad_out, factor, bias, decay, grad_final, shape, normalize, True, scale)
    after = after if causal else grad_initial
    # R is scaled already, because the gradient of the final state, which it starts from, must not be
    launch(_kernels.keys_kernel, (shape.tiles, shape.heads),
        v, grad_out, q, None, factor, None, bias, decay, after, k, grads[1], shares[1],
        *shape.numbers, scale, 1.0, 0.0, FLIP=True, **keys,
    )  # fmt: skip
    launch(_kernels.values_kernel, (cdiv(shape.values, shape.BV), shape.tiles, shape.heads),
        k, q, grad_out, factor, decay, after, grads[2], sums, *shape.numbers, scale, 1.0, 0.0,
        **_constants(shape, False, CAUSAL=causal, FLIP=True),
    )  # fmt: skip
    grad_decay = grad_initial.new_empty(0)
    if learned:
        grad_decay = shares.sum((0, 1, 2)) - _through_states(before, after, decay, shape)
    return grads[0].to(dtype), grads[1].to(dtype), grads[2].to(dtype), grad_initial, grad_decay


def _through_states(before: Tensor, after: Tensor, decay: Tensor, shape: Shape) -> Tensor:
    """(H,): what a span makes of the state before it, times the gradient of the state after it, times its length."""
    at = torch.arange(shape.spans, device=decay.device, dtype=torch.float32) * TUNING.span
    lengths = (shape.length - at).clamp(max=TUNING.span).unsqueeze(1)  # (n, 1)
    met = torch.linalg.vecdot(before.flatten(2), after.flatten(2)).view(shape.batch, shape.spans, shape.heads)
    return (met * lengths * torch.exp(-decay.float() * lengths)).sum((0, 1))
