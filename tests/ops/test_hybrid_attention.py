"""hybrid_attention: the definition against a softmax written out, blocks, plans and errors; the decoding kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from hybridzoo.errors import BackendError, InputError
from hybridzoo.ops._selftest import relative_error, run_example
from hybridzoo.ops.dispatch import get_op
from hybridzoo.ops.hybrid_attention import AttentionPlan, hybrid_attention
from hybridzoo.ops.hybrid_attention.reference import _worth_blocks

CPU = torch.device("cpu")


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(q: Any, k: Any, v: Any, sees: Any, scale: float) -> torch.Tensor:
    """Query by query; sees(b, i, j) says whether query i of row b sees key j."""
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    share = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                keys = [j for j in range(k.shape[2]) if sees(b, i, j)]
                weights = (k[b, h // share, keys] @ q[b, h, i] * scale).softmax(0)
                out[b, h, i] = weights @ v[b, h // share, keys]
    return out


@pytest.mark.parametrize(
    ("queries", "keys", "window", "prefix"),
    [(9, 9, None, 0), (9, 9, 3, 0), (9, 9, 3, 2), (4, 9, None, 0), (4, 9, 2, 3), (1, 9, None, 0), (1, 9, 4, 1)],
)
def test_aligned_rows(queries: int, keys: int, window: int | None, prefix: int) -> None:
    q, k, v = rand(2, 4, queries, 6), rand(2, 2, keys, 6, seed=1), rand(2, 2, keys, 10, seed=2)

    def sees(b: int, i: int, j: int) -> bool:
        at = keys - queries + i
        return j <= at and (window is None or at - j < window or j < prefix)

    plan = AttentionPlan(queries, keys, CPU, window, prefix)
    got = hybrid_attention(q, k, v, plan, scale=0.3)
    torch.testing.assert_close(got, written_out(q, k, v, sees, 0.3))


def test_positions_and_segments() -> None:
    q, k, v = rand(2, 2, 3, 4), rand(2, 1, 6, 4, seed=1), rand(2, 1, 6, 4, seed=2)
    q_at, k_at = torch.tensor([[4, 5, 6], [2, 3, 4]]), torch.tensor([[0, 1, -1, 4, 5, 6], [3, 4, 0, 1, 2, -1]])
    plan = AttentionPlan(3, 6, CPU, 3, 1, q_at, k_at)

    def sees(b: int, i: int, j: int) -> bool:
        at, held = int(q_at[b, i]), int(k_at[b, j])
        return 0 <= held <= at and (at - held < 3 or held < 1)

    torch.testing.assert_close(hybrid_attention(q, k, v, plan), written_out(q, k, v, sees, 0.5))
    q_seg, k_seg = torch.tensor([[0, 1, 1]]), torch.tensor([[-1, 0, 0, 0, 1, 1]])
    plan = AttentionPlan(3, 6, CPU, None, 0, q_segments=q_seg, k_segments=k_seg)

    def same(b: int, i: int, j: int) -> bool:
        return j <= 3 + i and int(k_seg[0, j]) in (-1, int(q_seg[0, i]))

    torch.testing.assert_close(hybrid_attention(q, k, v, plan), written_out(q, k, v, same, 0.5))


def test_grouped_heads_as_they_lie() -> None:
    """The call that the `sdpa` backend makes, on the processor; and what it is for."""
    op = get_op("hybrid_attention")
    by_name = {b.name: b for b in op.backends}
    example = next(e for e in op.examples(CPU) if e.name == "causal")
    want, got = (run_example(by_name[name], example, torch.float64) for name in ("torch", "sdpa"))
    for key in want:
        assert relative_error(got[key], want[key]) < 1e-12, key
    call = example.call
    assert by_name["sdpa"].supports(call) is None
    windowed = AttentionPlan(150, 150, CPU, window=20)
    assert by_name["sdpa"].supports({**call, "plan": windowed}) == "it is for plain causal rows"
    ungrouped = {**call, "k": call["q"], "v": call["q"]}
    assert by_name["sdpa"].supports(ungrouped) == "without grouped heads the definition is the same call"
    with pytest.raises(BackendError, match="it runs on cuda"):
        hybrid_attention(call["q"], call["k"], call["v"], backend="sdpa")


@pytest.mark.parametrize("length", [48, 49, 63, 100])
@pytest.mark.parametrize(("prefix", "before"), [(0, 0), (5, 0), (20, 0), (5, 5), (3, 14), (2, 40)])
def test_blocks_equal_the_mask(length: int, prefix: int, before: int) -> None:
    """Rows over themselves, and rows that continue `before` cached positions."""
    slots = length + before
    plan, plain = (AttentionPlan(length, slots, CPU, 16, prefix) for _ in range(2))
    assert _worth_blocks(plan)
    inputs = [rand(2, 4, length, 8), rand(2, 2, slots, 8, seed=1), rand(2, 2, slots, 12, seed=2)]
    leaves = [[x.clone().requires_grad_() for x in inputs] for _ in range(2)]
    got = hybrid_attention(*leaves[0], plan)
    q, k, v = leaves[1]
    k2, v2 = (x.repeat_interleave(2, 1) for x in (k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k2, v2, attn_mask=plain.mask())
    torch.testing.assert_close(got, expected)
    weights = rand(*got.shape, seed=3)
    for a, b in zip(torch.autograd.grad(got, leaves[0], weights), torch.autograd.grad(expected, leaves[1], weights)):
        torch.testing.assert_close(a, b)


def test_bad_calls() -> None:
    q, k, v = rand(1, 4, 3, 8), rand(1, 2, 5, 8), rand(1, 2, 5, 8)
    cases: list[tuple[Any, str]] = [
        (lambda: hybrid_attention(q[0], k, v), r"q must be \(B, H, T, K\)"),
        (lambda: hybrid_attention(q, k, v[:, :, :4]), "they are"),
        (lambda: hybrid_attention(q[:, :3], k, v), "multiple of k's"),
        (lambda: hybrid_attention(q, k, v, AttentionPlan(3, 6, CPU)), "plan is for 3 queries and 6 keys"),
        (lambda: AttentionPlan(6, 3, CPU), "cannot be aligned"),
        (lambda: AttentionPlan(3, 5, CPU, 0), "window must be at least 1"),
        (lambda: AttentionPlan(3, 5, CPU, q_positions=torch.zeros(1, 3)), "together"),
        (lambda: AttentionPlan(3, 5, CPU, q_segments=torch.zeros(1, 3)), "together"),
        (
            lambda: AttentionPlan(3, 5, CPU, q_positions=torch.zeros(1, 3), k_positions=torch.zeros(1, 4)),
            r"k_positions must be \(1 or B, 5\)",
        ),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()
    for name in ("triton", "flex"):
        with pytest.raises(BackendError, match="cuda"):
            hybrid_attention(q, k, v, backend=name)


SCRIPT = """
import dataclasses, json, torch
torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True  # memory left unwritten becomes NaN
from hybridzoo.ops.dispatch import get_op, machine_obstacle
from hybridzoo.ops._selftest import selftest
from hybridzoo.ops.hybrid_attention import hybrid_attention, AttentionPlan, triton as launches
rows = [dataclasses.asdict(r) for r in selftest("cpu", "hybrid_attention") if r.backend == "triton"]
q, k, v = torch.randn(2, 6, 1, 16), torch.randn(2, 3, 700, 16), torch.randn(2, 3, 700, 8)
want = hybrid_attention(q, k, v, backend="torch")
errors = {}
usual = launches.TUNING
for programs in (1, 12, 20, 64):  # 1, 2, 3 and 4 pieces
    launches.TUNING = usual._replace(programs=programs)
    errors[f"programs {programs}"] = float((hybrid_attention(q, k, v, backend="triton") - want).abs().max())
