"""The delta rule's lines of the speed table: beside flash-linear-attention's kernels, on the CPU its naive loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.ops._benchmark_case import BYTES_PER_SECOND, Case, Contender, ours
from hybridzoo.ops.delta_rule import delta_rule, fla
from hybridzoo.ops.dispatch import machine_obstacle


def loop_over_positions(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """What packages do without a GPU: the recurrence, a position a step."""
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    outs = []
    for t in range(q.shape[1]):
        key = k[:, t].unsqueeze(3)
        said = (state * key).sum(2)
        state = state + key * ((v[:, t] - said) * beta[:, t].unsqueeze(2)).unsqueeze(2)
        outs.append((state * q[:, t].unsqueeze(3)).sum(2))
    return torch.stack(outs, 1) * q.shape[3] ** -0.5


def _build(batch: int, length: int, heads: int, width: int, dtype: torch.dtype, device: str):
    def build() -> Iterator[Contender]:
        torch.manual_seed(0)
        q, k, v = (torch.randn(batch, length, heads, width, device=device) for _ in range(3))
        q, k, v = (x.to(dtype).requires_grad_() for x in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v))
        beta = torch.rand(batch, length, heads, device=device).to(dtype).requires_grad_()
        leaves = [q, k, v, beta]

        def mine(name: str) -> Tensor:
            return cast(Tensor, delta_rule(q, k, v, beta, backend=name))

        yield from ours("delta_rule", mine, leaves, device)
        if device == "cpu":
            yield Contender("loop over positions", lambda: loop_over_positions(*leaves), leaves, peer=True)
        elif machine_obstacle(fla.SYMBOL) is None:
            from fla.ops.delta_rule import chunk_delta_rule  # pyright: ignore[reportMissingImports]

            yield Contender("fla", lambda: chunk_delta_rule(q, k, v, beta)[0], leaves, peer=True)

    return build


def cases(device: str) -> list[Case]:
    """Shapes of DeltaNet-1.3B and -340M, and one small one for the CPU."""
    shapes: dict[str, tuple[int, int, int, int, torch.dtype]] = {
        "DeltaNet-1.3B B8 T2048 H16 K128 bf16": (8, 2048, 16, 128, torch.bfloat16),
        "DeltaNet-1.3B B1 T16384 H16 K128 bf16": (1, 16384, 16, 128, torch.bfloat16),
        "DeltaNet-340M B16 T2048 H8 K128 bf16": (16, 2048, 8, 128, torch.bfloat16),
    }
    if device == "cpu":
        shapes = {"B1 T1024 H4 K64 fp32": (1, 1024, 4, 64, torch.float32)}
    found = []
    for name, (batch, length, heads, width, dtype) in shapes.items():
        build: Callable[[], Iterator[Contender]] = _build(batch, length, heads, width, dtype, device)
        moved = batch * length * heads * (4 * width + 1) * torch.empty((), dtype=dtype).element_size()
        floor = moved / BYTES_PER_SECOND * 1e3 if device == "cuda" else None
        found.append(Case("delta_rule", name, device, build, floor))
    return found
