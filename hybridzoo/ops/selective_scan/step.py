"""One step of `selective_scan`, for decoding token by token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.selective_scan.reference import compute_dtype


def selective_scan_step(
    state: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """The output and the state after one more position; equals `selective_scan` of length 1 from that state.

    Args:
        state: (B, D, N) fp32 (fp64 for fp64 inputs).
        u, dt, z: (B, D).
        A: (D, N).
        B, C: (B, N) or (B, G, N).
        D, dt_bias: (D,).
        dt_softplus: whether delta goes through softplus.
        inplace: write the new state over `state` (decoding without gradients; keeps its address for CUDA graphs).

    Returns:
        y (B, D) in u's dtype and the new state (B, D, N).

    Raises:
        InputError: shapes that do not fit.
    """
    batch, channels = u.shape
    if state.shape != (batch, *A.shape) or A.shape[0] != channels:
        raise InputError(
            f"selective_scan_step: state must be ({batch}, {channels}, N) and A ({channels}, N) for u of shape "
            f"{tuple(u.shape)}; they are {tuple(state.shape)} and {tuple(A.shape)}"
        )
    B, C = (x.unsqueeze(1) if x.dim() == 2 else x for x in (B, C))
    if B.shape != C.shape or B.dim() != 3 or B.shape[2] != A.shape[1] or channels % B.shape[1]:
        raise InputError(
            f"selective_scan_step: B and C must be ({batch}, N) or ({batch}, G, N) with N = {A.shape[1]} and G a "
            f"divisor of {channels}; they are {tuple(B.shape)} and {tuple(C.shape)}"
        )
    wide = compute_dtype(u.dtype)
    groups = B.shape[1]
    delta = dt.to(wide)
    if dt_bias is not None:
        delta = delta + dt_bias.to(wide)
    if dt_softplus:
        delta = F.softplus(delta)
    drive = ((delta * u.to(wide)).view(batch, groups, -1, 1) * B.to(wide).unsqueeze(2)).view(state.shape)
    new = torch.addcmul(drive, torch.exp(delta.unsqueeze(2) * A.to(wide)), state.to(wide))
    y = (new.view(batch, groups, -1, A.shape[1]) * C.to(wide).unsqueeze(2)).sum(3).view(batch, channels)
    if D is not None:
        y = torch.addcmul(y, D.to(wide), u.to(wide))
    if z is not None:
        y = y * F.silu(z.to(wide))
    if inplace:
        new = state.copy_(new)
    return y.to(u.dtype), new
