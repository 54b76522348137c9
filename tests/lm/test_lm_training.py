"""Trainings of tiny language models: they learn, they resume exactly, and several processes train one model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hybridzoo import build_model
from hybridzoo.errors import ConfigError, DataError, InputError
from hybridzoo.eval import rescore, run_task
from hybridzoo.training import recipe_from_dict, train
from hybridzoo.training import run as run_module
from hybridzoo.training.callbacks import read_log
from hybridzoo.training.language_modeling import Batching, split_options
from hybridzoo.training.schedule import make_schedule

ROOT = Path(__file__).parents[2]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "old", "tree", "by", "river"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (two shards) and validation.jsonl of made-up sentences."""
    folder = tmp_path_factory.mktemp("texts")
    generator = torch.Generator().manual_seed(0)

    def document() -> str:
        picks = torch.randint(len(WORDS), (int(torch.randint(4, 40, (), generator=generator)),), generator=generator)
        return " ".join(WORDS[i] for i in picks)

    for name, count in (("train", 120), ("validation", 12), ("test", 12)):
        (folder / name).mkdir()
        half = count // 2
        for part in range(2):
            lines = [json.dumps({"text": document()}) for _ in range(half)]
            (folder / name / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


SMALL = {"vocab_size": 259, "pattern": "DA", "num_hidden_layers": 2, "kv_groups": [], "num_meta_tokens": 2}


def recipe(texts: Path, *, options: dict | None = None, **training):
    return recipe_from_dict(
        {
            "model": {"name": "hybrid_lm_test", "config": SMALL},
            "data": {
                "name": "corpus",
                "root": str(texts),
                "tokenizer": "bytes",
                "options": {"sequence_length": 48, **(options or {})},
            },
            "training": {
                "max_steps": 6,
                "batch_size": 4,
                "learning_rate": 3e-3,
                "eval_every": 0,
                "save_every": 0,
                "log_every": 1,
                **training,
            },
            "evaluation": {"metric": "bits_per_byte", "batch_size": 32},
        }
    )


class StopAt(TrainerCallback):
    """Asks for a stop as SIGTERM does."""

    def __init__(self, trainer, step):
        self.trainer, self.step = trainer, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.trainer.signals.received = 15


STREAM = {"stream": True, "stream_tokens": 48 * 4 * 4, "shuffle_block": 16}


@pytest.mark.parametrize(
    ("options", "stop", "extra"),
    [({}, 2, {"gradient_accumulation": 2}), (STREAM, 3, {}), (STREAM, 5, {}), ({"document_masks": False}, 4, {})],
    ids=["packed", "stream", "stream-second-epoch", "unmasked"],
)
def test_stopped_and_resumed_is_bit_identical(texts, options, stop, extra, tmp_path, monkeypatch):
    plan = recipe(texts, options=options, **extra)
    whole = train(plan, tmp_path / "whole")
    make = run_module.make_trainer

    def stopping(*args):
        trainer, tokenizer = make(*args)
        trainer.add_callback(StopAt(trainer, stop))
        return trainer, tokenizer

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "make_trainer", stopping)
        assert train(plan, tmp_path / "parts").status == "stopped"
    resumed = train(plan, tmp_path / "parts")
    assert (resumed.status, resumed.step) == ("finished", 6)
    a, b = (load_file(r.folder / "model.safetensors") for r in (whole, resumed))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert resumed.metrics == whole.metrics
    losses = [[r["loss"] for r in read_log(r.folder / "log.jsonl") if "loss" in r] for r in (whole, resumed)]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 6  # other text in every step


def test_a_tiny_model_learns_and_is_scored_by_the_harness(texts, tmp_path):
    run = train(
        recipe(texts, max_steps=60, learning_rate=1e-2, eval_every="30 steps", select_best=True), tmp_path / "run"
    )
    records = read_log(run.folder / "log.jsonl")
    seen = [r["eval_bits_per_byte"] for r in records if "eval_bits_per_byte" in r]
    assert len(seen) == 2
    assert seen[1] < seen[0] < 5.5  # random bytes: log2(259) = 8
    assert run.best is not None
    assert run.best["metric"] == "bits_per_byte"
    assert run.best["value"] == min(seen)
    assert run.metrics["bits_per_byte"] == pytest.approx(run.best["value"], rel=1e-6)
    assert any(r.get("tokens_per_sec", 0) > 0 for r in records)
    done = run_task(str(run.folder), "corpus", root=str(texts), out=tmp_path / "results", batch_size=4)
    assert done.result.metrics["bits_per_byte"].value < 5.5
    assert done.path is not None
    assert rescore(done.path) == done.result.metrics
    assert done.result.task.dataset.n_used == 12
    config = build_model(run.folder).config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)


