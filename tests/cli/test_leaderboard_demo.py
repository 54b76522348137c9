"""`hybridzoo leaderboard` and `hybridzoo demo`: real models, real embedded data, files on disk."""

from __future__ import annotations

import json

import pytest
import torch

from hybridzoo import _paths, build_model
from hybridzoo.cli import demo
from hybridzoo.eval.schema import Result


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """A checkpoints/ folder that holds iformer_test, and a demo that shows it and one model that is missing."""
    torch.manual_seed(0)
    build_model("iformer_test").save_pretrained(tmp_path / "checkpoints" / "iformer_test")
    real = _paths.asset_root
    monkeypatch.setattr(_paths, "asset_root", lambda k: tmp_path / k if k == "checkpoints" else real(k))
    monkeypatch.setattr(demo, "PAIRS", (("roberta_bilstm_test", "vader"), ("iformer_test", "fashion_mnist_mini")))
    return tmp_path / "checkpoints"


def test_demo_evaluates_draws_and_ranks_and_check_agrees(cli, checkpoints, tmp_path):
    out = tmp_path / "out"
    done = cli("demo", "--out", out)
    assert "left out: roberta_bilstm_test" in done.stderr
    (file,) = (out / "results").rglob("*.json")
    result = Result.from_json(file)
    assert (result.model.name, result.task.name, result.track) == ("iformer_test", "fashion_mnist_mini", "mini")
    assert f"Top-1 {result.metrics['top1'].value:.2f}" in done.stdout
    picture = out / "pictures" / "iformer_test-fashion_mnist_mini.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (out / "index.html").resolve().as_uri() in done.stdout
    assert "iformer_test" in (out / "LEADERBOARD.md").read_text()

    options = ("--results", out / "results", "--out", out)
    assert "valid and up to date" in cli("leaderboard", "check", *options).stdout
    values = json.loads(file.read_text())
    values["metrics"]["top1"]["value"] = 99.0
    file.write_text(json.dumps(values))
    done = cli("leaderboard", "check", *options, code=1)
    assert "metric: " in done.stderr
    assert "top1 = 99.0, but the predictions give" in done.stderr
    cli("leaderboard", "build", *options)
    assert "1 problem\n" in cli("leaderboard", "check", *options, code=1).stderr


def test_demo_without_any_checkpoint_says_what_is_missing(cli, checkpoints, tmp_path):
    (checkpoints / "iformer_test" / "model.safetensors").unlink()
    done = cli("demo", "--out", tmp_path / "out", code=2)
    assert "roberta_bilstm_test, iformer_test" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_demo_shows_registered_minis_on_embedded_tasks():
    from hybridzoo import is_model
    from hybridzoo.data import data_spec
    from hybridzoo.eval.tasks import load_task

    for name, task in demo.PAIRS:
        assert is_model(name)
        assert name.endswith("_mini")
        spec = data_spec(load_task(task).data)
        assert spec.needs == ""  # ships in the package
        assert spec.track == "mini"


def test_build_and_check_of_an_empty_folder(cli, tmp_path):
    options = ("--results", tmp_path / "none", "--out", tmp_path / "board")
    assert cli("leaderboard", "check", *options, code=1).stderr.count("stale: ") == 3
    cli("leaderboard", "build", *options)
    cli("leaderboard", "check", *options)
