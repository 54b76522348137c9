"""`leaderboard check`: each kind of problem is found, and nothing else is reported."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from board_results import make_result

from hybridzoo.eval.harness import write_result
from hybridzoo.eval.leaderboard.build import Outputs, build
from hybridzoo.eval.leaderboard.check import check
from hybridzoo.eval.predictions import PredictionFile, Predictions, score
from hybridzoo.eval.schema import PredictionsRef, Result
from hybridzoo.eval.tasks import load_task

COUNT, CLASSES = 60, 10


def measured(results: Path, name: str = "iformer_mini", seed: int = 0, commit: str = "1a2b3c4d" * 5) -> Path:
    """A result as the harness writes it, from made-up logits."""
    task = load_task("fashion_mnist")
    random = np.random.default_rng(seed)
    labels = np.arange(COUNT) % CLASSES
    logits = random.normal(size=(COUNT, CLASSES)) + 2 * np.eye(CLASSES)[labels]
    names = tuple(f"class {i}" for i in range(CLASSES))
    ids = [f"test/{i}" for i in range(COUNT)]
    data = PredictionFile(task.name, names, Predictions.from_logits(ids, labels, logits)).to_bytes()
    metrics, details = score(PredictionFile.from_bytes(data), task, seed=0)
    import hashlib

    made = make_result(name, {"top1": 1.0}, seed=seed, commit=commit, n=(COUNT, COUNT))
    reference = PredictionsRef(path="p.jsonl.gz", sha256=hashlib.sha256(data).hexdigest())
    provenance = replace(made.provenance, predictions=reference)
    return write_result(replace(made, metrics=metrics, details=details, provenance=provenance), data, results)[1]


@pytest.fixture
def board(tmp_path) -> tuple[Path, Outputs]:
    results = tmp_path / "results"
    measured(results)
    measured(results, "iformer_small", seed=1)
    return results, build(results, Outputs.in_folder(tmp_path / "out"))


def kinds(results: Path, outputs: Outputs) -> list[str]:
    return sorted(p.kind for p in check(results, outputs))


def edit(path: Path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def files(results: Path) -> list[Path]:
    return sorted(results.rglob("*.json"))


def test_a_good_board_has_no_problem(board):
    assert check(*board) == []


def test_a_changed_metric_is_found(board):
    results, outputs = board
    edit(files(results)[0], lambda v: v["metrics"]["top1"].update(value=99.0))
    problems = check(results, outputs)
    assert [p.kind for p in problems] == ["metric", "stale", "stale", "stale"]
    assert "top1 = 99.0" in str(problems[0])


def test_a_changed_error_bar_and_a_changed_confusion_matrix_are_found(board):
    results, outputs = board
    edit(files(results)[0], lambda v: v["metrics"]["top1"].update(stderr=0.001))
    edit(files(results)[1], lambda v: v["details"]["confusion_matrix"]["counts"][0].__setitem__(0, 999))
    texts = [str(p) for p in check(results, outputs) if p.kind == "metric"]
    assert len(texts) == 2
    assert "has the error 0.001" in texts[0]
    assert "confusion matrix" in texts[1]


def test_a_metric_that_predictions_do_not_give_is_found(board):
    results, outputs = board
    edit(files(results)[0], lambda v: v["metrics"].update(invented={"value": 1.0, "stderr": None, "unit": "%"}))
    assert "cannot be computed" in str(next(p for p in check(results, outputs) if p.kind == "metric"))


def test_missing_and_changed_predictions_are_found(board):
    results, outputs = board
    first, second = sorted(results.rglob("*.predictions.jsonl.gz"))
    first.unlink()
    second.write_bytes(gzip.compress(b"{}\n"))
    assert kinds(results, outputs) == ["predictions", "predictions"]


def test_another_number_of_predictions_is_found(board):
    results, outputs = board
    edit(files(results)[0], lambda v: v["task"]["dataset"].update(n_used=10, n_total=10))
    assert "but there are 60 predictions" in " ".join(map(str, check(results, outputs)))


def test_a_broken_file_is_found_and_the_others_are_still_checked(board):
    results, outputs = board
    files(results)[0].write_text("{not json")
    edit(files(results)[1], lambda v: v["metrics"]["top1"].update(value=99.0))
    assert kinds(results, outputs) == ["invalid", "metric"]


def test_a_file_in_the_wrong_place_is_found(board):
    results, outputs = board
    path = files(results)[0]
    target = results / "vader" / path.parent.name / path.name
    target.parent.mkdir(parents=True)
    path.rename(target)
    assert "invalid" in kinds(results, outputs)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda v: v["task"].update(primary="nll"), "ranks by 'top1'"),
        (lambda v: v["task"].update(version=99), "newer than this code"),
        (lambda v: v["task"].update(protocol="other"), "other"),
        (lambda v: v["model"].update(family="no_such"), "unknown family 'no_such'"),
        (lambda v: v.update(supersedes="fashion_mnist/x/y.json"), "supersedes"),
    ],
)
def test_facts_that_cannot_be_true_are_found(board, change, text):
    results, outputs = board
    edit(files(results)[0], change)
    found = [str(p) for p in check(results, outputs) if p.kind == "invalid"]
    assert len(found) == 1
    assert text in found[0]


def test_the_same_measurement_twice_is_found(board):
    results, outputs = board
    again = measured(results)
    assert again.name.endswith("-2.json")
    build(results, outputs)
    problems = check(results, outputs)
    assert [p.kind for p in problems] == ["duplicate"]
    first = again.with_name(again.name.replace("-2.json", ".json"))
    assert {str(again), str(first)} == {str(p) for p in (again, first) if str(p) in str(problems[0])}


def test_the_same_weights_at_another_commit_are_no_duplicate(board):
    results, outputs = board
    measured(results, commit="f" * 40)
    build(results, outputs)
    assert check(results, outputs) == []


def test_left_over_predictions_are_found(board):
    results, outputs = board
    extra = next(results.rglob("*.predictions.jsonl.gz"))
    (extra.parent / "20250101-000000-aaaaaaaa.predictions.jsonl.gz").write_bytes(extra.read_bytes())
    assert kinds(results, outputs) == ["orphan"]


def test_stale_and_missing_files_are_found(board):
    results, outputs = board
    outputs.markdown.write_text(outputs.markdown.read_text() + "edited by hand\n")
    outputs.csv.unlink()
    problems = check(results, outputs)
    assert sorted((p.kind, p.path.name) for p in problems) == [
        ("stale", "LEADERBOARD.md"),
        ("stale", "leaderboard.csv"),
    ]
    assert all("hybridzoo leaderboard build" in p.text for p in problems)


def test_rescoring_can_be_left_out(board):
    results, outputs = board
    edit(files(results)[0], lambda v: v["metrics"]["top1"].update(value=99.0))
    build(results, outputs)
    assert check(results, outputs, rescore=False) == []


def test_what_the_harness_writes_is_what_the_schema_reads(board):
    results, _ = board
    for path in files(results):
        assert Result.from_json(path).path_in(results).parent == path.parent
