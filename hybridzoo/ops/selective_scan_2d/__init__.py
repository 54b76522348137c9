"""`selective_scan_2d`: selective scans of one set of positions along several paths, summed at the positions.

What MambaAD's SS2D, VMamba and bidirectional Mamba layers do with copies in every order. Projections are per position
and so commute with any order: all inputs stay in raster order here, and the paths are applied inside.

Backends: `torch` (the definition: one gather per input, then `selective_scan` with a group per path, which takes its
own fastest backend) and `triton` (the kernels of `selective_scan`, reading and writing rows in the order of the paths).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Backend, Call, Example, Op, register_op, triton_backend
from hybridzoo.ops.scan_paths import inverse_paths, scan_paths
from hybridzoo.ops.selective_scan import selective_scan

__all__ = ["selective_scan_2d"]


def selective_scan_2d(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    paths: Tensor,
    dt_softplus: bool = False,
    backend: str = AUTO,
) -> Tensor:
    """y at position p = sum over k of what scan k, which walks `paths[k]`, gives when it is at p.

    Differentiable in every floating-point argument; states and sums are fp32 (fp64 for fp64 inputs).

    Args:
        u: (B, L, D) in raster order, shared by the K scans.
        dt: (B, L, K, D) in raster order, before bias and softplus.
        A: (K, D, N).
        B, C: (B, L, K, N) in raster order.
        D, dt_bias: (K, D).
        paths: (K, L) integers, each row a permutation of 0 .. L - 1: the position visited at each step
            (`hybridzoo.ops.scan_paths.scan_paths` makes them).
        dt_softplus: whether delta goes through softplus.
        backend: `"auto"`, `"torch"` or `"triton"`.

    Returns:
        (B, L, D) in u's dtype.

    Raises:
        InputError: shapes that do not fit.
    """
    if u.dim() != 3 or 0 in u.shape or A.dim() != 3:
        raise InputError(
            f"selective_scan_2d: u must be (B, L, D) and A (K, D, N); they are {tuple(u.shape)} and {tuple(A.shape)}"
        )
    (batch, length, channels), directions, states = u.shape, A.shape[0], A.shape[2]
    shapes = {
        "dt": (dt, (batch, length, directions, channels)),
        "A": (A, (directions, channels, states)),
        "B": (B, (batch, length, directions, states)),
        "C": (C, (batch, length, directions, states)),
        "D": (D, (directions, channels)),
        "dt_bias": (dt_bias, (directions, channels)),
        "paths": (paths, (directions, length)),
    }
    for name, (x, shape) in shapes.items():
        if x is not None and tuple(x.shape) != shape:
            raise InputError(f"selective_scan_2d: {name} must be {shape}, it is {tuple(x.shape)}")
    call = {name: x for name, (x, _) in shapes.items()}
    return OP({"u": u, **call, "dt_softplus": dt_softplus}, backend)


def _run_torch(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    paths: Tensor,
    dt_softplus: bool,
) -> Tensor:
    directions, length = paths.shape
    paths = paths.to(u.device, torch.int64)
    visited = paths.t().reshape(-1)  # (L * K,): steps outside, directions inside
    which = torch.arange(directions, device=u.device)
    # index_select: its backward adds into each row once, without sorting
    own = (paths.t() * directions + which).reshape(-1)
    along = [x.flatten(1, 2).index_select(1, own).unflatten(1, (length, directions)) for x in (dt, B, C)]
    y: Any = selective_scan(
        u.index_select(1, visited).unflatten(1, (length, directions)).flatten(2),
        along[0].flatten(2),
        A.flatten(0, 1),
        along[1],
        along[2],
        None if D is None else D.flatten(),
        None,
        None if dt_bias is None else dt_bias.flatten(),
        dt_softplus=dt_softplus,
    )
    back = (inverse_paths(paths).t() * directions + which).reshape(-1)
    rows = y.unflatten(2, (directions, -1)).flatten(1, 2).index_select(1, back)
    return rows.unflatten(1, (length, directions)).sum(2)


def _examples(device: torch.device) -> list[Example]:
    g = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device)

    call = {
        "u": rand(2, 30, 6),
        "dt": rand(2, 30, 4, 6),
        "A": -rand(4, 6, 3).exp(),
        "B": rand(2, 30, 4, 3),
        "C": rand(2, 30, 4, 3),
        "D": rand(4, 6),
        "dt_bias": rand(4, 6),
        "paths": scan_paths("hilbert", 5, 6, 4).to(device),
        "dt_softplus": True,
    }
    return [Example("hilbert, 4 paths", call, ("u", "dt", "A", "B", "C", "D", "dt_bias"))]


def _run_triton(**call: Any) -> Tensor:
    from hybridzoo.ops.selective_scan_2d.custom_ops import scan_2d_triton

    return scan_2d_triton(**call)


def _triton_supports(call: Call) -> str | None:
    for name, x in call.items():
        if isinstance(x, Tensor) and x.dtype == torch.float64:
            return f"the kernels compute in fp32, {name} is float64"
    if call["A"].shape[2] > 128:
        return f"the kernels keep at most 128 states in registers, A has {call['A'].shape[2]}"
    if torch.version.hip is not None:
        return "the kernels have been checked on NVIDIA GPUs only"
    return None


OP = register_op(
    Op(
        name="selective_scan_2d",
        backends=(
            triton_backend(_run_triton, _triton_supports),
            Backend(name="torch", priority=0, run=_run_torch, exportable=True),
        ),
        examples=_examples,
    )
)
