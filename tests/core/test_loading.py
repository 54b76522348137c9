"""build_model, load_original and build_from_backbone on every kind of source; dtypes, devices, heads, safety."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridzoo import build_model, load_original
from hybridzoo.checksums import SUMS
from hybridzoo.errors import CheckpointError, ConfigError, HybridzooError, SourceError, UnknownNameError
from hybridzoo.loading import build_from_backbone

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def model() -> Any:
    return build_model("toy_test").eval()


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_random_models_are_in_train_mode_and_loaded_ones_in_eval_mode(folder: Path) -> None:
    assert build_model("toy_test").training
    assert not build_model(folder).training
    assert not build_model(folder / "model.safetensors").training


def test_ways_to_name_a_folder(model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    for source in (folder, str(folder), f"local-dir:{folder}", "./saved", "saved", "saved/", "~/saved", Path("saved")):
        assert same(model, build_model(source)), source


def test_a_registered_name_wins_over_a_folder_of_that_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    folder.rename(folder.parent / "toy_test")
    assert build_model("toy_test").training
    assert not build_model("./toy_test").training


@pytest.mark.parametrize(
    "text",
    ["./nowhere", "../nowhere", "/nowhere/at/all", "a/b/c", r"C:\models\toy", r"..\toy", "~/nowhere", "local-dir:x"],
)
def test_missing_folders_are_not_taken_for_hub_ids(text: str) -> None:
    with pytest.raises(CheckpointError, match="no model folder"):
        build_model(text)


@pytest.mark.parametrize("text", ["org/name", "hf-hub:org/name", "org/name@v1.0", "hf-hub:org/name@feature/x"])
def test_hub_ids_offline_say_so(text: str) -> None:
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE=1"):
        build_model(text)


def test_two_revisions_are_refused() -> None:
    with pytest.raises(ConfigError, match="two revisions"):
        build_model("hf-hub:org/name@a", revision="b")


@pytest.mark.parametrize("layout", ["own", "original"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema", "module.", "module._orig_mod."])
def test_single_torch_files(model: Any, layout: str, wrapper: str | None, tmp_path: Path) -> None:
    state: Any = dict(model.state_dict() if layout == "own" else model.to_original())
    if wrapper and wrapper.endswith("."):
        state = {"epoch": 3, "state_dict": {f"{wrapper}{k}": v for k, v in state.items()}}
    elif wrapper is not None:
        state = {"epoch": 3, wrapper: state}
    torch.save(state, tmp_path / "weights.pth")
    assert same(model, build_model(tmp_path / "weights.pth", name="toy_test"))
    assert same(model, build_model(str(tmp_path / "weights.pth"), name="toy_test"))


def test_single_safetensors_files(model: Any, folder: Path, tmp_path: Path) -> None:
    assert same(model, build_model(folder / "model.safetensors"))  # by the config.json beside it
    save_file(model.to_original(), tmp_path / "original.safetensors")
    assert same(model, build_model(tmp_path / "original.safetensors", name="toy_test"))
    with pytest.raises(CheckpointError, match="say which model"):
        build_model(tmp_path / "original.safetensors")
    with pytest.raises(UnknownNameError, match="toy_test"):
        build_model(tmp_path / "original.safetensors", name="toy_tests")


def test_single_file_of_another_size(model: Any, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="mis-shaped"):
        build_model(folder / "model.safetensors", name="toy_wide")


def test_new_head_for_a_single_file(model: Any, folder: Path) -> None:
    again = build_model(folder / "model.safetensors", name="toy_test", num_labels=5)
    assert again.classifier.out_features == 5
    assert torch.equal(again.stem.weight, model.stem.weight)


def test_new_head_by_names(model: Any, folder: Path) -> None:
    again = build_model(folder, id2label={0: "a", 1: "b", 2: "c"})
    assert again.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert again.classifier.out_features == 3
    kept = build_model(folder, id2label={0: "no", 1: "yes"})  # as many as before: the head stays
    assert same(model, kept)
    assert kept.config.id2label == {0: "no", 1: "yes"}


def test_only_the_head_may_differ_in_shape(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mis-shaped.*blocks"):
        build_model(folder, num_labels=5, widths=(8, 16))


def test_from_pretrained_of_the_class(model: Any, folder: Path) -> None:
    cls = type(model)
    assert same(model, cls.from_pretrained(folder))
    assert cls.from_pretrained(folder, num_labels=4).classifier.out_features == 4
    with pytest.raises(ConfigError, match="dropout"):
        cls.from_pretrained(folder, dropout="much")
    again, info = cls.from_pretrained(folder, output_loading_info=True)
    assert same(model, again)
    assert not info["missing_keys"]


def edit(folder: Path, **changes: Any) -> None:
    state = load_file(folder / "model.safetensors")
    for key, value in changes.items():
        key = key.replace("__", ".")
        state.pop(key) if value is None else state.__setitem__(key, value)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / SUMS).unlink(missing_ok=True)


def test_strict_names_every_kind_of_disagreement(model: Any, folder: Path) -> None:
    edit(folder, stem__bias=None, extra__thing=torch.ones(1), blocks__0__linear__weight=torch.ones(3, 3))
    for load in (lambda **k: build_model(folder, **k), lambda **k: type(model).from_pretrained(folder, **k)):
        with pytest.raises(CheckpointError) as caught:
            load()
        text = str(caught.value)
        assert "1 missing: stem.bias" in text
        assert "1 unexpected: extra.thing" in text
        assert "1 mis-shaped: blocks.0.linear.weight (file (3, 3), model (8, 8))" in text
        assert "strict=False" in text
        assert torch.equal(load(strict=False).stem.weight, model.stem.weight)


def test_shards(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert same(model, build_model(tmp_path))
    assert same(model, build_model(tmp_path / "model.safetensors.index.json"))
    shards[0].unlink()
    with pytest.raises(CheckpointError, match=shards[0].name):
        build_model(tmp_path)


def test_shard_index_may_not_leave_its_folder(model: Any, tmp_path: Path) -> None:
    from hybridzoo.checkpoint_io import read_state_dict

    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        read_state_dict(index)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_safetensors(folder: Path, keep: int) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:keep])
    for load in (lambda: build_model(folder), lambda: build_model(folder / "model.safetensors")):
        with pytest.raises(CheckpointError, match="damaged"):
            load()


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.bin", "weights.ckpt"])
@pytest.mark.parametrize("raw", [True, False], ids=["pickle", "torch"])
def test_a_malicious_pickle_does_not_run(name: str, raw: bool, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    content = {"state_dict": {"stem.weight": torch.zeros(1)}, "evil": Payload(ran)}
    if raw:
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    for load in (lambda: build_model(tmp_path / name, name="toy_test"), lambda: load_original("toy", tmp_path / name)):
        with pytest.raises(CheckpointError, match="could run code"):
            load()
    assert not ran.exists()
    torch.load(tmp_path / name, weights_only=False) if not raw else pickle.loads(content_bytes(tmp_path / name))
    assert ran.exists()  # the payload works where it is allowed to


def content_bytes(path: Path) -> bytes:
    return path.read_bytes()


def test_a_malicious_pickle_in_a_model_folder_does_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"stem.weight": Payload(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="could run code"):
        build_model(folder)
    assert not (tmp_path / "ran").exists()


def test_harmless_torch_weights_in_a_model_folder_load(model: Any, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert same(model, build_model(folder))


@pytest.mark.parametrize("dtype", ["bfloat16", "bf16", "torch.bfloat16", torch.bfloat16])
def test_dtype(folder: Path, dtype: Any) -> None:
    for source, extra in ((folder, {}), ("toy_test", {}), (folder / "model.safetensors", {"name": "toy_test"})):
        assert build_model(source, dtype=dtype, **extra).dtype == torch.bfloat16


def test_dtype_is_float32_unless_auto(model: Any, tmp_path: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "model.safetensors"):
        assert build_model(source).dtype == torch.float32
        assert build_model(source, dtype="auto").dtype == torch.bfloat16
    assert build_model("toy_test", dtype="auto").dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float31", "int8", "nonsense", ""])
def test_wrong_dtype(dtype: str) -> None:
    with pytest.raises(ConfigError, match="unknown dtype"):
        build_model("toy_test", dtype=dtype)


def test_devices(folder: Path) -> None:
    for source in ("toy_test", folder):
        assert build_model(source, device="meta").device.type == "meta"
        assert build_model(source, device="cpu").device.type == "cpu"
        with pytest.raises(ConfigError, match="is not a device"):
            build_model(source, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            build_model("toy_test", device="cuda")


def test_device_map(model: Any, folder: Path) -> None:
    assert same(model, build_model(folder, device_map={"": "cpu"}))
    devices = {"stem": "cpu", "blocks": "meta", "classifier": "cpu"}
    assert build_model(folder, device_map=devices).blocks[0].linear.weight.device.type == "meta"
    with pytest.raises(ConfigError, match="device_map"):
        build_model("toy_test", device_map="auto")
    with pytest.raises(ConfigError, match="exclude each other"):
        build_model(folder, device="cpu", device_map="auto")


def test_loaded_tensors_are_aligned(folder: Path) -> None:
    assert all(p.data_ptr() % 64 == 0 for p in build_model(folder).parameters())


def test_tied_weights(tmp_path: Path) -> None:
    model = build_model("toy_test", tie_blocks=True)
    assert model.blocks[0].linear.weight is model.blocks[1].linear.weight
    model.save_pretrained(tmp_path)
    assert "blocks.1.linear.weight" not in load_file(tmp_path / "model.safetensors")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        again = build_model(source)
        assert again.blocks[0].linear.weight is again.blocks[1].linear.weight
        assert same(model, again)


def test_load_original(model: Any, tmp_path: Path) -> None:
    original = model.to_original()
    assert same(model, load_original("toy", original, {"dims": [8, 8], "classes": 2}))
    assert same(model, load_original("toy", original))  # sizes read from the shapes
    assert same(model, load_original("toy_test", original))
    torch.save({"model": original}, tmp_path / "w.pth")
    assert same(model, load_original("toy", tmp_path / "w.pth"))
    with pytest.raises(CheckpointError, match="unexpected: extra"):
        load_original("toy", {**original, "extra": torch.ones(1)})
    with pytest.raises(CheckpointError, match="does not look like"):
        load_original("toy", {"foreign.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match="not a checkpoint of the original"):
        load_original("toy_test", {"foreign.weight": torch.ones(1)})
    with pytest.raises(UnknownNameError, match="did you mean 'toy"):
        load_original("toyy", original)


def test_build_from_backbone_of_a_family_without_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no exchangeable backbone"):
        build_from_backbone("toy_test", tmp_path)


def test_every_error_is_one_of_ours(folder: Path) -> None:
    (folder / "config.json").write_text("{ not json")
    with pytest.raises(HybridzooError, match=r"config.json cannot be read as JSON"):
        build_model(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(HybridzooError, match="expected an object"):
        build_model(folder)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HybridzooError, match="damaged"):
        build_model(folder)


def test_build_from_backbone(tmp_path: Path) -> None:
    """The encoder of a text model starts from an AutoModel folder; the head is random; then it saves as any model."""
    encoder = build_model("roberta_bilstm_test").encoder
    encoder.save_pretrained(tmp_path / "encoder")
    model = build_from_backbone("roberta_bilstm_test", tmp_path / "encoder", num_labels=3)
    assert model.training
    assert model.config.num_labels == 3
    assert same(model.encoder, encoder)
    model.save_pretrained(tmp_path / "whole")
    assert same(model, build_model(tmp_path / "whole"))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_random_damage_is_always_one_error_or_harmless(name: str, model: Any, tmp_path: Path) -> None:
    """150 files with flipped, cut or inserted bytes: each loads, or raises CheckpointError, and nothing else."""
    import random

    path = tmp_path / name
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    good, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(150):
        data = bytearray(good)
        for _ in range(draw.choice((1, 3, 30))):
            at = draw.randrange(min(len(data), draw.choice((16, 600, len(data)))))
            data[at] = draw.randrange(256)
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            build_model(path, name="toy_test")
        except CheckpointError:
            refused += 1
    assert refused > 30


def test_configs_survive_pickle_and_copy(model: Any) -> None:
    import copy

    for config in (model.config, build_model("roberta_bilstm_test", device="meta").config):
        for again in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config), copy.copy(config)):
            assert again.to_dict() == config.to_dict()
            with pytest.raises(ConfigError):
                again.num_classes = "three"
