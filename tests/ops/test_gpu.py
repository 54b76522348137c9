"""On a CUDA device (`pytest -m gpu tests/ops`): the compiled kernels, every backend's self-test, what auto takes."""

from __future__ import annotations

import pytest
import torch

from hybridzoo.ops import dispatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LIMITS = {"bf16": 1.5e-2, "fp16": 4e-3}


KERNELS = (
    "selective_scan",
    "selective_scan_2d",
    "causal_conv1d",
    "ms_deform_attn",
    "delta_rule",
    "linear_attention",
    "long_conv",
)


@pytest.mark.parametrize("op", KERNELS)
def test_compiled_kernels_equal_the_reference(kernel_errors, op):
    wrong = {}
    for case, errors in kernel_errors(op, "cuda").items():
        limit = next((limit for suffix, limit in LIMITS.items() if case.endswith(suffix)), 2e-5)
        wrong.update({(case, key): error for key, error in errors.items() if not error <= limit})
    assert wrong == {}


def test_every_backend_passes_its_self_test():
    rows = dispatch.selftest("cuda")
    assert {row.op for row in rows} >= {*KERNELS}
    assert [row for row in rows if not row.ok] == []


def test_the_peers_convolution_gives_the_same():
    pytest.importorskip("causal_conv1d")
    ran = [r for r in dispatch.selftest("cuda", "causal_conv1d") if r.backend == "causal_conv1d" and not r.detail]
    assert len(ran) >= 2
    assert all(r.ok for r in ran)


def test_fused_attention_runs_for_plain_causal_rows():
    op = dispatch.get_op("hybrid_attention")
    example = next(e for e in op.examples(torch.device("cuda")) if e.name == "causal, bf16")
    obstacle = next(b for b in op.backends if b.name == "sdpa").supports(example.call)
    if obstacle:
        pytest.skip(obstacle)
    assert op.select(example.call).name == "sdpa"


@pytest.mark.parametrize(
    "op", ["selective_scan", "causal_conv1d", "delta_rule", "linear_attention", "long_conv", "linear"]
)
def test_auto_takes_our_kernels(op):
    assert [row.backend for row in dispatch.report("cuda") if row.op == op and row.auto] == ["triton"]
