"""The benchmark of MambaAD: rows of ours and of a rival, operations, failures as rows, the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridzoo import build_model
from hybridzoo.bench.mambaad import MambaADSettings, benchmark, benchmark_all, render, scan_flops
from hybridzoo.errors import ConfigError

RIVAL = """
import torch
class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 3, stride=4, padding=1)
    def forward(self, images):
        y = self.layer(images)
        return [torch.ones_like(y)], [y]
def make():
    return Pair()
def fails():
    raise RuntimeError("does not build")
"""
SMALL = {"batch_size": 2, "side": 64, "seconds": 0.05, "device": "cpu"}


@pytest.fixture
def rival(tmp_path: Path) -> str:
    (tmp_path / "rival.py").write_text(RIVAL)
    return f"python:{tmp_path / 'rival.py'}"


def test_scan_operations_are_the_rule():
    sizes = json.loads((Path(__file__).parent.parent / "fixtures" / "mambaad" / "sizes.json").read_text())
    config = build_model("mambaad_resnet34", device="meta").config
    assert scan_flops(config, 256) == sizes["scan_flops_9BLDN"]
    assert scan_flops(build_model("mambaad_mini_conv", device="meta").config, 128) == 0


def test_rows_and_page(rival):
    settings = [MambaADSettings(mode=mode, **SMALL) for mode in ("infer", "train")]
    rows = benchmark_all(["mambaad_test", f"{rival}:make", f"{rival}:fails"], settings, log=lambda _: None)
    assert [r["model"].rpartition(":")[2] for r in rows] == ["mambaad_test", "make", "fails"] * 2
    assert rows[0]["gflops"] > 0
    assert rows[0]["images_per_sec"] == pytest.approx(2000 / rows[0]["step_time_ms"], rel=0.01)
    assert "does not build" in rows[2]["error"]
    page = "\n".join(render({"rows": rows}))
    assert "**Training step**, fp32, batch 2, 64 x 64" in page
    assert "| **mambaad_test** |" in page
    assert "not measured" in page


def test_what_cannot_be_measured():
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        MambaADSettings(mode="trian")
    with pytest.raises(ConfigError, match="replays a CUDA graph"):
        MambaADSettings(compile="graph", device="cpu")
    with pytest.raises(ConfigError, match="no anomaly detector"):
        benchmark("iformer_test", MambaADSettings(**SMALL))
