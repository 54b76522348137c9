"""Bad names, configurations, checkpoints and inputs of models."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_case import Case, Work
from safetensors.torch import load_file, save_file

from hybridzoo import build_model, list_models, load_original, model_info
from hybridzoo.errors import CheckpointError, ConfigError, InputError, SourceError, UnknownNameError
from hybridzoo.loading import build_from_backbone

IMAGE, TEXT = "iformer_test", "roberta_bilstm_test"
build = build_model


def forward(name: str, **inputs: Any) -> Any:
    """A forward of a `_test` model with its example inputs, some of them replaced."""
    model = build_model(name).eval()
    example = model.example_inputs(2, labels="labels" in inputs)
    return model(**{**example, **inputs})


def overwritten(work: Work, content: bytes | None = None, keep: int | None = None) -> Path:
    """A saved model whose weights file holds something else, or only its beginning."""
    folder = work.saved()
    weights = folder / "model.safetensors"
    weights.write_bytes(content if content is not None else weights.read_bytes()[:keep])
    return folder


def edited(work: Work, **changes: Any) -> Path:
    """A saved model with keys of config.json changed."""
    folder = work.saved()
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def without_key(work: Work) -> Path:
    folder = work.saved()
    state = load_file(folder / "model.safetensors")
    state["iformer.head.wieght"] = state.pop("iformer.head.weight")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "SHA256SUMS").unlink()
    return folder


def emptied(work: Work, name: str) -> Path:
    folder = work.saved()
    (folder / name).unlink()
    return folder


def without_shard(work: Work) -> Path:
    folder = work.saved(max_shard_size="100KB")
    (folder / sorted(folder.glob("model-*"))[0].name).unlink()
    return folder


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


NAMES = [
    Case(
        "model name", UnknownNameError, ("iformer_smal", "did you mean 'iformer_small"), lambda w: build("iformer_smal")
    ),
    Case("nothing near", UnknownNameError, ("zzzz", "hybridzoo list"), lambda w: build("zzzz")),
    Case("empty name", UnknownNameError, ("empty", "hybridzoo list"), lambda w: build("")),
    Case("upper case", UnknownNameError, ("IFormer_Small", "'iformer_small'"), lambda w: build("IFormer_Small")),
    Case("tag", UnknownNameError, ("sail_in21k", "sail_in1k"), lambda w: build("iformer_small.sail_in21k")),
    Case("no weights", UnknownNameError, (IMAGE, "no published weights"), lambda w: build(IMAGE, pretrained=True)),
    Case(
        "info",
        UnknownNameError,
        ("roberta_bilstm_bas", "roberta_bilstm_base"),
        lambda w: model_info("roberta_bilstm_bas"),
    ),
    Case("task", UnknownNameError, ("image-clas", "image-classification"), lambda w: list_models(task="image-clas")),
    Case("family", UnknownNameError, ("iformr", "iformer"), lambda w: list_models(family="iformr")),
    Case("original", UnknownNameError, ("iformr", "did you mean 'iformer"), lambda w: load_original("iformr", {})),
    Case("folder", CheckpointError, ("nowhere", "save_pretrained"), lambda w: build(w.path / "nowhere")),
    Case("Windows folder", CheckpointError, (r"C:\\\\?x", "no model folder"), lambda w: build("C:\\x")),
    Case(
        "file of no model",
        CheckpointError,
        (r"w\.pth", "no weights file"),
        lambda w: build(w.path / "w.pth", name=IMAGE),
    ),
    Case("hub, offline", SourceError, ("org/name", "HF_HUB_OFFLINE"), lambda w: build("org/name")),
    Case("hub id", SourceError, ("a/b/c", "org/name"), lambda w: build("hf-hub:a/b/c")),
    Case("backbone", ConfigError, (IMAGE, "no exchangeable backbone"), lambda w: build_from_backbone(IMAGE, "x/y")),
    Case(
        "no backbone", CheckpointError, ("nowhere", "folder"), lambda w: build_from_backbone(TEXT, w.path / "nowhere")
    ),
    Case("backbone, offline", SourceError, ("org/name", "OFFLINE"), lambda w: build_from_backbone(TEXT, "org/name")),
]

CONFIGS = [
    Case("image key", ConfigError, ("drop_path", "did you mean 'drop_path"), lambda w: build(IMAGE, drop_pathrate=0.1)),
    Case("text key", ConfigError, ("lstm_hidden", "lstm_hidden_size"), lambda w: build(TEXT, lstm_hidden=3)),
    Case("type", ConfigError, ("image_size", "expected int, got str"), lambda w: build(IMAGE, image_size="224")),
    Case("inner type", ConfigError, ("depths", "int"), lambda w: build(IMAGE, depths=["one", 1, 1, 1])),
    Case("number of stages", ConfigError, (r"depths=\[1, 1\]", "4 positive"), lambda w: build(IMAGE, depths=[1, 1])),
    Case("labels", ConfigError, ("num_labels=0", "at least 1"), lambda w: build(IMAGE, num_labels=0)),
    Case("label type", ConfigError, ("num_labels='3'", "int"), lambda w: build(TEXT, num_labels="3")),
    Case(
        "label names", ConfigError, ("num_labels=3", "id2label"), lambda w: build(TEXT, num_labels=3, id2label={0: "a"})
    ),
    Case("pooling", ConfigError, ("pooling", "mean"), lambda w: build(TEXT, pooling="meen")),
    Case("cell", ConfigError, ("cell", "lstm"), lambda w: build(TEXT, cell="rnn")),
    Case("dropout", ConfigError, (r"head_dropout=1\.5", "below 1"), lambda w: build(TEXT, head_dropout=1.5)),
    Case("temperature", ConfigError, (r"temperature=0\.0", "positive"), lambda w: build(TEXT, temperature=0.0)),
    Case("max_length", ConfigError, ("max_length=0", "at least 1"), lambda w: build(TEXT, max_length=0)),
    Case("encoder key", ConfigError, ("hidden_sise", "hidden_size"), lambda w: build(TEXT, encoder={"hidden_sise": 8})),
    Case("dtype", ConfigError, ("float31", "float32"), lambda w: build(IMAGE, dtype="float31")),
    Case("device", ConfigError, ("'gpu'", "'cuda'"), lambda w: build(IMAGE, device="gpu")),
    Case("problem", ConfigError, ("problem_type", "regression"), lambda w: build(IMAGE, problem_type="regresion")),
    Case("kernel", ConfigError, ("evil/kernel", "set_attn"), lambda w: build(TEXT, attn_implementation="evil/kernel")),
    Case("stored key", ConfigError, (r"config\.json", "depht"), lambda w: build(edited(w, depht=[1]))),
    Case("stored value", ConfigError, (r"config\.json", "image_size"), lambda w: build(edited(w, image_size="big"))),
    Case(
        "stored encoder",
        ConfigError,
        ("no_such", "encoder.model_type"),
        lambda w: build(TEXT, encoder={"model_type": "no_such"}),
    ),
]

CHECKPOINTS = [
    Case("empty file", CheckpointError, ("saved", "damaged"), lambda w: build(overwritten(w, b""))),
    Case("truncated", CheckpointError, ("saved", "fetch it again"), lambda w: build(overwritten(w, keep=-100))),
    Case("cut in the header", CheckpointError, ("saved", "damaged"), lambda w: build(overwritten(w, keep=20))),
    Case("text", CheckpointError, ("saved", "damaged"), lambda w: build(overwritten(w, b"<html>404</html>" * 50))),
    Case(
        "missing key", CheckpointError, ("head.weight", "head.wieght", "strict=False"), lambda w: build(without_key(w))
    ),
    Case("other size", CheckpointError, ("mis-shaped", "iformer"), lambda w: build(w.saved(), depths=[1, 1, 1, 2])),
    Case(
        "no weights",
        CheckpointError,
        ("saved", r"model\.safetensors"),
        lambda w: build(emptied(w, "model.safetensors")),
    ),
    Case("no config", CheckpointError, ("saved", r"no config\.json"), lambda w: build(emptied(w, "config.json"))),
    Case("no shard", CheckpointError, ("saved", "model-00001"), lambda w: build(without_shard(w))),
    Case("empty folder", CheckpointError, ("empty", "save_pretrained"), lambda w: build(w.path)),
    Case("foreign type", CheckpointError, ("'bert'", "AutoModel"), lambda w: build(edited(w, model_type="bert"))),
    Case("no type", CheckpointError, ("None", "iformer"), lambda w: build(edited(w, model_type=None))),
    Case("half a config", CheckpointError, ("JSON", "damaged"), lambda w: build(w.file("m/config.json", "{").parent)),
    Case("no name", CheckpointError, ("w.pt", "name="), lambda w: build(w.file("w.pt", b"x"))),
    Case(
        "no torch file", CheckpointError, ("w.pt", "torch file"), lambda w: build(w.file("w.pt", b"x" * 99), name=IMAGE)
    ),
    Case("empty torch file", CheckpointError, ("w.pt", "damaged"), lambda w: build(w.file("w.pt"), name=IMAGE)),
    Case(
        "foreign keys",
        CheckpointError,
        ("a.weight", "iformer"),
        lambda w: load_original(IMAGE, {"a.weight": torch.ones(1)}),
    ),
    Case("no tensors", CheckpointError, ("epoch", "key -> tensor"), lambda w: load_original(IMAGE, {"epoch": 3})),  # type: ignore[dict-item]
    Case("a list", CheckpointError, ("list", "state dict"), lambda w: load_original(IMAGE, [1])),  # type: ignore[arg-type]
    Case("a config list", ConfigError, ("list", "dictionary"), lambda w: load_original(IMAGE, {}, [1])),  # type: ignore[arg-type]
    Case(
        "save over a file", CheckpointError, ("x.txt", "folder"), lambda w: w.model().save_pretrained(w.file("x.txt"))
    ),
    Case(
        "tag of an original", UnknownNameError, ("sail", "sail_in1k"), lambda w: load_original("iformer_small.sail", {})
    ),
]

INPUTS = [
    Case(
        "3 dimensions",
        InputError,
        (r"3, 32, 32|\(3", "B|batch"),
        lambda w: forward(IMAGE, pixel_values=torch.ones(3, 32, 32)),
    ),
    Case("channels", InputError, ("2", "3"), lambda w: forward(IMAGE, pixel_values=torch.ones(1, 2, 32, 32))),
    Case("NHWC", InputError, ("32", "C|channel"), lambda w: forward(IMAGE, pixel_values=torch.ones(1, 32, 32, 3))),
    Case(
        "bytes", InputError, ("uint8", "float"), lambda w: forward(IMAGE, pixel_values=torch.ones(1, 3, 32, 32).byte())
    ),
    Case("one pixel", InputError, ("1", "small|least"), lambda w: forward(IMAGE, pixel_values=torch.ones(1, 3, 1, 1))),
    Case("array", InputError, ("list", r"batch, 3, height"), lambda w: forward(IMAGE, pixel_values=[[1.0]])),
    Case("image labels", InputError, ("99", "0 to 9"), lambda w: forward(IMAGE, labels=torch.tensor([0, 99]))),
    Case("negative label", InputError, ("-1", "0 to 9"), lambda w: forward(IMAGE, labels=torch.tensor([0, -1]))),
    Case("label shape", InputError, (r"\(3,\)", r"\(2,\)"), lambda w: forward(IMAGE, labels=torch.tensor([0, 1, 1]))),
    Case("ids of floats", InputError, ("float32", "tokenizer"), lambda w: forward(TEXT, input_ids=torch.ones(2, 64))),
    Case("flat ids", InputError, (r"\(64,\)", "batch"), lambda w: forward(TEXT, input_ids=torch.ones(64).long())),
    Case(
        "ids outside",
        InputError,
        ("99999", "vocabulary"),
        lambda w: forward(TEXT, input_ids=torch.full((2, 64), 99999)),
    ),
    Case("negative ids", InputError, ("-5", "vocabulary"), lambda w: forward(TEXT, input_ids=torch.full((2, 64), -5))),
    Case("mask", InputError, (r"\(2, 9\)", r"\(2, 64\)"), lambda w: forward(TEXT, attention_mask=torch.ones(2, 9))),
    Case(
        "no tokens",
        InputError,
        (r"2, 0", "special tokens"),
        lambda w: forward(TEXT, input_ids=torch.ones(2, 0).long(), attention_mask=None),
    ),
    Case(
        "too many",
        InputError,
        ("4000", "truncation"),
        lambda w: forward(TEXT, input_ids=torch.ones(2, 4000).long(), attention_mask=None),
    ),
    Case("text labels", InputError, ("7", "num_labels=2"), lambda w: forward(TEXT, labels=torch.tensor([0, 7]))),
    Case("float labels", InputError, ("float32", "class ids|floats"), lambda w: forward(TEXT, labels=torch.ones(2))),
    Case("nothing", InputError, ("input_ids", "inputs_embeds"), lambda w: w.model(TEXT)()),
]


@pytest.mark.parametrize("case", NAMES + CONFIGS + CHECKPOINTS + INPUTS, ids=lambda case: case.name)
def test_fault(case: Case, work: Work) -> None:
    case.check(work)


@pytest.mark.parametrize("form", ["pickle", "torch", "folder", "original"])
def test_a_malicious_pickle_does_not_run(form: str, work: Work) -> None:
    """The payload would make a file; it works where pickle is allowed to run it."""
    ran, content = work.path / "ran", {"state_dict": {"a": torch.zeros(1)}, "x": Evil(work.path / "ran")}
    if form == "folder":
        target = work.saved()
        (target / "model.safetensors").unlink()
        torch.save(content, target / "pytorch_model.bin")
    elif form == "pickle":
        target = work.file("w.pth", pickle.dumps(content))
    else:
        target = work.path / "w.pth"
        torch.save(content, target)
    with pytest.raises(CheckpointError, match="could run code"):
        load_original(IMAGE, target) if form == "original" else build(target, name=None if form == "folder" else IMAGE)
    assert not ran.exists()
    pickle.loads(pickle.dumps(content["x"]))
    assert ran.exists()
