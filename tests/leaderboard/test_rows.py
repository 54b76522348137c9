"""Which results are compared, how seeds join, and who is best."""

from __future__ import annotations

import importlib.util
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from board_results import TEXT, make_result, sample, write

from hybridzoo.eval.leaderboard.rows import load_tables, metric_label
from hybridzoo.eval.schema import ModelRef, ResultError


def rows_of(results, task="fashion_mnist"):
    table = next(t for t in load_tables(results) if t.name == task)
    return {(cohort.kind, row.label): row for cohort, row in table.rows}, table


def test_seeds_become_mean_and_standard_deviation(tmp_path):
    rows, _ = rows_of(sample(tmp_path))
    score = rows["measured-full", "iformer_mini"].scores["top1"]
    assert score.value == pytest.approx(93.8)
    assert score.error == pytest.approx(statistics.stdev([93.6, 94.0, 93.8]))
    assert score.kind == "sd"
    single = rows["measured-full", "baseline_logistic"].scores["top1"]
    assert (single.error, single.kind) == (0.25, "stderr")


def test_runs_of_a_recipe_join_across_their_run_folders(tmp_path):
    for seed in range(2):
        made = make_result(values={"top1": 90.0 + seed}, seed=seed, date=f"2026-01-31T12:00:0{seed}Z")
        run = replace(made.run, recipe="iFormer mini on Fashion-MNIST")
        write(replace(made, model=replace(made.model, tag=f"fm_s{seed}"), run=run), tmp_path)
    rows, _ = rows_of(tmp_path)
    (row,) = rows.values()
    assert row.label == "iformer_mini"
    assert len(row.entries) == 2
    assert row.scores["top1"].value == 90.5


def test_thresholds_fitted_to_a_seed_do_not_part_the_seeds(tmp_path):
    for seed in range(2):
        made = make_result(values={"top1": 90.0 + seed}, seed=seed, date=f"2026-01-31T12:00:0{seed}Z")
        settings = {"image_size": 128, "threshold": 0.1 + seed, "pixel_threshold": 0.2 + seed}
        write(replace(made, model=replace(made.model, settings=settings)), tmp_path)
    rows, _ = rows_of(tmp_path)
    (row,) = rows.values()
    assert len(row.entries) == 2


def test_the_same_weights_in_another_precision_are_another_row(tmp_path):
    write(make_result(values={"top1": 90.0}), tmp_path)
    again = make_result(values={"top1": 89.0}, date="2026-01-31T12:00:01Z")  # newer, and no repetition of the first
    write(replace(again, run=replace(again.run, dtype="bfloat16")), tmp_path)
    _, table = rows_of(tmp_path)
    assert {row.label: row.scores["top1"].value for _, row in table.rows} == {
        "iformer_mini (float32)": 90.0,
        "iformer_mini (bfloat16)": 89.0,
    }


def test_other_settings_and_recipes_stay_apart(tmp_path):
    first = make_result(values={"top1": 90.0})
    run = replace(first.run, recipe="short")
    write(replace(first, run=run), tmp_path)
    second = make_result(values={"top1": 91.0}, date="2026-01-31T12:00:01Z")
    write(replace(second, run=replace(second.run, recipe="long")), tmp_path)
    settings = replace(second.model, settings={"image_size": 64})
    third = replace(second, model=settings, run=replace(second.run, recipe="long", date="2026-01-31T12:00:02Z"))
    write(third, tmp_path)
    _, table = rows_of(tmp_path)
    labels = sorted(row.label for _, row in table.rows)
    assert labels == ["iformer_mini (long)", "iformer_mini (long)", "iformer_mini (short)"]


def test_tracks_status_and_papers_never_rank_together(tmp_path):
    rows, table = rows_of(sample(tmp_path))
    assert [c.kind for c in table.cohorts] == ["measured-full", "measured-subset", "paper"]
    paper = rows["paper", "papernet"]
    assert paper.rank is None
    assert paper.best == ()
    subset = rows["measured-subset", "iformer_test"]
    assert subset.rank == 1
    assert subset.best == ()  # alone in its group: nothing to be better than
    full = {label: row for (kind, label), row in rows.items() if kind == "measured-full"}
    assert [full[m].rank for m in ("iformer_mini", "iformer_mini_attention", "baseline_logistic")] == [1, 2, 3]
    assert "top1" in full["iformer_mini"].best  # although the paper row states 96.0
    assert full["iformer_mini_attention"].best == ("ece",)  # lower is better


def test_other_data_or_another_number_of_samples_is_another_group(tmp_path):
    write(make_result(values={"top1": 90.0}), tmp_path)
    write(make_result("iformer_small", values={"top1": 91.0}, data="fashion_mnist_v2"), tmp_path)
    _, table = rows_of(tmp_path)
    assert len(table.cohorts) == 2
    assert len({c.label for c in table.cohorts}) == 2


