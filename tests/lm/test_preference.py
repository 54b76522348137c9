"""DPO: the loss by hand, pairs as batches, a small run whose reference stays what it was, and what cannot train."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hybridzoo import build_model
from hybridzoo.data import load_data
from hybridzoo.data.readers.preferences import Pair, as_pair
from hybridzoo.data.text_stream_tokenizers import byte_tokenizer
from hybridzoo.errors import ConfigError, DataError
from hybridzoo.training import recipe_from_dict, train
from hybridzoo.training import run as run_module
from hybridzoo.training.callbacks import read_log
from hybridzoo.training.preference import PreferencePairs, answer_log_probs, dpo_loss

SMALL = {"vocab_size": 259, "pattern": "DH", "num_hidden_layers": 2, "kv_groups": [], "num_meta_tokens": 2}
WORDS = ["sun", "moon", "river", "stone", "cloud", "grass", "bird", "road"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Polite answers are preferred to rude ones."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"prompt": f"What is a {a} {b}?", "chosen": f" It is a {b}, please.", "rejected": f" Go away, {a}!"}
        for a in WORDS
        for b in WORDS
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def recipe(pairs: Path, **training):
    values = {
        "model": {"name": "hybrid_lm_test", "config": SMALL},
        "data": {
            "name": "preferences",
            "root": str(pairs),
            "tokenizer": "bytes",
            "options": {"sequence_length": 64},
        },
        "training": {
            "objective": "dpo",
            "max_steps": 8,
            "batch_size": 8,
            "learning_rate": 2e-3,
            "scheduler": "constant",
            "eval_every": 0,
            "save_every": 0,
            "log_every": 1,
            **training,
        },
        "evaluation": {"metric": "accuracy", "batch_size": 16},
    }
    return recipe_from_dict(values)


def test_the_loss_by_hand():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 3, 4], [-100, -100, 1]])
    found = answer_log_probs(logits, labels)
    nats = logits.log_softmax(-1)
    torch.testing.assert_close(found, torch.stack([nats[0, 0, 3] + nats[0, 1, 4], nats[1, 1, 1]]))
    loss, margins = dpo_loss(torch.tensor([-3.0, -5.0]), torch.tensor([-4.0, -4.0]), 0.1)
    assert margins.tolist() == pytest.approx([0.2])
    assert float(loss) == pytest.approx(-math.log(1 / (1 + math.exp(-0.2))))


def test_a_run_learns_and_its_reference_stays(pairs, tmp_path, monkeypatch):
    made = []
    make = run_module.make_trainer
    monkeypatch.setattr(run_module, "make_trainer", lambda *args: made.append(make(*args)) or made[-1])
    plan = recipe(pairs)
    run = train(plan, tmp_path / "run")
    reference = made[0][0].objective.reference
    torch.manual_seed(plan.training.seed)
    from transformers import set_seed

    set_seed(plan.training.seed)
    first = build_model("hybrid_lm_test", **SMALL)
    for name, value in first.state_dict().items():
        assert torch.equal(reference.state_dict()[name], value), name
    assert not any(p.requires_grad for p in reference.parameters())
    records = [r for r in read_log(run.folder / "log.jsonl") if "loss" in r]
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the model still is the reference
    assert records[-1]["loss"] < 0.5
    assert records[-1]["margin"] > 0.5 > records[1]["margin"]
    assert run.metrics["accuracy"] == 1.0
    trained = load_file(run.folder / "model.safetensors")
    assert not torch.equal(trained["lm_head.weight" if "lm_head.weight" in trained else "model.embed_tokens.weight"],
                           reference.get_output_embeddings().weight)  # fmt: skip


def test_stopped_and_resumed_keeps_the_first_reference(pairs, tmp_path):
    whole = train(recipe(pairs, max_steps=4, save_every="2 steps", save_total_limit=None), tmp_path / "whole")
    again = tmp_path / "again"
    again.mkdir()
    (again / "recipe.yaml").write_text((whole.folder / "recipe.yaml").read_text())
    (again / "checkpoints").mkdir()
    (whole.folder / "checkpoints" / "checkpoint-2").rename(again / "checkpoints" / "checkpoint-2")
    resumed = train(recipe(pairs, max_steps=4, save_every="2 steps", save_total_limit=None), again)
    a, b = (load_file(r.folder / "model.safetensors") for r in (whole, resumed))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert resumed.metrics == whole.metrics


def test_batches_of_pairs():
    tokenizer = byte_tokenizer()
    data = PreferencePairs(tokenizer, [Pair("ab", "cde", "f"), Pair("a" * 50, "xy", "z" * 30)], 16)
    batch = data.__getitems__([0, 1])
    assert batch["input_ids"].shape == (4, 16)
    text = [tokenizer.decode(row[mask.bool()]) for row, mask in zip(batch["input_ids"], batch["attention_mask"])]
    assert text == ["<s>abcde</s>", "axy</s>", "<s>abf</s>", "a" + "z" * 15]
    answers = [tokenizer.decode(row[row >= 0]) for row in batch["labels"]]
    assert answers == ["cde</s>", "xy</s>", "f</s>", "z" * 15]
    assert data.lengths.tolist() == [7, 16]


def test_padding_changes_no_log_probability():
    model, tokenizer = build_model("hybrid_lm_test", **SMALL).eval(), byte_tokenizer()
    pair, long = Pair("What is it?", " A cat.", " Go!"), Pair("Tell me more of it", " No.", " I will not tell you more")
    data = PreferencePairs(tokenizer, [pair, long], 64)

    def values(keys):
        batch = data.__getitems__(keys)
        labels = batch.pop("labels")
        with torch.no_grad():
            return answer_log_probs(model(**batch).logits, labels)

    torch.testing.assert_close(values([0, 1])[[0, 2]], values([0]), rtol=1e-5, atol=1e-4)


def test_conversations_as_the_hub_has_them(tmp_path):
    turn = {"role": "user", "content": "Hi"}
    row = {
        "prompt": "Hi",
        "chosen": [turn, {"role": "assistant", "content": "Hello!"}],
        "rejected": [turn, {"role": "assistant", "content": "What?"}],
        "score": 3,
    }
    assert as_pair(row, "row 0") == Pair([turn], "Hello!", "What?")
    tokenizer = byte_tokenizer()
    with pytest.raises(ConfigError, match="no chat template"):
        PreferencePairs(tokenizer, [as_pair(row, "row 0")], 32)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    data = PreferencePairs(tokenizer, [as_pair(row, "row 0")], 64)
    assert tokenizer.decode(data[0]["input_ids"][0]) == "[user]Hi[assistant]Hello!</s>"
    for name, count in (("train", 3), ("validation", 2)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join([json.dumps(row)] * count))
    bundle = load_data("preferences", root=tmp_path)
    assert (dict(bundle.info.sizes), bundle.info.protocol) == ({"train": 3, "validation": 2}, "given")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "pairs.jsonl:1 has prompt, chosen; expected"),
        (["a"], "pairs.jsonl:1 has list"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "neither"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "empty prompt or answer"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, "empty prompt or answer"),
        ({"chosen": "b", "rejected": "c"}, "neither"),
        (
            {
                "chosen": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "b"}],
                "rejected": [{"role": "user", "content": "y"}, {"role": "assistant", "content": "b"}],
            },
            "different prompts",
        ),
    ],
)
def test_rows_that_are_no_pairs(row, message, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        load_data("preferences", root=path)


def test_recipes_that_cannot_train_say_why(pairs, tmp_path):
    plan = recipe(pairs)
    plan.data.name, plan.data.root = "austen_mini", None
    with pytest.raises(ConfigError, match="learns from pairs of answers"):
        train(plan, tmp_path / "a")
    plan = recipe(pairs)
    plan.evaluation.metric = "bits_per_byte"
    with pytest.raises(ConfigError, match=r"not for training\.objective: dpo"):
        train(plan, tmp_path / "b")
    with pytest.raises(ConfigError, match=r"dpo_beta = 0\.0; must be above 0"):
        recipe(pairs, dpo_beta=0.0)
    values = {"model": {"name": "iformer_test"}, "data": {"name": "fashion_mnist_mini"}}
    with pytest.raises(ConfigError, match="dpo is for language models"):
        train(recipe_from_dict({**values, "training": {"objective": "dpo"}}), tmp_path / "c")
    with pytest.raises(ConfigError, match=r"set training\.objective: dpo"):
        train(_default(recipe(pairs)), tmp_path / "d")


def _default(plan):
    plan.training.objective = "default"
    plan.evaluation.metric = "loss"
    return plan


def test_sigmoid_of_large_margins_stays_finite():
    loss, _ = dpo_loss(torch.tensor([0.0, 2000.0]), torch.zeros(2), 1.0)
    assert float(loss) == pytest.approx(2000.0)
    assert torch.isfinite(F.logsigmoid(torch.tensor(-2000.0)))
