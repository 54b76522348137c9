"""Measurements run and write valid files; no test looks at a time."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from hybridzoo.bench.models import Settings, benchmark, benchmark_all, build
from hybridzoo.bench.report import read_json, render, write_json
from hybridzoo.bench.timing import measure
from hybridzoo.cli import app
from hybridzoo.errors import ConfigError, DataError, UnknownNameError

CPU = {"device": "cpu", "seconds": 0.0, "batch_size": 2}
PEER = """
import torch
def linear():
    return torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.LazyLinear(5))
def broken():
    return torch.nn.Linear(7, 3)
"""


@pytest.fixture
def peer(tmp_path):
    path = tmp_path / "peer.py"
    path.write_text(PEER.replace("LazyLinear(5)", "Linear(3 * 16, 5)"))
    return f"python:{path}"


def test_measure_counts_calls_and_orders_percentiles():
    calls = []
    timing = measure(lambda: calls.append(1), torch.device("cpu"), warmup=2, seconds=0.0)
    assert timing.repeats == 3
    assert len(calls) == 2 + 1 + 3
    assert 0 < timing.low <= timing.median <= timing.high


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_row_has_timms_columns(mode):
    row = benchmark("iformer_test", Settings(mode=mode, dtype="fp32", image_size=64, **CPU))
    assert row["model"] == "iformer_test"
    assert row[f"{mode}_img_size"] == 64
    assert row[f"{mode}_batch_size"] == 2
    seconds = row[f"{mode}_step_time"] / 1e3
    assert row[f"{mode}_samples_per_sec"] == pytest.approx(2 / seconds, rel=0.01)
    assert row[f"{mode}_gmacs"] > 0
    assert row["param_count"] == round(sum(p.numel() for p in build("iformer_test").parameters()) / 1e6, 2)
    assert row["peak_memory_mb"] is None


def test_text_model_is_measured_by_its_example_inputs():
    row = benchmark("roberta_bilstm_test", Settings(dtype="fp32", **CPU))
    assert row["infer_samples_per_sec"] > 0
    assert row["infer_img_size"] is None


def test_a_failing_rival_is_a_row_not_the_end(peer):
    settings = [Settings(dtype="fp32", image_size=32, **CPU)]
    rows = benchmark_all([f"{peer}:broken", f"{peer}:linear"], settings, log=lambda line: None)
    assert "shapes cannot be multiplied" in rows[0]["error"]
    assert rows[1]["infer_samples_per_sec"] > 0


def test_command_writes_a_file_and_the_report_shows_it(tmp_path, peer, monkeypatch):
    out = tmp_path / "runs" / "tiny.json"
    arguments = ["bench", "models", "iformer_test", "--peer", f"{peer}:linear", "--mode", "infer", "--mode", "train"]
    arguments += ["--image-size", "32", "--batch-size", "2", "--dtype", "fp32", "--seconds", "0", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--title", "Tiny", "--out", str(out)])
    assert result.exit_code == 0, result.output
    document = read_json(out)
    assert document["kind"] == "models"
    assert set(document["versions"]) >= {"python", "torch", "timm", "transformers"}
    assert [(row["mode"], row["model"]) for row in document["rows"]] == [
        (mode, model) for mode in ("infer", "train") for model in ("iformer_test", f"{peer}:linear")
    ]
    page = tmp_path / "performance.md"
    report = ["bench", "report", "--source", str(out.parent), "--out", str(page)]
    assert CliRunner().invoke(app, report).exit_code == 0
    text = page.read_text()
    assert "## Tiny" in text
    assert "| **iformer_test** |" in text
    assert "linear (peer)" in text
    assert CliRunner().invoke(app, [*report, "--check"]).exit_code == 0
    page.write_text(text + "edited\n")
    stale = CliRunner().invoke(app, [*report, "--check"])
    assert isinstance(stale.exception, ConfigError)
    assert page.read_text().endswith("edited\n")


def test_ratio_is_to_the_first_model(tmp_path):
    base = {"mode": "infer", "param_count": 1.0, "infer_gmacs": 1.0, "infer_step_time": 1.0, "infer_batch_size": 8}
    base |= {"infer_img_size": 224, "dtype": "amp", "compile": None, "peak_memory_mb": 2048.0}
    rows = [
        base | {"model": "ours", "infer_samples_per_sec": 300.0},
        base | {"model": "b", "infer_samples_per_sec": 120.0},
    ]
    write_json(tmp_path / "x.json", "models", rows, torch.device("cpu"))
    lines = render(tmp_path).splitlines()
    assert "| b | 1.0 | 1.00 | 120 | 1.00 | 2.0 | 2.50 |" in lines
    assert "| **ours** | 1.0 | 1.00 | 300 | 1.00 | 2.0 | 1.00 |" in lines


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("iformer_smal", UnknownNameError, "iformer_small"),
        ("timm:convnext_tinyy", ConfigError, "convnext_tiny"),
        ("python:nowhere.py:f", ConfigError, "no file 'nowhere.py'"),
    ],
)
def test_unknown_models_name_the_nearest(name, error, text):
    with pytest.raises(error, match=text):
        build(name)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"mode": "inference"}, "infer"),
        ({"dtype": "bf17"}, "bf16"),
        ({"batch_size": 0}, "at least 1"),
        ({"image_size": -1}, "at least 1"),
        ({"graph": True, "device": "cpu"}, "CUDA"),
    ],
)
def test_impossible_settings(values, text):
    with pytest.raises(ConfigError, match=text):
        Settings(**values)


@pytest.mark.parametrize(
    "content", ["{", "[]", json.dumps({"schema": 99}), json.dumps({"schema": 1, "kind": "models"})]
)
def test_report_refuses_other_files(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json"):
        render(tmp_path)


def test_report_refuses_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="no measurement files"):
        render(tmp_path)


def test_command_without_models_says_what_to_do():
    result = CliRunner().invoke(app, ["bench", "models"])
    assert "name a model" in str(result.exception)
