"""The benchmark on a tiny case: contenders agree, ratios are against the best peer, failures are not hidden."""

from __future__ import annotations

import pytest
import torch

from hybridzoo.errors import UnknownNameError
from hybridzoo.ops import _benchmark as bench
from hybridzoo.ops import _benchmark_attention, _benchmark_case, _benchmark_delta, _benchmark_long, _benchmark_scan_2d


def test_rows_hold_times_differences_and_ratios():
    build, floor = bench._scan(1, 9, 4, 2, 1, torch.float32, False, "cpu")
    assert floor is None
    rows = bench.run_case(bench.Case("selective_scan", "tiny", "cpu", build, floor), seconds=0.0)
    assert [row["peer"] for row in rows] == [False, True]
    assert all(row["difference"] < 1e-6 for row in rows)
    ours, peer = rows
    assert ours["fwd_x_best_peer"] == peer["fwd_ms"] / ours["fwd_ms"]
    assert ours["fwd_bwd_x_best_peer"] == peer["fwd_bwd_ms"] / ours["fwd_bwd_ms"]
    alone = bench.run_case(bench.Case("selective_scan", "tiny", "cpu", build, floor), seconds=0.0, peers=False)
    assert [row["backend"] for row in alone] == ["hybridzoo torch"]
    assert "fwd_x_best_peer" not in alone[0]


@pytest.mark.parametrize("padding", ["causal", "same"])
def test_convolution_contenders_agree(padding):
    build, _ = bench._conv(2, 9, 8, 3, padding, True, torch.float32, "cpu")
    rows = bench.run_case(bench.Case("causal_conv1d", "tiny", "cpu", build, None), seconds=0.0)
    assert [row["backend"] for row in rows] == ["hybridzoo torch", "F.conv1d"]
    assert all(row["difference"] < 1e-6 for row in rows)


def test_deformable_attention_contenders_agree():
    build, _ = bench._deform([(3, 5), (2, 2)], None, torch.float32, "cpu")
    rows = bench.run_case(bench.Case("ms_deform_attn", "tiny", "cpu", build, None), seconds=0.0)
    assert [row["backend"] for row in rows] == ["hybridzoo torch", "grid_sample"]
    assert all(row["difference"] < 1e-6 for row in rows)


def test_every_gpu_case_is_described():
    found = bench.cases("cuda")
    assert {c.op for c in found} == {
        "selective_scan",
        "causal_conv1d",
        "ms_deform_attn",
        "delta_rule",
        "selective_scan_2d",
        "linear_attention",
        "long_conv",
        "hybrid_attention",
    }
    assert all(c.floor_ms > 0 for c in found)


def test_unknown_op_is_an_error():
    with pytest.raises(UnknownNameError, match="did you mean 'selective_scan'"):
        bench.benchmark("cpu", "selectiv_scan")


def test_delta_rule_contenders_agree():
    build = _benchmark_delta._build(2, 9, 2, 4, torch.float32, "cpu")
    rows = bench.run_case(bench.Case("delta_rule", "tiny", "cpu", build, None), seconds=0.0)
    assert [row["backend"] for row in rows] == ["hybridzoo torch", "loop over positions"]
    assert all(row["difference"] < 1e-6 for row in rows)


def test_scans_along_paths_contenders_agree():
    build = _benchmark_scan_2d.build(2, 4, 6, 2, 8, "cpu")
    rows = bench.run_case(bench.Case("selective_scan_2d", "tiny", "cpu", build, None), seconds=0.0)
    assert [row["backend"] for row in rows] == ["hybridzoo torch", "copies + our selective_scan"]
    assert all(row["difference"] < 1e-6 for row in rows)


@pytest.mark.parametrize("normalize", [False, True])
def test_linear_attention_contenders_agree(normalize):
    build = _benchmark_long._attention(1, 256, 2, 8, 8, normalize, "cpu")
    rows = bench.run_case(bench.Case("linear_attention", "tiny", "cpu", build, None), seconds=0.0)
    assert [row["backend"] for row in rows] == ["hybridzoo torch", "chunks in torch"]
    assert all(row["difference"] < 2e-2 for row in rows)  # the inputs have 16 bits


def test_long_convolution_contenders_agree():
    rows = bench.run_case(
        bench.Case("long_conv", "tiny", "cpu", _benchmark_long._conv(2, 3, 50, "cpu"), None), seconds=0.0
    )
    assert [row["backend"] for row in rows] == ["hybridzoo torch", "torch.fft"]
    assert all(row["difference"] < 1e-2 for row in rows)


@pytest.mark.parametrize(("queries", "window", "prefix"), [(40, 8, 3), (40, None, 0), (1, None, 0)])
def test_hybrid_attention_contenders_agree(queries, window, prefix):
    build = _benchmark_attention._build(2, (4, 2), queries, 40, window, prefix, "cpu", queries > 1, (8, 12))
    case = bench.Case("hybrid_attention", "tiny", "cpu", build, None, backward=queries > 1)
    rows = bench.run_case(case, seconds=0.0)
    assert [row["backend"] for row in rows] == ["hybridzoo torch", "SDPA"]
    assert all(row["difference"] < 1e-6 for row in rows)
    assert all(("fwd_bwd_ms" in row) == (queries > 1) for row in rows)


def test_a_table_on_a_gpu_holds_our_kernels_only(monkeypatch):
    """Other packages' kernels behind our function are no contenders: they cannot run every case."""
    monkeypatch.setattr(_benchmark_case, "machine_obstacle", lambda symbol: None)
    names = [c.name for c in _benchmark_case.ours("causal_conv1d", lambda name: torch.zeros(1), [], "cuda")]
    assert names == ["hybridzoo triton"]
