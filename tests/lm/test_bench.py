"""The language models' benchmark: cache formulas against caches, rows, ratios, the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hybridzoo.bench.lm import benchmark, ratios
from hybridzoo.bench.lm_cache import counted
from hybridzoo.bench.lm_models import LmSettings
from hybridzoo.errors import ConfigError
from hybridzoo.loading import make_config
from hybridzoo.registry import get_model

TINY = {"context": 64, "batch_sizes": (1, 2), "train": ((2, 16),), "seconds": 0.01, "device": "cpu"}


def config_of(name: str):
    model, _ = get_model(name)
    return make_config(model.family, model.config)


def test_hymba_is_smaller_than_llama_by_the_papers_counting():
    """Table 2 of the paper: 918 MB and 79 MB at 8,000 tokens; the parts of the 79 are in the paper's own terms."""
    from transformers import LlamaConfig

    from hybridzoo.bench.lm_models import _LLAMA_3_2

    llama = LlamaConfig(
        hidden_size=3072,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        **_LLAMA_3_2,
    )
    assert counted(llama, 8000, paper=True) == 917_504_000
    kv = 5 * (64 + 128) * 2
    parts = 3 * 8000 * kv + 14 * 1024 * kv + 32 * 3200 * (16 + 4) * 2
    hymba = counted(config_of("hymba_1_5b"), 8000, paper=True)
    assert hymba == parts
    assert counted(llama, 8000, paper=True) / hymba > 11.67


@pytest.mark.parametrize("name", ["hymba_test", "deltanet_test", "hybrid_lm_test", "llama_tiny"])
def test_the_formula_counts_every_byte_of_the_cache(name: str):
    (row,) = benchmark(["cache"], [name], LmSettings(dtype=torch.bfloat16, **TINY), log=lambda _: None)
    assert row["measured_mb"] == row["full_mb"] > 0


def test_rows_and_ratios():
    lines: list[str] = []
    settings = LmSettings(dtype=torch.float32, **TINY)
    rows = benchmark(["decode", "prefill", "train"], ["hymba_test", "llama_tiny"], settings, log=lines.append)
    assert len(lines) == len(rows) == 4 + 2 + 2
    decode = [r for r in rows if r["what"] == "decode"]
    assert [r["batch"] for r in decode] == [1, 2, 1, 2]
    for row in rows:
        assert row["tokens_per_sec"] == pytest.approx(
            1e3 / row["ms"] * row["batch"] * (1 if row["what"] == "decode" else row["context"])
        )
    gains = {g["what"]: g for g in ratios(rows)}
    assert gains["decode, eager, batch 2"]["ratio"] == pytest.approx(
        decode[1]["tokens_per_sec"] / decode[3]["tokens_per_sec"]
    )
    assert "train, best of each" in gains
    assert ratios([{"what": "decode", "model": "x", "error": "out of memory"}]) == []


def test_the_command_writes_json(tmp_path: Path):
    from hybridzoo.bench.report import read_json
    from hybridzoo.cli import app

    out = tmp_path / "lm.json"
    words = ["bench", "lm", "deltanet_test", "llama_tiny", "--what", "decode", "--what", "cache"]
    words += ["--context", "32", "--batch-sizes", "1,2"]
    run = CliRunner().invoke(app, [*words, "--seconds", "0.01", "--device", "cpu", "--out", str(out)])
    assert run.exit_code == 0, run.output
    document = read_json(out)
    assert document["kind"] == "lm"
    assert {r["what"] for r in document["rows"]} >= {"decode", "cache", "decode, best of each", "cache full_mb"}
    from hybridzoo.bench.report import render

    page = render(tmp_path)
    assert "**Decoding with a full cache**" in page
    assert "| llama_tiny | eager | 2 | 32 |" in page
    assert "| decode, best of each | deltanet_test (eager, batch" in page
    assert "| deltanet_test | " in page.split("**Cache of one sequence, MB**")[1]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nonsense"], "unknown language model 'nonsense'"),
        (["iformer_test"], "unknown language model"),
        (["deltanet_test", "--what", "speed"], "unknown measurement 'speed'"),
        (["deltanet_test", "--batch-sizes", "1;2"], "--batch-sizes"),
        (["deltanet_test", "--train", "8"], "--train '8'"),
        (["deltanet_test", "--context", "1"], "context must be at least 2"),
        (["deltanet_test", "--dtype", "int8"], "unknown dtype"),
        (["deltanet_test", "--what", "scaling"], "torchrun --nproc-per-node"),
    ],
)
def test_the_command_says_what_is_wrong(words: list[str], text: str):
    from hybridzoo.cli import app

    run = CliRunner().invoke(app, ["bench", "lm", "--device", "cpu", *words])
    assert run.exit_code != 0
    assert text in str(run.exception)


def test_rows_are_saved_as_they_come_until_time_is_up():
    saved: list[int] = []
    settings = LmSettings(dtype=torch.float32, **TINY)
    rows = benchmark(["decode"], ["llama_tiny"], settings, log=lambda _: None, save=lambda r: saved.append(len(r)))
    assert saved == [1, 2]
    assert [r["batch"] for r in rows] == [1, 2]
    assert benchmark(["decode"], ["llama_tiny"], settings, log=lambda _: None, max_seconds=0.0) == []


def test_sizes_above_one_that_does_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch):
    from hybridzoo.bench import lm

    real = lm.decoding_step

    def step(model, batch, settings):
        if batch >= 4:
            raise torch.OutOfMemoryError
        return real(model, batch, settings)

    monkeypatch.setattr(lm, "decoding_step", step)
    settings = LmSettings(dtype=torch.float32, **{**TINY, "batch_sizes": (4, 8, 2)})
    rows = benchmark(["decode"], ["llama_tiny"], settings, log=lambda _: None)
    assert [(r["batch"], r.get("error")) for r in rows] == [(4, "out of memory"), (2, None)]


@pytest.mark.slow
def test_scaling_on_two_processes(tmp_path: Path):
    root, out = Path(__file__).parents[2], tmp_path / "scaling.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "-m", "hybridzoo", "bench", "lm", "deltanet_test"]
    command += ["--what", "scaling", "--train", "2x16", "--seconds", "0.01", "--device", "cpu"]
    command += ["--dtype", "float32", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    alone, together = json.loads(out.read_text())["rows"]
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert together["speedup"] == pytest.approx(together["tokens_per_sec"] / alone["tokens_per_sec"])
    assert together["tokens_per_sec"] == pytest.approx(2 * 2 * 16 / together["ms"] * 1e3)


def test_the_fla_rival_names_its_package(monkeypatch: pytest.MonkeyPatch):
    import sys

    from hybridzoo.bench.lm_models import build

    monkeypatch.setitem(sys.modules, "fla", None)
    with pytest.raises(ConfigError, match="flash-linear-attention"):
        build("fla_deltanet_1_3b", LmSettings(device="cpu", dtype=torch.float32))