strided = torch.randn(2, 700, 3, 16).transpose(1, 2)
errors["strided"] = float((hybrid_attention(q, strided[:, :, :650], v[:, :, :650], backend="triton")
    - hybrid_attention(q, strided[:, :, :650], v[:, :, :650], backend="torch")).abs().max())
launches._TILE = 32
shapes = [(40, 40, None, 0), (200, 200, 20, 5), (150, 170, 100, 130), (90, 90, 17, 200), (129, 129, 1, 0)]
for length, keys, window, prefix in [*shapes, (260, 388, 64, 128)]:  # whole rows, as a projection leaves them
    q = torch.randn(2, length, 6, 16).half().transpose(1, 2)
    k, v = torch.randn(2, 3, keys, 16).half(), torch.randn(2, 3, keys, 24).half()
    plan = AttentionPlan(length, keys, q.device, window, prefix)
    ours = hybrid_attention(q, k, v, plan, backend="triton")
    want = hybrid_attention(q.float(), k.float(), v.float(), plan, backend="torch")
    errors[str((length, keys, window, prefix))] = float((ours - want).norm() / want.norm()) / 100
print(json.dumps([rows, errors]))
"""


def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    rows, errors = json.loads(run.stdout.splitlines()[-1])
    ran = [row for row in rows if not row["detail"]]
    assert len(ran) >= 4
    assert all(row["ok"] for row in rows), rows
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_backends_on_a_gpu() -> None:
    from hybridzoo.ops._selftest import selftest

    rows = selftest("cuda", "hybrid_attention")
    assert {row.backend for row in rows if not row.detail} >= {"triton", "flex", "torch"}
    assert all(row.ok for row in rows), rows
