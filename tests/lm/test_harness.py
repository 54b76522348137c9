"""lm-evaluation-harness on a model of the zoo, with a local task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hybridzoo import build_model
from hybridzoo.data.text_stream_tokenizers import byte_tokenizer
from hybridzoo.errors import ConfigError, DataError
from hybridzoo.eval.lm.suites import SUITES, parse_tasks

TASK = """
task: zoo_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
metadata: {{version: 2.0}}
"""


def test_suites_have_the_papers_tasks_and_shots():
    assert dict(SUITES["hymba_base"].tasks) == {
        "mmlu": 5,
        "piqa": 0,
        "hellaswag": 0,
        "winogrande": 0,
        "arc_easy": 0,
        "arc_challenge": 0,
        "squad_completion": 1,
    }
    assert set(SUITES["deltanet"].tasks) >= {"wikitext", "lambada_openai"}
    assert SUITES["hymba_instruct"].chat
    assert parse_tasks("deltanet") is SUITES["deltanet"]


def test_tasks_are_named_with_their_shots():
    assert dict(parse_tasks("mmlu@5, piqa", num_fewshot=1).tasks) == {"mmlu": 5, "piqa": 1}
    assert dict(parse_tasks("piqa").tasks) == {"piqa": 0}
    with pytest.raises(ConfigError, match="behind the @"):
        parse_tasks("mmlu@five")
    with pytest.raises(ConfigError, match="needs tasks"):
        parse_tasks(" , ")


def test_a_local_task_is_scored_as_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("lm_eval", reason="needs the extra lm")
    from hybridzoo.eval.lm.harness import run_harness

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"Q{i}: the", "choices": ["cat", "dog", "tree"], "answer": i % 3} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "zoo_choice.yaml").write_text(TASK.format(path=tmp_path / "rows.jsonl"))
    torch.manual_seed(1)
    model = build_model("hybrid_lm_test", vocab_size=259, bos_token_id=1, eos_token_id=2).eval()
    tokenizer = byte_tokenizer()
    score = run_harness(model, tokenizer, parse_tasks("zoo_choice"), include_path=tmp_path)[0]
    right = []
    for row in rows:
        chances = []
        for choice in row["choices"]:
            ids = torch.tensor([tokenizer(f"{row['question']} {choice}")["input_ids"]])
            with torch.no_grad():
                logs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            picked = logs.gather(1, ids[0, 1:, None])[:, 0]
            chances.append(float(picked[-len(choice) - 1 :].sum()))
        right.append(chances.index(max(chances)) == row["answer"])
    assert score.metrics["acc"][0] == pytest.approx(sum(right) / 9)
    assert [bool(s["acc"]) for s in sorted(score.samples, key=lambda s: s["id"])] == right
    assert (score.n, score.n_total, score.version, score.shots, score.primary) == (9, 9, "2.0", 0, "acc")
    part = run_harness(model, tokenizer, parse_tasks("zoo_choice@1"), include_path=tmp_path, limit=4)[0]
    assert (part.n, part.n_total, part.shots) == (4, 9, 1)


def test_tasks_that_cannot_run_say_why(tmp_path: Path):
    pytest.importorskip("lm_eval", reason="needs the extra lm")
    from hybridzoo.eval.lm.harness import run_harness

    model = build_model("hybrid_lm_test", vocab_size=259).eval()
    with pytest.raises(ConfigError, match=r"hellaswg.*hellaswag"):
        run_harness(model, byte_tokenizer(), parse_tasks("hellaswg"))
    with pytest.raises(DataError, match="Hugging Face Hub"):
        run_harness(model, byte_tokenizer(), parse_tasks("piqa"))
    with pytest.raises(DataError, match="no folder"):
        run_harness(model, byte_tokenizer(), parse_tasks("piqa"), include_path=tmp_path / "none")


def test_without_the_harness_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    import sys

    from hybridzoo.eval.lm.harness import task_manager

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"hybridzoo\[lm\]"):
        task_manager()


def test_the_command_writes_results_that_can_be_scored_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("lm_eval", reason="needs the extra lm")
    from typer.testing import CliRunner

    from hybridzoo.cli import app
    from hybridzoo.eval import Result, rescore

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"Q{i}: the", "choices": ["cat", "dog"], "answer": i % 2} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "zoo_choice.yaml").write_text(TASK.format(path=tmp_path / "rows.jsonl"))
    folder = tmp_path / "model"
    build_model("hybrid_lm_test", vocab_size=259, bos_token_id=1, eos_token_id=2).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    words = [
        "eval",
        str(folder),
        "lm_eval:zoo_choice",
        "--option",
        f"include_path={tmp_path}",
        "--out",
        str(tmp_path / "out"),
    ]
    run = CliRunner().invoke(app, [*words, "--limit", "4", "--batch-size", "2"])
    assert run.exit_code == 0, run.output + str(run.exception)
    (path,) = (tmp_path / "out").rglob("*.json")
    assert path.parts[-3:-1] == ("lm_eval_zoo_choice_0shot", "model")
    result = Result.from_json(path)
    assert (result.track, result.task.dataset.n_used, result.task.dataset.n_total) == ("subset", 4, 6)
    assert result.task.protocol == "lm-evaluation-harness, 0-shot"
    assert rescore(path)["acc"].value == result.metrics["acc"].value
    for more, message in (
        (["--root", "x"], "--root is not for"),
        (["--option", "shots=3"], "option of lm_eval 'shots'"),
    ):
        run = CliRunner().invoke(app, [*words, *more])
        assert run.exit_code != 0
        assert message in str(run.exception)


def test_perplexities_are_scored_again_from_log_likelihoods():
    import math

    from hybridzoo.eval.lm.results import rescore_samples

    rows = [
        {"word_perplexity": [-6.0, 2], "perplexity": -1.0, "acc": 1.0},
        {"word_perplexity": [-3.0, 1], "perplexity": -3.0, "acc": 0.0},
    ]
    found = rescore_samples(rows, ["word_perplexity", "perplexity", "acc"])
    assert found["word_perplexity"].value == pytest.approx(math.exp(3))
    assert found["perplexity"].value == pytest.approx(math.exp(2))
    assert (found["acc"].value, found["acc"].unit) == (50.0, "%")
    with pytest.raises(ConfigError, match="no values of 'f1'"):
        rescore_samples(rows, ["f1"])