def test_mqar_is_learnt_from_numbers_made_on_the_fly(tmp_path):
    values = {
        "model": {
            "name": "transformer_30m",
            "config": {
                "vocab_size": 16,
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "intermediate_size": 64,
                "mixers": {"attention": {"num_heads": 1}},
            },
        },
        "data": {"name": "mqar", "options": {"vocab_size": 16, "sequence_length": 8, "pairs": 2}},
        "training": {"max_steps": 150, "batch_size": 64, "learning_rate": 1e-2, "eval_every": 0, "save_every": 0},
        "evaluation": {"metric": "accuracy", "batch_size": 500},
    }
    run = train(recipe_from_dict(values), tmp_path / "run")
    assert run.metrics["accuracy"] > 0.5  # a guess among the two listed values; 0.125 among all


def test_special_tokens_in_texts_stay_words(texts, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ("train", "validation", "test"):
        (folder / f"{name}.txt").write_text("</s><s> and <pad> " * 30)
    run = train(recipe(folder, max_steps=1), tmp_path / "run")
    assert run.status == "finished"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_length": "long"}, "sequence_length = 'long'; expected a whole number"),
        ({"sequence_length": True}, "sequence_length = True"),
        ({"document_masks": 1}, "document_masks = 1; expected true or false"),
        ({"sequence_length": 1}, "at least 2"),
        ({"stream": True}, "stream_tokens"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        split_options(options)


def test_a_stream_without_files_for_validation_holds_out_its_first_documents(texts, tmp_path):
    options = {**STREAM, "validation_documents": 5}
    plan = recipe(texts, options=options, max_steps=1)
    plan.data.root = str(texts / "train")
    run = train(plan, tmp_path / "run")
    facts = json.loads((run.folder / "environment.json").read_text())["data"]
    assert (facts["sizes"], facts["protocol"]) == ({"validation": 5}, "stream")
    plan.data.options["validation_documents"] = 60
    with pytest.raises(DataError, match="too few to hold out 60"):
        train(plan, tmp_path / "other")
    plan.data.name, plan.data.root = "austen_mini", None
    with pytest.raises(ConfigError, match="stream reads corpus and hf_corpus"):
        train(plan, tmp_path / "third")


def test_options_are_parted():
    ours, rest = split_options({"sequence_length": 64, "separator": "x"})
    assert ours == Batching(sequence_length=64)
    assert rest == {"separator": "x"}


def bad(texts, **changes):
    plan = recipe(texts)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        setattr(getattr(plan, section), name, value)
    return plan


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data__tokenizer": None}, ConfigError, "data.tokenizer is missing"),
        ({"model__config": {**SMALL, "vocab_size": 101}}, InputError, "259 tokens.*vocabulary of 101"),
        ({"training__label_smoothing": 0.1}, ConfigError, "label_smoothing is for classifiers"),
        ({"training__class_weights": "balanced"}, ConfigError, "class_weights is for classifiers"),
        ({"data__options": {"sequence_length": 10**6}}, DataError, "fill no sequence"),
        ({"data__options": {"sequenc_length": 8}}, DataError, "sequenc_length"),
        ({"data__name": "vader", "data__root": None}, ConfigError, "vader is data for text-classification"),
        ({"data__name": "mqar", "data__root": None, "data__options": {}}, ConfigError, "made of tokens"),
    ],
)
def test_recipes_that_cannot_train_say_why(texts, changes, error, message, tmp_path):
    with pytest.raises(error, match=message):
        train(bad(texts, **changes), tmp_path / "run")


def test_the_metric_must_be_of_the_task():
    values = {
        "model": {"name": "hybrid_lm_test"},
        "data": {"name": "austen_mini"},
        "evaluation": {"metric": "f1_macro"},
    }
    with pytest.raises(ConfigError, match=r"unknown metric 'f1_macro'.*bits_per_byte"):
        recipe_from_dict(values)


