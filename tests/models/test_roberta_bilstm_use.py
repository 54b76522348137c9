"""RoBERTa-BiLSTM in other people's hands: pipeline, Auto classes, Trainer, torch.export, ONNX, compile, fine-tuning."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline

from hybridzoo import build_model
from hybridzoo.data.text_cleaning import clean_text
from hybridzoo.data.tokenizers import train_bpe_tokenizer
from hybridzoo.errors import InputError
from hybridzoo.inference import TextClassifier
from hybridzoo.models.roberta_bilstm.configuration import RobertaBiLSTMConfig
from hybridzoo.models.roberta_bilstm.modeling import RobertaBiLSTMForSequenceClassification
from hybridzoo.models.roberta_bilstm.pipeline import text_pipeline

TEXTS = [
    "a warm, funny, engaging film",
    "dull",
    "it never takes off, and the jokes are as old as the hills, but the cast tries hard to hold it together",
    "",
    "<br />@you see http://x.y — I LOVED it &amp; cried",
]
LABELS = ("negative", "neutral", "positive")


def tokenizer(side: str = "right"):
    built = train_bpe_tokenizer(TEXTS * 3, 400)
    built.padding_side = side
    return built


def saved(folder: Path, side: str = "right", **config) -> Path:
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    build_model("roberta_bilstm_test", **names, **config).save_pretrained(folder)
    tokenizer(side).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("side", ["right", "left"])
def test_pipeline_from_a_folder(tmp_path: Path, side: str) -> None:
    folder = saved(tmp_path / "model", side)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(model) is RobertaBiLSTMForSequenceClassification
    pipe = pipeline("text-classification", model=str(folder))
    assert type(pipe.model) is RobertaBiLSTMForSequenceClassification
    alone = [pipe([text], top_k=None)[0] for text in TEXTS]
    for scores in alone:
        assert {s["label"] for s in scores} == set(LABELS)
        assert scores == sorted(scores, key=lambda s: -s["score"])
        assert sum(s["score"] for s in scores) == pytest.approx(1, abs=1e-5)
    together = pipe(TEXTS, top_k=None, batch_size=5)  # padded to the longest, on that side
    for a, b in zip(alone, together):
        for x, y in zip(a, b):
            assert x["label"] == y["label"]
            assert x["score"] == pytest.approx(y["score"], abs=1e-5)
    assert pipe(TEXTS[0])[0]["label"] == alone[0][0]["label"]
    long = " ".join(TEXTS * 20)
    cut = pipe(long, truncation=True, max_length=model.config.max_length)
    assert cut[0]["label"] in LABELS
    with pytest.raises(InputError, match=r"truncation=True, max_length=64"):
        pipe(long)


def test_fixed_length_model_in_a_pipeline(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", pooling="flatten", max_length=32)
    plain = pipeline("text-classification", model=str(folder))
    with pytest.raises(InputError, match=r"exactly 32 tokens"):
        plain(TEXTS[0])
    padded = plain(TEXTS, padding="max_length", truncation=True, max_length=32)
    ours = text_pipeline(str(folder))(TEXTS, batch_size=3)  # pads by itself
    assert [p["label"] for p in padded] == [o["label"] for o in ours]
    assert [p["score"] for p in padded] == pytest.approx([o["score"] for o in ours], abs=1e-5)


@pytest.mark.parametrize("mode", ["html", "tweet", "paper"])
def test_cleaning_is_the_same_everywhere(tmp_path: Path, mode: str) -> None:
    """text_pipeline, TextClassifier, and a plain pipeline on texts that were cleaned by hand."""
    folder = saved(tmp_path / "model", preprocess=mode)
    raw = pipeline("text-classification", model=str(folder))(TEXTS, top_k=1)
    by_hand = pipeline("text-classification", model=str(folder))([clean_text(t, mode) for t in TEXTS], top_k=1)
    ours = text_pipeline(str(folder))(TEXTS, top_k=1)
    classifier = TextClassifier(build_model(folder), AutoTokenizer.from_pretrained(folder))(TEXTS)
    expected = [row[0]["score"] for row in by_hand]
    assert [row[0]["score"] for row in ours] == pytest.approx(expected, abs=1e-5)
    assert [p["score"] for p in classifier] == pytest.approx(expected, abs=1e-5)
    assert raw[4][0]["score"] != pytest.approx(expected[4], abs=1e-6)  # the cleaning does change this text


def test_config_round_trip(tmp_path: Path) -> None:
    config = RobertaBiLSTMConfig(
        encoder={"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2}, cell="gru"
    )
    config.save_pretrained(tmp_path)
    again = RobertaBiLSTMConfig.from_pretrained(tmp_path)
    assert again.encoder.model_type == "bert"
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize("kind", ["electra", "distilbert", "deberta-v2", "modernbert"])
def test_other_encoders(kind: str) -> None:
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "distilbert":
        sizes = {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    pad = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    pad = pad if kind == "modernbert" else {}
    model = build_model("roberta_bilstm_test", encoder={"model_type": kind, **sizes, **pad}, max_length=32).eval()
    inputs = model.example_inputs(2)
    short = {k: v[1:, : int(inputs["attention_mask"][1].sum())] for k, v in inputs.items()}
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits[1:], model(**short).logits, atol=1e-5, rtol=0)
    groups = model.layer_groups()
    assert len(groups) == 4  # beside the layers, two layers, on top
    assert all(any(n.startswith(p) for n, _ in model.named_parameters()) for g in groups[:-1] for p in g)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_export_with_any_batch_and_length(cell: str) -> None:
    model = build_model("roberta_bilstm_test", cell=cell).eval()
    example = {k: v[:, :6].contiguous() for k, v in model.example_inputs(3).items()}
    torch.compile(model, backend="eager", fullgraph=True)(**example)  # must not spoil the export
    batch, steps = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("steps", min=2, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = {name: {0: batch, 1: steps} for name in example}
        exported = torch.export.export(model, (), example, dynamic_shapes=shapes, strict=False)
    run = exported.module()
    with torch.no_grad():
        for rows, length in ((3, 64), (5, 21), (1, 2)):
            inputs = {k: v[:, :length] for k, v in model.example_inputs(rows).items()}
            torch.testing.assert_close(run(**inputs).logits, model(**inputs).logits, atol=1e-6, rtol=0)


def test_onnx_with_any_batch_and_length(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = build_model("roberta_bilstm_test").eval()
    example = {k: v[:, :6].contiguous() for k, v in model.example_inputs(2).items()}
    batch, steps = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("steps", min=2, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = {name: {0: batch, 1: steps} for name in example}
        program = torch.onnx.export(model, (), kwargs=example, dynamo=True, dynamic_shapes=shapes)
    assert [n.op_type for n in program.model.graph].count("LSTM") == 2  # one a direction, not unrolled
    program.save(tmp_path / "model.onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # it warns about a static shape annotation inside
    session = runtime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    for rows, length in ((2, 64), (5, 21)):
        inputs = {k: v[:, :length] for k, v in model.example_inputs(rows).items()}
        logits = session.run(None, {k: v.numpy() for k, v in inputs.items()})[0]
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), model(**inputs).logits, atol=1e-5, rtol=0)


def test_compiled_training_step_has_the_eager_gradients() -> None:
    model = build_model("roberta_bilstm_test", input_dropout=0.0, head_dropout=0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    inputs = {k: v[:, :6] if v.dim() > 1 else v for k, v in model.example_inputs(3, labels=True).items()}
    model(**inputs).loss.backward()
    eager = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        if name in eager:
            torch.testing.assert_close(parameter.grad, eager[name], atol=1e-6, rtol=1e-4, msg=name)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = build_model("roberta_bilstm_test").train()
    inputs = model.example_inputs(3, labels=True)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules()) is enable
        torch.manual_seed(0)
        model.zero_grad()
        model(**inputs).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_bf16_autocast_is_close(cell: str) -> None:
    model = build_model("roberta_bilstm_test", cell=cell).eval()
    inputs = model.example_inputs(4, labels=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**inputs)
        states = model.rnn(torch.randn(2, 3, 32).bfloat16(), torch.tensor([3, 2]))
        compiled = torch.compile(model, backend="eager", fullgraph=True)(**inputs)
    assert states.dtype == torch.float32  # the recurrence is not rounded at every step
    torch.testing.assert_close(compiled.logits, out.logits, atol=1e-2, rtol=1e-2)
    out.loss.backward()
    torch.testing.assert_close(out.logits.float(), model(**inputs).logits, atol=2e-2, rtol=2e-2)


def test_trainer_learns(tmp_path: Path) -> None:
    """Whether the token 7 occurs: a few steps must bring the loss down a long way."""
    model = build_model("roberta_bilstm_test", num_labels=2)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(128):
        ids = torch.randint(10, 200, (int(torch.randint(4, 24, (1,), generator=generator)),), generator=generator)
        label = int(torch.randint(0, 2, (1,), generator=generator))
        ids[0] = 7 if label else 8
        rows.append({"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": label})
    from transformers import DataCollatorWithPadding

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=40, per_device_train_batch_size=16, learning_rate=5e-3, logging_steps=10,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer()))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.2 * losses[0], losses


def test_freeze_backbone_and_layer_groups_cover_every_parameter() -> None:
    model = build_model("roberta_bilstm_test")
    model.freeze_backbone()
    trainable = {n.partition(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"rnn", "head"}
    model.freeze_backbone(False)
    assert all(p.requires_grad for p in model.parameters())
    groups = model.layer_groups()
    assert groups[0] == ["encoder."]
    assert groups[1] == ["encoder.encoder.layer.0."]
    prefixes = [p for group in groups for p in group]
    assert all(n.startswith(tuple(prefixes)) for n, _ in model.named_parameters())


def test_head_for_another_number_of_classes(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    model = build_model(folder, num_labels=5)
    assert model.head.out_proj.weight.shape == (5, 32)
    old = build_model(folder)
    assert torch.equal(model.head.dense.weight, old.head.dense.weight)
    assert torch.equal(model.rnn.weight_hh_l0_reverse, old.rnn.weight_hh_l0_reverse)
