"""`hybridzoo convert`: original layout to a folder and back, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridzoo import build_model, load_original
from hybridzoo.errors import CheckpointError, ConfigError, UnknownNameError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "iformer"
OPTIONS = ("--model", "iformer", "--config")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A small checkpoint that the authors' code made: its model, its file, and its configuration as JSON."""
    folder = tmp_path_factory.mktemp("original")
    facts = json.loads((FIXTURES / "tiny.json").read_text())
    tensors = load_file(FIXTURES / "tiny.safetensors")
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    save_file(state, folder / "original.safetensors")
    (folder / "config.json").write_text(json.dumps(facts["config"]))
    return load_original("iformer", state, facts["config"]), folder / "original.safetensors", folder / "config.json"


def same(a, b) -> bool:
    inputs = a.example_inputs(2)
    with torch.no_grad():
        return torch.equal(a(**inputs).logits, b.eval()(**inputs).logits)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_there_and_back(cli, original, tmp_path, suffix):
    model, path, config = original
    text = cli("convert", path, tmp_path / "folder", *OPTIONS, config).stdout
    assert f"{sum(v.numel() for v in model.state_dict().values()):,} parameters" in text
    assert same(model, build_model(tmp_path / "folder"))
    back = tmp_path / f"back{suffix}"
    cli("convert", tmp_path / "folder", back, "--to-original")
    state = load_file(back) if suffix == ".safetensors" else torch.load(back, weights_only=True)
    expected = load_file(path)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], expected[k]) for k in expected)


def test_an_existing_target_is_kept_unless_overwrite_is_given(cli, original, tmp_path):
    _, path, config = original
    target = tmp_path / "folder"
    target.mkdir()
    (target / "mine.txt").write_text("keep me")
    with pytest.raises(CheckpointError, match="--overwrite"):
        cli("convert", path, target, *OPTIONS, config, code=2)
    assert (target / "mine.txt").read_text() == "keep me"
    cli("convert", path, target, *OPTIONS, config, "--overwrite")
    assert not (target / "mine.txt").exists()
    assert (target / "config.json").is_file()


def test_a_checkpoint_that_does_not_fit_leaves_nothing_behind(cli, original, tmp_path):
    _, path, config = original
    state = load_file(path)
    name = next(iter(state))
    state["no.such.key"] = state.pop(name)
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=r"no\.such\.key"):
        cli("convert", tmp_path / "bad.safetensors", tmp_path / "folder", *OPTIONS, config, code=2)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (["{path}", "{out}"], CheckpointError, "--model"),
        (["{path}", "{out}", "--model", "iformer_tst"], UnknownNameError, "iformer_test"),
        (["no_such.pth", "{out}", "--model", "iformer_test"], CheckpointError, "no weights file"),
        (["{path}", "{out}", "--model", "iformer_test", "--config", "{list}"], ConfigError, "expected an object"),
        (["{path}", "{out}", "--model", "iformer_test", "--config", "no.json"], ConfigError, "no.json"),
        (["{folder}", "{out}.txt", "--to-original"], CheckpointError, ".safetensors"),
        (["{folder}", "{out}.pth", "--to-original", "--model", "roberta_bilstm"], CheckpointError, "iformer"),
    ],
)
def test_wrong_calls_are_explained(cli, original, tmp_path, arguments, error, text):
    model, path, _ = original
    model.save_pretrained(tmp_path / "folder")
    (tmp_path / "list.json").write_text(json.dumps([1]))
    words = {"path": path, "out": tmp_path / "out", "folder": tmp_path / "folder", "list": tmp_path / "list.json"}
    with pytest.raises(error, match=text.replace(".", r"\.")):
        cli("convert", *(a.format(**words) for a in arguments), code=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "list.json"]
