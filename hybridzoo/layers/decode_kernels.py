"""Launches of the Triton kernels that stand for chains of torch operations, mostly in decoding one token a row.

Every function takes the arguments of the torch function that it stands for and returns what that returns, or None for
a call that it does not know; `fused.py` names the pairs. Inputs may be slices of a wider projection. `gated` and `unit`
have gradients.

Legend: B rows, D channels, H heads, N states.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.layers import _kernels_decode as kernels
from hybridzoo.layers import _kernels_rows as rows
from hybridzoo.ops._autograd import eager_form
from hybridzoo.ops._launch import cdiv, launch, next_power_of_2

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def _fit(*tensors: Tensor) -> bool:
    """One dtype that the kernels know, the last dimension without gaps."""
    first = tensors[0].dtype
    return first in _FLOATS and all(t.dtype == first and t.stride(-1) == 1 for t in tensors)


def _row(x: Tensor) -> int | None:
    """Elements from one row of (B, ..., D) to the next; None if something between is not contiguous."""
    inner = 1
    for size, stride in zip(reversed(x.shape[1:]), reversed(x.stride()[1:])):
        if size != 1 and stride != inner:
            return None
        inner *= size
    return x.stride(0)


def _rows(x: Tensor) -> tuple[int, int] | None:
    """(..., D) as rows of D at equal distances: how many, and the distance; None if they are not."""
    count, distance = 1, x.shape[-1]
    for size, stride in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1])):
        if size == 1:
            continue
        if count == 1:
            distance = stride
        elif stride != count * distance:
            return None
        count *= size
    return count, distance


def _warps(width: int) -> int:
    return 8 if width > 2048 else 4 if width > 512 else 1


def normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """(..., D)"""
    width, found = x.shape[-1], _rows(x)
    if not _fit(x, weight) or found is None or width > 16384:
        return None
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sizes = {"D": width, "DP": next_power_of_2(width)}
    launch(kernels.norm_kernel, found[:1], x, weight, out, found[1], eps, num_warps=_warps(width), **sizes)
    return out


def added_and_normalised(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor] | None:
    """(..., D) twice"""
    width = x.shape[-1]
    if not (_fit(x, y, weight) and x.is_contiguous() and y.is_contiguous()) or x.shape != y.shape or width > 16384:
        return None
    total, out = torch.empty_like(x), torch.empty_like(x)
    sizes = {"D": width, "DP": next_power_of_2(width)}
    launch(
        kernels.add_norm_kernel, (x.numel() // width,), x, y, weight, total, out, eps, num_warps=_warps(width), **sizes
    )
    return total, out


def mean_of_norms(a: Tensor, weight_a: Tensor, b: Tensor, weight_b: Tensor, eps: float) -> Tensor | None:
    """(..., D) twice"""
    width = a.shape[-1]
    if not _fit(a, weight_a, b, weight_b) or not (a.is_contiguous() and b.is_contiguous()) or width > 16384:
        return None
    out = torch.empty_like(a)
    sizes = {"D": width, "DP": next_power_of_2(width)}
    launch(
        kernels.mean_kernel, (a.numel() // width,), a, weight_a, b, weight_b, out, eps, num_warps=_warps(width), **sizes
    )
    return out


def three_normalised(
    a: Tensor, b: Tensor, c: Tensor, weights: tuple[Tensor, Tensor, Tensor], eps: float, room: int = 0
) -> Any:
    """(..., R), (..., N), (..., N); the first result gets `room` further columns of zeros."""
    found = [_rows(x) for x in (a, b, c)]
    if not _fit(a, b, c, *weights) or b.shape != c.shape or max(a.shape[-1], b.shape[-1]) > 4096:
        return None
    steps = [step[1] for step in found if step is not None]
    if len(steps) < 3:
        return None
    wide, narrow = a.shape[-1], b.shape[-1]
    outs = [a.new_empty(*a.shape[:-1], wide + room), b.new_empty(b.shape), c.new_empty(c.shape)]
    launch(kernels.three_norms_kernel, (a.numel() // wide,),
        a, b, c, *weights, *outs, *steps, eps, num_warps=1,
        DX=wide, DXO=wide + room, DXP=next_power_of_2(wide + room), DY=narrow, DYP=next_power_of_2(narrow),
    )  # fmt: skip
    return tuple(outs)


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    out, size = torch.empty_like(gate), gate.numel()
    launch(rows.gate_kernel, (cdiv(size, 1024),), gate, up, out, size, BLOCK=1024)
    return out


def _gated_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = ctx.saved_tensors
    grad_gate, grad_up, size = torch.empty_like(gate), torch.empty_like(up), gate.numel()
    launch(rows.gate_backward_kernel, (cdiv(size, 1024),),
        gate, up, grad.contiguous(), grad_gate, grad_up, size, BLOCK=1024,
    )  # fmt: skip
    return grad_gate, grad_up


def _save(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(*inputs)


_gated_with_gradient = eager_form(_gated, _save, _gated_backward)


def gated(gate: Tensor, up: Tensor) -> Tensor | None:
    """Two of one shape."""
    if not (_fit(gate, up) and gate.is_contiguous() and up.is_contiguous()) or gate.shape != up.shape:
        return None
    return _gated_with_gradient(gate, up) if torch.is_grad_enabled() else _gated(gate, up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor | None:
    """(B, H, T, K) by tables (1 or B, T, K / 2)"""
    batch, heads, length, width = x.shape
    if not (_fit(x) and cos.is_contiguous() and sin.is_contiguous()):
        return None
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    table = 0 if cos.shape[0] == 1 else length * (width // 2)
    padded = next_power_of_2(width // 2)
    block = min(next_power_of_2(length), max(1, 2048 // padded))
    launch(kernels.rotate_kernel, (batch * heads, cdiv(length, block)),
        x, cos, sin, out, length, *x.stride()[:3], table, num_warps=4 if block > 1 else 1,
        H=heads, K2=width // 2, K2P=padded, BT=block,
    )  # fmt: skip
    return out


def rotated_pair(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor] | None:
    """As `rotate`, of both."""
    one, two = rotate(q, cos, sin), rotate(k, cos, sin)
    return None if one is None or two is None else (one, two)


def conv_step(
    state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None, inplace: bool
) -> tuple[Tensor, Tensor] | None:
    """See `causal_conv1d_step`."""
    (batch, channels), taps = x.shape, weight.shape[1]
    if not (_fit(x, weight) and state.dtype == x.dtype and state.is_contiguous() and weight.is_contiguous()):
        return None
    if taps < 2:
        return None
    out = torch.empty(batch, channels, dtype=x.dtype, device=x.device)
    after = state if inplace else torch.empty_like(state)
    launch(kernels.conv_kernel, (batch, cdiv(channels, 512)),
        state, x, weight, bias, out, after, x.stride(0),
        D=channels, W=taps, SILU=activation == "silu", BLOCK=512,
    )  # fmt: skip
    return out, after


def scan_step(
    state: Tensor, u: Tensor, dt: Tensor, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor,
    *, inplace: bool,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """See `selective_scan_step`, with A = -exp(A_log) and softplus."""
    (batch, channels), states = u.shape, A_log.shape[1]
    whole = (state, A_log, D, dt_bias)
    if not _fit(u, dt, B, C, z) or state.dtype != torch.float32 or not all(t.is_contiguous() for t in whole):
        return None
    if B.dim() != 2 or any(t.dtype not in _FLOATS for t in whole):
        return None
    out = torch.empty(batch, channels, dtype=u.dtype, device=u.device)
    after = state if inplace else torch.empty_like(state)
    padded = next_power_of_2(states)
    block = max(16, 1024 // padded)
    steps = (u.stride(0), dt.stride(0), B.stride(0), C.stride(0), z.stride(0))
    launch(kernels.scan_kernel, (batch, cdiv(channels, block)),
        state, u, dt, A_log, B, C, D, z, dt_bias, out, after, *steps,
        D=channels, N=states, NP=padded, BLOCK=block,
    )  # fmt: skip
    return out, after


def delta_step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *, inplace: bool
) -> tuple[Tensor, Tensor] | None:
    """See `delta_rule_step`."""
    batch, heads, keys, values = state.shape
    steps = [_row(x) for x in (q, k, v, beta)]
    if not _fit(q, k, v) or state.dtype != torch.float32 or not state.is_contiguous() or None in steps or keys > 512:
        return None
    if beta.dtype not in _FLOATS:
        return None
    out = torch.empty(batch, heads, values, dtype=v.dtype, device=v.device)
    after = state if inplace else torch.empty_like(state)
    padded = next_power_of_2(keys)
    block = max(8, min(next_power_of_2(values), 4096 // padded))
    launch(kernels.delta_kernel, (batch * heads, cdiv(values, block)),
        state, q, k, v, beta, out, after, keys**-0.5, *steps,
        H=heads, K=keys, V=values, KP=padded, BLOCK=block,
    )  # fmt: skip
    return out, after


_UNIT_EPS = 1e-6  # of DeltaNet's queries and keys


def _unit_launch(kernel: Any, x: Tensor, *others: Tensor) -> None:
    width = x.shape[-1]
    count, padded = x.numel() // width, next_power_of_2(width)
    block = max(1, min(32, 4096 // padded, next_power_of_2(count)))
    launch(kernel, (cdiv(count, block),), x, *others, count, _UNIT_EPS, K=width, KP=padded, BLOCK=block)


def _unit(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    _unit_launch(rows.unit_kernel, x, out)
    return out


def _unit_backward(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    out = torch.empty_like(x)
    _unit_launch(rows.unit_backward_kernel, x, grad.contiguous(), out)
    return out


_unit_with_gradient = eager_form(_unit, _save, _unit_backward)


def unit(x: Tensor) -> Tensor | None:
    """(..., K), each row of length 1."""
    if not _fit(x) or not x.is_contiguous() or x.shape[-1] > 4096:
        return None
    return _unit_with_gradient(x) if torch.is_grad_enabled() else _unit(x)