def test_equal_values_share_a_rank_and_the_bold(tmp_path):
    for name, value in (("a", 90.0), ("b", 90.0), ("c", 89.0)):
        write(make_result(name, {"top1": value}), tmp_path)
    rows, _ = rows_of(tmp_path)
    assert [rows["measured-full", m].rank for m in "abc"] == [1, 1, 3]
    assert [rows["measured-full", m].best for m in "abc"] == [("top1",), ("top1",), ()]


def test_superseded_and_repeated_runs_do_not_count(tmp_path):
    old = write(make_result(values={"top1": 99.0}), tmp_path)
    again = make_result(values={"top1": 91.0}, date="2026-02-01T12:00:00Z", commit="f" * 40)
    write(again, tmp_path)
    rows, _ = rows_of(tmp_path)
    row = rows["measured-full", "iformer_mini"]
    assert row.scores["top1"].value == 91.0  # the newest run of the same weights
    assert len(row.entries) == 1
    other = make_result("iformer_small", {"top1": 92.0}, supersedes=str(old.relative_to(tmp_path)))
    write(other, tmp_path)
    rows, _ = rows_of(tmp_path)
    assert rows["measured-full", "iformer_mini"].scores["top1"].value == 91.0


def test_a_metric_that_not_every_seed_has_is_left_out(tmp_path):
    write(make_result(values={"top1": 90.0, "ece": 0.1}, seed=0), tmp_path)
    write(make_result(values={"top1": 91.0}, seed=1, date="2026-01-31T12:00:01Z"), tmp_path)
    rows, _ = rows_of(tmp_path)
    assert set(rows["measured-full", "iformer_mini"].scores) == {"top1"}


def test_the_tasks_own_metric_ranks(tmp_path):
    write(make_result("a", {"accuracy": 80.0, "f1_macro": 60.0}, **TEXT), tmp_path)
    write(make_result("b", {"accuracy": 70.0, "f1_macro": 65.0}, **TEXT), tmp_path)
    rows, table = rows_of(tmp_path, "vader")
    assert table.primary == "f1_macro"
    assert rows["measured-mini", "b"].rank == 1


@pytest.mark.parametrize(
    ("value", "stderr", "at_chance"), [(9.0, 0.1, True), (10.4, 0.25, True), (10.6, 0.25, False), (10.1, None, False)]
)
def test_a_score_within_two_errors_of_guessing_is_at_chance(tmp_path, value, stderr, at_chance):
    write(make_result(values={"top1": value}, stderr=stderr), tmp_path)
    write(make_result("a", {"accuracy": 1.0, "f1_macro": 1.0}, **TEXT), tmp_path)
    rows, table = rows_of(tmp_path)
    assert rows["measured-full", "iformer_mini"].at_chance == at_chance
    assert rows["measured-full", "iformer_mini"].rank == 1  # it stays on the board
    assert table.about.endswith("Guessing gives 10.")
    rows, table = rows_of(tmp_path, "vader")  # its classes are not equally frequent: nothing is stated
    assert not rows["measured-mini", "a"].at_chance
    assert "Guessing" not in table.about


def test_the_overview_of_the_readme_praises_no_guess(tmp_path, monkeypatch):
    path = Path(__file__).parents[2] / "docs" / "generate.py"
    spec = importlib.util.spec_from_file_location("docs_generate", path)
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    monkeypatch.setattr("hybridzoo.eval.leaderboard.build.default_results", lambda: tmp_path)
    write(make_result("iformer_mini", {"top1": 10.3}), tmp_path)
    write(make_result("iformer_test", {"top1": 10.1}), tmp_path)
    shown = generator.overview(None, path.parent)
    assert "fashion_mnist: Top-1 at chance (10.30 ± 0.25) `iformer_mini`" in shown
    write(make_result("iformer_small", {"top1": 90.0}), tmp_path)
    shown = generator.overview(None, path.parent)
    assert "fashion_mnist: Top-1 **90.00** ± 0.25 `iformer_small`" in shown
    assert "at chance" not in shown


def test_unknown_task_is_refused_by_name(tmp_path):
    made = make_result()
    write(replace(made, task=replace(made.task, name="no_such_task")), tmp_path)
    with pytest.raises(ResultError, match="no_such_task"):
        load_tables(tmp_path)


def test_no_results_give_no_tables(tmp_path):
    assert load_tables(tmp_path) == []
    assert load_tables(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("name", "label"), [("top1", "Top-1"), ("f1_macro", "Macro F1"), ("accuracy", "Accuracy"), ("nll", "NLL")]
)
def test_metric_labels(name, label):
    assert metric_label(name) == label


def test_a_model_without_family_or_parameters_is_shown(tmp_path):
    made = make_result("baseline_tfidf", {"f1_macro": 60.0}, **TEXT)
    write(replace(made, model=ModelRef(name="baseline_tfidf")), tmp_path)
    rows, _ = rows_of(tmp_path, "vader")
    row = rows["measured-mini", "baseline_tfidf"]
    assert (row.family, row.params) == ("other", None)
