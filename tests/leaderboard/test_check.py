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


# Data, tracks, sources, moves --------------------------------------------------------------------------------------


def test_results_of_one_task_on_other_data_are_found_unless_explained(board):
    results, outputs = board
    path = files(results)[1]
    edit(path, lambda v: v["task"]["dataset"].update(sha256="0" * 64))
    build(results, outputs)
    (problem,) = check(results, outputs)
    assert problem.kind == "data"
    assert "other data" in problem.text
    edit(path, lambda v: v["provenance"].update(notes="explained: the authors repaired two labels"))
    build(results, outputs)
    assert check(results, outputs) == []


def test_the_hash_of_embedded_data_is_the_one_of_this_code(tmp_path):
    from board_results import TEXT, write

    results = tmp_path / "results"
    write(make_result("baseline_tfidf", {"f1_macro": 60.0}, family="baseline", **TEXT), results)
    outputs = build(results, Outputs.in_folder(tmp_path / "out"))
    problems = [p for p in check(results, outputs, rescore=False) if p.kind == "data"]
    assert len(problems) == 1
    assert "embedded set 'vader'" in problems[0].text


@pytest.mark.parametrize(("task", "track"), [("fashion_mnist", "mini"), ("vader", "full")])
def test_a_track_that_is_not_the_datas_is_found(tmp_path, task, track):
    from board_results import TEXT, write

    results = tmp_path / "results"
    more = {**TEXT, "track": track} if task == "vader" else {"track": track}
    values = {"f1_macro": 60.0} if task == "vader" else None
    write(make_result("iformer_mini" if task != "vader" else "baseline_x", values, **more), results)
    outputs = build(results, Outputs.in_folder(tmp_path / "out"))
    assert "track" in [p.kind for p in check(results, outputs, rescore=False)]


@pytest.mark.parametrize(
    "change", [{"source_url": "ftp://x"}, {"source": "T"}, {"source_url": "javascript:alert(1)"}], ids=str
)
def test_a_paper_row_without_a_real_source_is_found(tmp_path, change):
    from board_results import write

    results = tmp_path / "results"
    made = make_result("iformer_small", {"top1": 83.4}, status="paper")
    write(replace(made, provenance=replace(made.provenance, **change)), results)
    outputs = build(results, Outputs.in_folder(tmp_path / "out"))
    assert [p.kind for p in check(results, outputs)] == ["source"]


@pytest.mark.parametrize(("now", "same", "moved"), [(93.6, True, True), (93.52, True, False), (93.6, False, False)])
def test_a_score_that_moves_needs_a_reason(tmp_path, now, same, moved):
    from board_results import write

    results = tmp_path / "results"
    write(make_result(values={"top1": 93.5}), results)
    later = make_result(values={"top1": now}, commit="f" * 40, date="2026-02-01T12:00:00Z")
    if not same:
        weights = replace(later.model.weights, sha256="0" * 64)
        later = replace(later, model=replace(later.model, weights=weights))
    path = write(later, results)
    outputs = build(results, Outputs.in_folder(tmp_path / "out"))
    found = [p for p in check(results, outputs, rescore=False) if p.kind == "moved"]
    assert len(found) == moved
    if moved:
        assert found[0].path == path
        assert "top1 moved from 93.5 to 93.6" in found[0].text
        edit(path, lambda v: v["provenance"].update(notes="explained: bicubic in place of bilinear resizing"))
        build(results, outputs)
        assert [p for p in check(results, outputs, rescore=False) if p.kind == "moved"] == []


def test_records_of_other_kinds_are_scored_again(tmp_path):
    from hybridzoo.eval.anomaly import score_records
    from hybridzoo.eval.kinds import RecordFile

    rows = [
        {"id": str(i), "class": c, "specie": "x", "label": i % 2, "score": (i % 2) * 0.4 + 0.1 * ((i * 7) % 5)}
        for c in ("bark", "sand")
        for i in range(20)
    ]
    for row in rows[::20]:
        shares = {"p_auroc": 0.9, "p_ap": 0.5, "p_f1max": 0.5, "aupro": 0.8}
        row |= {"pixel": {"ader": shares, "exact": shares}, "pixels": [8, 8]}
    data = RecordFile("texture_ad", (), rows).to_bytes()
    metrics, details = score_records(rows, load_task("texture_ad").metrics)
    made = make_result("mambaad_mini", {"mad_ader": 1.0}, task="texture_ad", family="mambaad", data="texture_ad",
                       primary="mad_ader", n=(40, 40))  # fmt: skip
    made = replace(made, metrics=metrics, details=details)
    import hashlib

    reference = PredictionsRef(path="p.jsonl.gz", sha256=hashlib.sha256(data).hexdigest())
    made = replace(made, provenance=replace(made.provenance, predictions=reference))
    _, path = write_result(made, data, tmp_path / "results")
    outputs = build(tmp_path / "results", Outputs.in_folder(tmp_path / "out"))
    assert check(tmp_path / "results", outputs) == []
    edit(path, lambda v: v["metrics"]["i_auroc"].update(value=99.9))
    edit(path, lambda v: v["details"]["per_class"]["bark"].update(i_ap=1.5))
    texts = [str(p) for p in check(tmp_path / "results", outputs) if p.kind == "metric"]
    assert len(texts) == 2
    assert "i_auroc = 99.9" in texts[0]
    assert "table of classes" in texts[1]


def test_pictures_of_no_result_are_found(board):
    results, outputs = board
    folder = files(results)[0].parent
    (folder / f"{files(results)[0].stem}.heat.png").write_bytes(b"x")
    assert kinds(results, outputs) == ["stale"] or kinds(results, outputs) == []
    (folder / "20250101-000000-aaaaaaaa.heat.png").write_bytes(b"x")
    assert "orphan" in kinds(results, outputs)


def test_a_page_is_not_stale_because_another_pillow_encodes_its_pictures(tmp_path):
    from board_results import with_pictures

    outputs = build(with_pictures(tmp_path / "results"), Outputs.in_folder(tmp_path / "out"))
    text = outputs.page.read_text(encoding="utf-8")
    assert text.count("data:image/webp;base64,") == 3
    import re

    outputs.page.write_text(re.sub(r"base64,[^\"]{8}", "base64,AAAAAAAA", text), encoding="utf-8")
    assert [p for p in check(tmp_path / "results", outputs, rescore=False) if p.kind == "stale"] == []
    picture = next((tmp_path / "results").rglob("*.heat.png"))
    from PIL import Image

    Image.new("RGB", (800, 320)).save(picture)
    stale = [p.path.name for p in check(tmp_path / "results", outputs, rescore=False) if p.kind == "stale"]
    assert stale == ["index.html"]


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
