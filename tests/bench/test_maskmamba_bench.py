"""The MaskMamba benchmark: rows, ratios, the page's table; on the CPU with the test model."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from hybridzoo.bench.maskmamba import MaskMambaSettings, benchmark, crossover, ratios, render
from hybridzoo.cli import app
from hybridzoo.errors import ConfigError


def test_rows_and_page(tmp_path):
    out = tmp_path / "m.json"
    arguments = [
        "bench",
        "maskmamba",
        "maskmamba_test",
        "--sizes",
        "4,10",
        "--generation-sizes",
        "4",
        "--steps",
        "2",
        "--profile",
        "4",
    ]
    result = CliRunner().invoke(
        app, [*arguments, "--seconds", "0.01", "--dtype", "float32", "--device", "cpu", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    layers = [r for r in document["rows"] if r["what"] == "layer"]
    assert [(r["kind"], r["tokens"]) for r in layers] == [
        (k, n) for n in (5, 26) for k in ("bi_mamba_v2", "flash", "naive")
    ]
    assert all(r["ms"] > 0 and r["repeats"] >= 1 for r in document["rows"])
    assert all(r["repeats"] >= 3 and r["how"] == "eager" for r in document["rows"])
    assert {r["kind"] for r in document["rows"] if r["what"] == "generation"} == {"serial_v2", "pure_transformer"}
    page = "\n".join(render(document))
    assert "| 10 px |" in page
    assert "2 steps with guidance" in page
    assert "median of" in page
    assert "aten::" in result.output  # the profile


def test_ratios_and_crossover():
    times = {("bi_mamba_v2", 256): 2.0, ("flash", 256): 1.0, ("bi_mamba_v2", 512): 2.0, ("flash", 512): 3.0}
    rows = [{"what": "layer", "kind": k, "how": "eager", "size": s, "ms": t} for (k, s), t in times.items()]
    rows += [{**r, "how": "graph", "ms": 1.0} for r in rows]
    rows.append({"what": "layer", "kind": "flash", "size": 1024, "error": "out of memory"})
    gains = ratios(rows, "layer", "bi_mamba_v2", "flash")
    assert gains == {256: 0.5, 512: 1.5}
    assert ratios(rows, "layer", "bi_mamba_v2", "flash", "graph") == {256: 1.0, 512: 1.0}
    assert crossover(gains) == 512
    assert crossover({256: 1.2, 512: 0.9}) is None


def test_a_size_that_does_not_run_is_a_row_with_its_reason(monkeypatch):
    from hybridzoo.models.maskmamba import mixers

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(mixers, "scan", fail)
    settings = MaskMambaSettings("maskmamba_test", (10,), 1, (), dtype=torch.float32, seconds=0.01, device="cpu")
    rows = list(benchmark(settings))
    assert rows[0]["error"] == "too large"
    assert "error" not in rows[1]


def test_graphs_need_a_gpu():
    with pytest.raises(ConfigError, match="CUDA"):
        MaskMambaSettings(device="cpu", how=("graph",))
    with pytest.raises(ConfigError, match="eager"):
        MaskMambaSettings(how=("eagre",))


@pytest.mark.parametrize("sizes", ["a", "0,3"])
def test_bad_sizes_are_named(sizes):
    result = CliRunner().invoke(app, ["bench", "maskmamba", "maskmamba_test", "--sizes", sizes])
    assert "--sizes" in str(result.exception)
