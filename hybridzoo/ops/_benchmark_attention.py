"""The lines of `hybrid_attention` in the speed table, at the shapes of Hymba-1.5B: whole rows, and decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.ops._benchmark_case import BYTES_PER_SECOND, Case, Contender
from hybridzoo.ops.dispatch import get_op
from hybridzoo.ops.hybrid_attention import AttentionPlan, hybrid_attention

_MATMUL_PER_SECOND = 798e12  # bf16 on an H100, measured


def _build(
    batch: int,
    heads: tuple[int, int],
    queries: int,
    keys: int,
    window: int | None,
    prefix: int,
    device: str,
    backward: bool = False,
    widths: tuple[int, int] = (64, 128),
):
    def build() -> Iterator[Contender]:
        torch.manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        shapes = (heads[0], queries, widths[0]), (heads[1], keys, widths[0]), (heads[1], keys, widths[1])
        q, k, v = leaves = [torch.randn(batch, *s, device=device).to(dtype).requires_grad_() for s in shapes]
        plan = AttentionPlan(queries, keys, torch.device(device), window, prefix)
        call = {"q": q, "k": k, "v": v, "plan": plan, "scale": widths[0] ** -0.5}
        op = get_op("hybrid_attention")
        with torch.set_grad_enabled(backward):
            usable = [b.name for b in op.backends if op.obstacle(b, call, device) is None]
        for name in usable:
            run: Callable[..., Tensor] = lambda name=name: hybrid_attention(q, k, v, plan, backend=name)  # noqa: E731
            yield Contender(f"hybridzoo {name}", run, leaves, peer=False)
        mask = None if plan.causal or plan.everything else plan.mask()
        grouped = heads[0] != heads[1]

        def peer() -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, mask, is_causal=plan.causal, enable_gqa=grouped)

        yield Contender("SDPA", peer, leaves, peer=True)

    return build


def cases(device: str) -> list[Case]:
    """Whole rows of windowed and of global layers; one more token a row over a full cache and over a window's."""
    if device != "cuda":
        return []
    heads, found = (25, 5), []
    for name, batch, queries, keys, window, prefix, backward in (
        ("Hymba training B4 L2176 window 1024 prefix 128 bf16", 4, 2176, 2176, 1024, 128, True),
        ("Hymba training B4 L2176 causal bf16", 4, 2176, 2176, None, 0, True),
        ("Hymba prefill B1 L8320 window 1024 prefix 128 bf16", 1, 8320, 8320, 1024, 128, False),
        ("Hymba prefill B1 L8320 causal bf16", 1, 8320, 8320, None, 0, False),
        ("Hymba decode B32 S8320 bf16", 32, 1, 8320, None, 0, False),
        ("Hymba decode B32 S1152 bf16", 32, 1, 1152, None, 0, False),
        ("Hymba decode B1 S8320 bf16", 1, 1, 8320, None, 0, False),
    ):
        seen = sum(min(i + 1, (window or keys) + prefix) for i in range(queries)) if queries > 1 else keys
        moved = batch * 2 * (heads[0] * queries + heads[1] * keys) * (64 + 128)
        work = batch * heads[0] * seen * 2 * (64 + 128)
        floor = max(moved / BYTES_PER_SECOND, work / _MATMUL_PER_SECOND) * 1e3
        build = _build(batch, heads, queries, keys, window, prefix, device, backward)
        found.append(Case("hybrid_attention", name, device, build, floor, backward))
    return found
