"""`hybridzoo export` and `export_model`: files that run elsewhere and agree with the model."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from hybridzoo import build_model
from hybridzoo.errors import CheckpointError, ConfigError, UnknownNameError
from hybridzoo.export import export_model, exporter
from hybridzoo.export.recurrent import one_op_per_layer


@pytest.fixture(scope="module")
def text_model():
    torch.manual_seed(0)
    return build_model("roberta_bilstm_test").eval()


class SmallRecurrent(nn.Module):
    """Embedding, one GRU or LSTM, a linear layer: the least that a text model of `export_model` is."""

    config = PretrainedConfig()
    export_outputs = ("logits",)

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 6)
        self.rnn = getattr(nn, kind)(6, 5, batch_first=True)
        self.out = nn.Linear(5, 3)

    def example_inputs(self, batch_size: int = 1) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.arange(batch_size * 8).reshape(batch_size, 8)}

    def forward(self, input_ids: torch.Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.out(self.rnn(self.embed(input_ids))[0].mean(1)))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_layers_as_onnx_operators_with_weights_beside_the_file(tmp_path, monkeypatch, kind):
    onnxruntime = pytest.importorskip("onnxruntime", reason="extra [export] is not installed")
    onnx = pytest.importorskip("onnx")
    monkeypatch.setattr(exporter, "EXTERNAL_DATA_BYTES", 0)  # as for a model over 2 GB
    torch.manual_seed(0)
    model = SmallRecurrent(kind).eval()
    report = export_model(model, tmp_path / "model.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert report.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert kind in {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    ids = torch.randint(0, 50, (5, 31))
    (logits,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(["logits"], {"input_ids": ids.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(ids).logits, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_text_as_onnx_with_any_batch_and_length(tmp_path, text_model):
    onnxruntime = pytest.importorskip("onnxruntime", reason="extra [export] is not installed")
    report = export_model(text_model, tmp_path / "model.onnx")
    assert report.inputs == {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"]}
    assert len({tuple(c.shapes["input_ids"]) for c in report.checks}) == 2
    assert report.max_abs_error < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [i.shape for i in session.get_inputs()] == [["batch", "sequence"]] * 2
    ids = torch.randint(5, 90, (4, 17))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0  # a padded row
    (logits,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    with torch.no_grad():
        expected = text_model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-5, rtol=1e-4)


def test_text_as_torch_program_through_the_command(cli, text_model, tmp_path):
    text_model.save_pretrained(tmp_path / "folder")
    report = json.loads(cli("export", tmp_path / "folder", tmp_path / "model.pt2", "--json").stdout)
    assert report["format"] == "torch"
    assert len(report["checks"]) == 2
    program = torch.export.load(tmp_path / "model.pt2").module()
    ids = torch.randint(5, 90, (3, 9))
    got = program(input_ids=ids, attention_mask=torch.ones_like(ids))
    with torch.no_grad():
        expected = text_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_images_with_any_batch(tmp_path):
    pytest.importorskip("onnxruntime", reason="extra [export] is not installed")
    model = build_model("iformer_test", depths=[1, 1, 1, 1], attention_heads=[1, 2, 4, 7]).train()
    report = export_model(model, tmp_path / "model.onnx")
    assert report.inputs["pixel_values"][0] == "batch"
    assert [c.shapes["pixel_values"][0] for c in report.checks] == [1, 3]
    assert report.max_abs_error < 1e-5
    assert model.training  # given back as it was


def test_a_file_that_disagrees_is_not_written(text_model, tmp_path, monkeypatch):
    def off_by_one(path):
        module = torch.export.load(path).module()
        return lambda inputs: module(**inputs) + 1

    monkeypatch.setitem(exporter._FORMATS, "torch", (exporter._write_torch, off_by_one))
    with pytest.raises(CheckpointError, match="disagrees"):
        export_model(text_model, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_exported_says_so_and_leaves_the_old_file(text_model, tmp_path, monkeypatch):
    (tmp_path / "model.pt2").write_text("old")

    def forward(**inputs):
        raise ValueError("this forward cannot be traced")

    monkeypatch.setattr(text_model, "forward", forward)
    with pytest.raises(CheckpointError, match="cannot be traced"):
        export_model(text_model, tmp_path / "model.pt2")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_name_without_weights_asks_for_random_ones_or_a_folder(cli, tmp_path):
    with pytest.raises(UnknownNameError, match="--random"):
        cli("export", "iformer_test", tmp_path / "model.pt2", code=2)


@pytest.mark.parametrize(("name", "format"), [("model.bin", None), ("model.onnx", "onx")])
def test_formats_are_named(text_model, tmp_path, name, format):
    with pytest.raises(ConfigError, match="onnx"):
        export_model(text_model, tmp_path / name, format=format)


def test_a_missing_package_comes_with_its_install_line():
    with pytest.raises(CheckpointError, match=r"hybridzoo\[export\]"):
        exporter._need("no_such_package")


def test_a_single_row_is_refused_as_example(text_model, tmp_path):
    with pytest.raises(ConfigError, match="at least two rows"):
        export_model(text_model, tmp_path / "model.pt2", inputs=text_model.example_inputs(1))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_replaced_layers_give_the_same_numbers(kind):
    torch.manual_seed(0)
    layer = getattr(torch.nn, kind)(5, 7, batch_first=True).eval()
    x = torch.randn(3, 11, 5)
    with torch.no_grad():
        expected = layer(x)[0]
        with one_op_per_layer():
            got = layer(x)[0]
    assert torch.equal(got, expected)


@pytest.mark.parametrize("op", ["lstm_layer", "gru_layer"])
def test_the_ops_pass_torchs_own_checks(op):
    gates = 4 if op == "lstm_layer" else 3
    state = [torch.randn(1, 2, 3)] * (2 if op == "lstm_layer" else 1)
    weights = [torch.randn(gates * 3, 5), torch.randn(gates * 3, 3), torch.randn(gates * 3), torch.randn(gates * 3)]
    call = (torch.randn(2, 4, 5), *state, *weights)
    results = torch.library.opcheck(
        getattr(torch.ops.hybridzoo, op).default, call, test_utils=("test_schema", "test_faketensor")
    )
    assert set(results.values()) == {"SUCCESS"}