def test_wsd_is_stable_then_falls(texts):
    plan = recipe(texts, scheduler="wsd", decay_ratio=0.25, warmup_ratio=0.1, max_steps=100, min_learning_rate=3e-5)
    schedule = make_schedule(plan.training, updates_per_epoch=7)
    values = [schedule(step) for step in range(101)]
    assert values[0] == 0
    assert values[5] == pytest.approx(1.5e-3)
    assert set(values[10:76]) == {3e-3}
    assert values[76] < 3e-3
    assert values[88] == pytest.approx(3e-5 + (3e-3 - 3e-5) * 12 / 25)
    assert values[100] == pytest.approx(3e-5)


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "DecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def on_two(program: list[str], words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A command on two processes of the CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", *program, *words]
    everything = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=everything)


@pytest.mark.slow
def test_fsdp2_on_two_processes_trains_as_one(texts, tmp_path):
    """Weights, gradients and AdamW's state lie in two halves; losses and final weights are those of one process."""
    import yaml

    from hybridzoo.training.recipe import recipe_to_dict

    path = tmp_path / "recipe.yaml"
    runs = {}
    for world in (1, 2):
        plan = recipe(texts, options={"document_masks": False}, batch_size=8 // world, max_steps=4, clip_grad_norm=1.0)
        plan.model.config = {**SMALL, "pattern": "DH"}  # meta tokens, a scan, and attention
        path.write_text(yaml.safe_dump(recipe_to_dict(plan)))
        runs[world] = tmp_path / f"run{world}"
        if world == 1:
            train(plan, runs[1])
    program = [str(ROOT / "tests" / "training" / "fsdp_on_cpu.py"), "train"]
    done = on_two(program, [str(path), "--run-dir", str(runs[2])], **FSDP)
    assert done.returncode == 0, done.stderr[-4000:]
    logs = [[r["loss"] for r in read_log(f / "log.jsonl") if "loss" in r] for f in runs.values()]
    assert len(logs[0]) == 4
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    one, two = (load_file(f / "model.safetensors") for f in runs.values())
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4)
    metrics = [json.loads((f / "run.json").read_text())["metrics"] for f in runs.values()]
    assert metrics[0]["bits_per_byte"] == pytest.approx(metrics[1]["bits_per_byte"], rel=1e-4)
    sharded = runs[2] / "checkpoints" / "checkpoint-4"
    assert load_file(sharded / "model.safetensors").keys() - {"lm_head.weight"} == one.keys()  # tied, twice
    refused = on_two(program, [str(path), "training.ema_decay=0.9", "--run-dir", str(tmp_path / "no")], **FSDP)
    assert refused.returncode != 0
    assert "training.ema_decay needs the whole model in every process" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_two_processes_train_as_one(texts, tmp_path, stream):
    """Two processes with half the batch each see the same sequences as one, where each row has as many labels."""
    import yaml

    from hybridzoo.training.recipe import recipe_to_dict

    options = {"document_masks": False, **(STREAM if stream else {})}
    folders = {}
    for world in (1, 2):
        plan = recipe(texts, options=options, batch_size=8 // world, max_steps=4)
        path = tmp_path / f"recipe{world}.yaml"
        path.write_text(yaml.safe_dump(recipe_to_dict(plan)))
        folders[world] = tmp_path / f"run{world}"
        if world == 1:
            train(plan, folders[1])
            continue
        done = on_two(["-m", "hybridzoo", "train"], [str(path), "--run-dir", str(folders[2])])
        assert done.returncode == 0, done.stderr[-4000:]
    logs = [[r["loss"] for r in read_log(f / "log.jsonl") if "loss" in r] for f in folders.values()]
    assert len(logs[0]) == len(logs[1]) == 4
    metrics = [json.loads((f / "run.json").read_text())["metrics"] for f in folders.values()]
    if stream:  # documents are dealt out to the processes: other sequences, the same text
        assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], rel=0.05)
        names = {p.name for p in (folders[2] / "checkpoints" / "checkpoint-4").glob("stream-*")}
        assert names == {"stream-0.json", "stream-1.json"}
    else:
        assert logs[0] == pytest.approx(logs[1], rel=1e-4)
        assert metrics[0]["bits_per_byte"] == pytest.approx(metrics[1]["bits_per_byte"], rel=1e-4)
