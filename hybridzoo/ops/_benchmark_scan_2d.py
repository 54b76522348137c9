"""The lines of the speed table for scans along paths: beside gathering, mamba-ssm's scan and scattering back.

The rival gets its inputs as MambaAD and VMamba have them: u is copied in every order, the other tensors are projections
of those copies and so already in order; the outputs are put back and summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hybridzoo.ops._benchmark_case import BYTES_PER_SECOND, EXPS_PER_SECOND, Case, Contender, ours
from hybridzoo.ops.dispatch import machine_obstacle
from hybridzoo.ops.scan_paths import inverse_paths, scan_paths
from hybridzoo.ops.selective_scan import mamba_ssm, selective_scan
from hybridzoo.ops.selective_scan_2d import selective_scan_2d


def by_copies(
    scan: Callable[..., Tensor],
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    paths: Tensor,
) -> Tensor:
    """u (B, D, L), dt (B, K * D, L), B and C (B, K, N, L) in the order of the paths -> (B, D, L)."""
    batch, channels, length = u.shape
    copies = u[:, :, paths].transpose(1, 2).reshape(batch, -1, length)
    y = scan(copies, dt, A, B, C, D, bias).view(batch, -1, channels, length)
    back = inverse_paths(paths)[None, :, None].expand(batch, -1, channels, -1)
    return y.gather(3, back).sum(1)


def _by_selective_scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    last = [x.transpose(1, 2) for x in (u, dt)]
    y: Any = selective_scan(last[0], last[1], A, B.movedim(3, 1), C.movedim(3, 1), D, None, bias, dt_softplus=True)
    return y.transpose(1, 2)


def _by_mamba_ssm(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # pyright: ignore[reportMissingImports]

    return selective_scan_fn(u, dt, A, B, C, D, None, bias, True)


def build(
    batch: int, side: int, channels: int, n: int, directions: int, device: str
) -> Callable[[], Iterator[Contender]]:
    """Contenders in fp32 on a square map, Hilbert curves."""

    def contenders() -> Iterator[Contender]:
        torch.manual_seed(0)
        length = side * side
        u = torch.randn(batch, length, channels, device=device).requires_grad_()
        dt = (torch.randn(batch, length, directions, channels, device=device) * 0.5).requires_grad_()
        A = -torch.arange(1.0, n + 1, device=device).repeat(directions, channels, 1)
        B, C = (torch.randn(batch, length, directions, n, device=device).requires_grad_() for _ in range(2))
        D = torch.ones(directions, channels, device=device)
        bias = torch.full((directions, channels), -4.6, device=device)
        paths = scan_paths("hilbert", side, side, directions).to(device)
        leaves = [x.requires_grad_() for x in (u, dt, A, B, C, D, bias)]

        def mine(name: str) -> Tensor:
            return selective_scan_2d(*leaves, paths=paths, dt_softplus=True, backend=name)

        yield from ours("selective_scan_2d", mine, leaves, device)
        which = torch.arange(directions, device=device)[:, None]

        def ordered(x: Tensor) -> Tensor:  # (B, L, K, C) -> (B, K, C, L), in the order of the paths
            return x.detach()[:, paths, which].permute(0, 1, 3, 2).contiguous()

        theirs = [
            x.requires_grad_()
            for x in (
                u.detach().transpose(1, 2).contiguous(),
                ordered(dt).flatten(1, 2),
                A.detach().flatten(0, 1).clone(),
                ordered(B),
                ordered(C),
                D.detach().flatten().clone(),
                bias.detach().flatten().clone(),
            )
        ]
        on_gpu = device == "cuda"
        if on_gpu and machine_obstacle(mamba_ssm.SYMBOL) is not None:
            return
        scan = _by_mamba_ssm if on_gpu else _by_selective_scan
        name = "copies + mamba_ssm" if on_gpu else "copies + our selective_scan"
        call = lambda: by_copies(scan, *theirs, paths)  # type: ignore[call-arg]  # noqa: E731
        yield Contender(name, call, theirs, peer=True, to_common=lambda y: y.transpose(1, 2))

    return contenders


def cases(device: str) -> list[Case]:
    """The four stages of MambaAD at 256 pixels, batch 16; nothing on the CPU, where both sides are our own scan."""
    if device != "cuda":
        return []
    found = []
    for side, channels in ((64, 128), (32, 256), (16, 512), (8, 1024)):
        moved = 16 * side * side * (channels * (2 + 8) + 2 * 8 * 16) * 4
        exps = 16 * side * side * 8 * channels * (16 + 1)
        floor = max(moved / BYTES_PER_SECOND, exps / EXPS_PER_SECOND) * 1e3
        name = f"MambaAD {side}x{side} B16 D{channels} K8 N16 fp32"
        found.append(Case("selective_scan_2d", name, device, build(16, side, channels, 16, 8, device), floor))
    return found
