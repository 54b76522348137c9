"""Likelihood in windows, completion, MQAR accuracy: against definitions written out here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hybridzoo import build_model
from hybridzoo.data.mqar import Mqar, MqarOptions
from hybridzoo.data.readers.cloze import read_cloze
from hybridzoo.data.text_stream_dataset import WindowedText
from hybridzoo.data.text_stream_tokenizers import byte_tokenizer
from hybridzoo.errors import ConfigError, DataError, InputError
from hybridzoo.eval.lm.associative import answer, mqar_metrics
from hybridzoo.eval.lm.likelihood import Window, document_likelihoods, likelihood_metrics, prefix_token, windows
from hybridzoo.eval.lm.recall import complete, with_examples
from hybridzoo.training.language_modeling import validate

TEXTS = ["The first text.", "é", "A somewhat longer text, with more words in it than the others have.", ""]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("hybrid_lm_test", vocab_size=259, bos_token_id=1, eos_token_id=2, pad_token_id=0).eval()


def direct(model, text: str) -> float:
    """Negative log-likelihood of one text in one pass, in float64."""
    ids = torch.tensor([[1, *byte_tokenizer()(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        chances = model(input_ids=ids).logits.double().log_softmax(-1)
    return -float(chances[0, :-1].gather(1, ids[0, 1:, None]).sum()) if ids.shape[1] > 1 else 0.0


def test_documents_that_fit_a_window_have_their_own_likelihood(model):
    for batch_size in (1, 3):
        records = document_likelihoods(model, byte_tokenizer(), TEXTS, max_length=100, stride=50, batch_size=batch_size)
        assert [r["nll"] for r in records] == pytest.approx([direct(model, t) for t in TEXTS], rel=1e-5)
        assert [r["bytes"] for r in records] == [len(t.encode()) for t in TEXTS] == [r["tokens"] for r in records]
        assert [r["words"] for r in records] == [3, 1, 13, 0]


def test_long_documents_are_scored_with_the_context_that_windows_leave(model):
    text = TEXTS[2] * 2
    record = document_likelihoods(model, byte_tokenizer(), [text], max_length=32, stride=16)[0]
    ids = [1, *byte_tokenizer()(text, add_special_tokens=False)["input_ids"]]
    total = 0.0
    for i in range(1, len(ids)):
        # token i stands in the first window that ends behind it; windows end at 32, 48, 64, …
        end = 32 if i < 32 else min(32 + 16 * ((i - 32) // 16 + 1), len(ids))
        row = torch.tensor([ids[max(0, end - 32) : i]])
        with torch.no_grad():
            total -= float(model(input_ids=row).logits[0, -1].double().log_softmax(-1)[ids[i]])
    assert record["nll"] == pytest.approx(total, rel=1e-5)
    assert record["tokens"] == len(ids) - 1


@pytest.mark.parametrize("length", [1, 2, 8, 9, 12, 13, 40])
@pytest.mark.parametrize(("size", "stride"), [(8, 4), (8, 7), (8, 1), (2, 1)])
def test_windows_score_each_token_once(length: int, size: int, stride: int):
    found = list(windows([length], size, stride))
    scored = [i for w in found for i in range(w.first, w.end)]
    assert scored == list(range(1, length))
    assert all(w.end - w.start <= size and w.start < w.first for w in found)
    if length > size:
        assert found[1].first - found[1].start >= size - stride
        assert found[0] == Window(0, 0, 1, size)


@pytest.mark.parametrize("stride", [0, 8, 9])
def test_windows_without_context_are_refused(stride: int):
    with pytest.raises(ConfigError, match="stride"):
        list(windows([5], 8, stride))


def test_metrics_of_likelihoods():
    records = [{"nll": 4.0, "tokens": 2, "bytes": 8, "words": 1}, {"nll": 2.0, "tokens": 4, "bytes": 4, "words": 2}]
    found = likelihood_metrics(records)
    assert found["bits_per_byte"] == pytest.approx(6 / math.log(2) / 12)
    assert found["perplexity"] == pytest.approx(math.e)
    assert found["word_perplexity"] == pytest.approx(math.exp(2))


def test_a_tokenizer_without_a_first_token_is_refused():
    with pytest.raises(ConfigError, match="neither a bos_token nor an eos_token"):
        prefix_token(SimpleNamespace(bos_token_id=None, eos_token_id=None))
    assert prefix_token(SimpleNamespace(bos_token_id=None, eos_token_id=7)) == 7


def test_validation_counts_what_likelihood_counts(model):
    """Documents that fit a window each: the same nats, and one end-of-text token more a document."""
    texts = TEXTS[:3]
    data = WindowedText(byte_tokenizer(), texts, 256)
    found = validate(model, data, 2, device="cpu")
    assert model.training is False
    nats = 0.0
    for text in texts:
        ids = torch.tensor([[1, *byte_tokenizer()(text, add_special_tokens=False)["input_ids"], 2]])
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=ids).loss.double()) * (ids.shape[1] - 1)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / sum(len(t.encode()) for t in texts), rel=1e-5)
    assert found["loss"] == pytest.approx(nats / data.scored_tokens, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))


class Recall(torch.nn.Module):
    """Answers each MQAR question whose key is even, by looking it up; stands for a model with known accuracy."""

    device = torch.device("cpu")

    def __init__(self, options: MqarOptions):
        super().__init__()
        self.options = options
        self.embedding = torch.nn.Embedding(options.vocab_size, 1)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, **_):
        logits = torch.zeros(*input_ids.shape, self.options.vocab_size)
        listed = 2 * self.options.pairs
        for b, row in enumerate(input_ids.tolist()):
            known = {k: v for k, v in zip(row[0:listed:2], row[1:listed:2]) if k % 2 == 0}
            for t in range(listed, len(row)):
                if row[t] in known:
                    logits[b, t, known[row[t]]] = 1
        return SimpleNamespace(logits=logits)


def test_mqar_accuracy_is_the_share_of_right_answers():
    options = MqarOptions(vocab_size=64, sequence_length=32, pairs=6, noise=False)
    data = Mqar(options, 40, part=2)
    records = answer(Recall(options), data, batch_size=7)
    keys = [int(k) for i in range(40) for k in data[i]["input_ids"][0:12:2]]
    assert sum(r["questions"] for r in records) == 240
    assert mqar_metrics(records)["accuracy"] == pytest.approx(sum(k % 2 == 0 for k in keys) / 240)
    assert len(records) == 40
    assert all(0 <= gap < 10 for r in records for gap, _ in r["gaps"])
    with pytest.raises(InputError, match="64 tokens, the model only 32"):
        answer(Recall(MqarOptions(vocab_size=32, sequence_length=32, pairs=4)), data)


def test_cloze_rows_and_examples(tmp_path: Path):
    path = tmp_path / "validation.jsonl"
    path.write_text("".join(json.dumps({"text": f"The sky of {i} is ", "value": f"blue{i}"}) + "\n" for i in range(3)))
    rows = read_cloze(tmp_path)
    assert [(r.text, r.value) for r in rows] == [(f"The sky of {i} is", f"blue{i}") for i in range(3)]
    assert with_examples(rows, 1)[2].text == "The sky of 0 is blue0\n\nThe sky of 2 is"
    assert with_examples(rows, 0)[1].text == rows[1].text
    with pytest.raises(DataError, match="examples"):
        with_examples(rows, 3)
    (tmp_path / "rows.json").write_text(json.dumps([{"text": "a", "value": "b", "doc_id": "x1"}]))
    assert read_cloze(tmp_path / "rows.json")[0].id == "x1"


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"text": "a"}', "row 0 has text"), ("[1]", "row 0 has list"), ("", "no rows"), ("{", "no JSON")],
)
def test_cloze_files_that_are_none(tmp_path: Path, content: str, message: str):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_cloze(path)
    with pytest.raises(DataError, match="based-swde"):
        read_cloze(tmp_path / "missing.jsonl", "swde")


def test_completion_takes_the_line_and_looks_for_the_answer(model, monkeypatch: pytest.MonkeyPatch):
    """A model that writes a fixed line: what it contains is right, in any case, and nothing behind the line break."""
    tokenizer = byte_tokenizer()
    line = tokenizer(" The BLUE sky\nred", add_special_tokens=False)["input_ids"]

    def generate(self, input_ids, attention_mask, **options):
        assert options["max_new_tokens"] == 48
        assert not options["do_sample"]
        assert attention_mask[:, -1].all()
        return torch.cat([input_ids, torch.tensor([line] * len(input_ids))], 1)

    monkeypatch.setattr(type(model), "generate", generate)
    rows = [SimpleNamespace(id=str(i), text="x" * (i + 1), value=v) for i, v in enumerate(["blue", "red", "The blue"])]
    records = complete(model, tokenizer, rows, batch_size=2)  # type: ignore[arg-type]
    assert [r["contains"] for r in records] == [True, False, True]
    assert {r["output"] for r in records} == {" The BLUE sky"}


def test_completion_generates(model):
    rows = [SimpleNamespace(id="a", text="Hello", value="zzz"), SimpleNamespace(id="b", text="x" * 300, value="q")]
    records = complete(model, byte_tokenizer(), rows, batch_size=2)  # type: ignore[arg-type]
    assert [r["id"] for r in records] == ["a", "b"]
