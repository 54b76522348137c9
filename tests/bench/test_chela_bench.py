"""The CHELA benchmark: rows, ratios, sentences, the page's table; on the CPU at small sizes."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from hybridzoo.bench.chela import ChelaSettings, benchmark, crossover, flatness, make_layer, ratios, render, summary
from hybridzoo.cli import app
from hybridzoo.errors import ConfigError

SMALL = ["--width", "64", "--dtype", "float32", "--device", "cpu", "--seconds", "0.01"]


@pytest.mark.parametrize("direction", ["--causal", "--no-causal"])
def test_rows_and_page(direction, tmp_path):
    out = tmp_path / "c.json"
    kinds = ["--kind", "chela", "--kind", "transformer"]
    arguments = ["bench", "chela", "--lengths", "32,64", direction, *kinds, *SMALL, "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    rows = document["rows"]
    assert [(r["mode"], r["length"], r["kind"]) for r in rows] == [
        (m, n, k) for m in ("forward", "train") for n in (32, 64) for k in ("chela", "transformer")
    ]
    assert all(r["ms"] > 0 and r["repeats"] >= 3 for r in rows)
    assert all(r["tokens_per_second"] == pytest.approx(r["length"] / r["ms"] * 1e3) for r in rows)
    page = "\n".join(render(document))
    assert "Forward and backward" in page
    assert "transformer / chela" in page


def test_a_layer_that_cannot_run_here_is_a_row_with_its_reason():
    settings = ChelaSettings((16,), ("fla", "chela"), ("forward",), 64, dtype=torch.float32, seconds=0.01, device="cpu")
    rows = list(benchmark(settings))
    assert rows[0]["error"]
    assert "error" not in rows[1]


def test_layers_differ_in_their_mixers_only():
    settings = ChelaSettings(width=64, device="cpu", dtype=torch.float32)
    layers = {kind: make_layer(kind, 32, settings) for kind in ("chela", "transformer", "fla")}
    names = {
        kind: {n: tuple(p.shape) for n, p in layer.named_parameters() if ".mixer." not in n}
        for kind, layer in layers.items()
    }
    assert names["chela"] == names["transformer"] == names["fla"]
    for kind in ("chela", "transformer"):  # causal: a later input changes nothing before it
        x = torch.randn(1, 32, 64)
        other = x.clone()
        other[:, 20:] += 1
        with torch.no_grad():
            a, b = layers[kind](x), layers[kind](other)
        torch.testing.assert_close(a[:, :20], b[:, :20], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(a[:, 20:], b[:, 20:], atol=1e-2)


def test_rows_of_a_call_can_keep_the_number_of_tokens():
    settings = ChelaSettings((16, 64), ("chela",), ("forward",), 64, None, 128, True, torch.float32, 0.01, "cpu")
    assert [row["batch"] for row in benchmark(settings)] == [8, 2]


def test_ratios_crossover_and_flatness():
    times = {("chela", 1024): 2.0, ("transformer", 1024): 1.0, ("chela", 4096): 4.0, ("transformer", 4096): 6.0}
    times |= {("chela", 16384): 20.0, ("transformer", 16384): 80.0}
    rows = [
        {"mode": "forward", "kind": k, "length": n, "batch": 1, "ms": t, "ns_per_token": t / n * 1e6}
        for (k, n), t in times.items()
    ]
    rows.append({"mode": "forward", "kind": "transformer", "length": 65536, "batch": 1, "error": "out of memory"})
    gains = ratios(rows, "forward", "transformer")
    assert gains == {1024: 0.5, 4096: 1.5, 16384: 4.0}
    assert crossover(gains) == 4096
    assert crossover({1024: 1.2, 4096: 0.9}) is None
    assert flatness(rows, "forward") == pytest.approx(1.25)
    assert "from 4096 positions on" in summary(rows)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "a"], "--lengths"),
        (["--lengths", "1"], "--lengths"),
        (["--kind", "flash"], "kind"),
        (["--mode", "training"], "mode"),
        (["--dtype", "int4"], "dtype"),
        (["--width", "0"], "--width"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    result = CliRunner().invoke(app, ["bench", "chela", *arguments])
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)
