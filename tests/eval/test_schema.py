"""Result schema v1: round trip, strictness, and files that are never overwritten."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from hybridzoo._paths import asset_root
from hybridzoo.eval.schema import (
    DatasetRef,
    Metric,
    ModelRef,
    PredictionsRef,
    Provenance,
    Result,
    ResultError,
    Run,
    TaskRef,
    check_location,
    read_results,
    write_new,
)
from hybridzoo.eval.tasks import TASKS


def measured(**changes: Any) -> Result:
    values: dict[str, Any] = {
        "model": ModelRef(name="toy", tag="a1", params=10, settings={"max_length": 128}),
        "task": TaskRef(
            name="vader",
            version=1,
            protocol="80/10/10",
            primary="accuracy",
            dataset=DatasetRef(id="vader", split="test", n_total=10, n_used=10, sha256="ab" * 32),
        ),
        "metrics": {"accuracy": Metric(value=81.5, stderr=1.25), "nll": Metric(value=0.5, unit="nats")},
        "track": "mini",
        "run": Run(
            date="2026-01-31T12:34:56Z",
            command="hybridzoo eval",
            seed=0,
            dtype="float32",
            device="CPU",
            git_commit="c" * 40,
        ),
        "provenance": Provenance(
            status="measured", predictions=PredictionsRef(path="x.predictions.jsonl.gz", sha256="0" * 64)
        ),
    }
    return Result(**{**values, **changes})


def paper() -> Result:
    provenance = Provenance(status="paper", source="Table 5", source_url="https://arxiv.org/abs/1")
    return measured(run=None, provenance=provenance)


@pytest.mark.parametrize("make", [measured, paper])
def test_round_trip(make: Any, tmp_path: Path) -> None:
    result = make()
    path = result.path_in(tmp_path)
    text = result.to_json(path)
    assert Result.from_json(path) == Result.from_json(text) == result
    assert json.loads(text)["schema"] == 1
    assert read_results(tmp_path) == [(path, result)]
    assert path.relative_to(tmp_path).as_posix() in (
        "vader/toy.a1/20260131-123456-cccccccc.json",
        "vader/toy.a1/paper.json",
    )


def test_never_overwritten(tmp_path: Path) -> None:
    path = measured().path_in(tmp_path)
    measured().to_json(path)
    before = path.read_bytes()
    with pytest.raises(ResultError, match="never overwritten"):
        measured(track="subset").to_json(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_new(tmp_path / "a", b"one")
    assert (tmp_path / "a").read_bytes() == b"one"
    with pytest.raises(ResultError, match="never overwritten"):
        write_new(tmp_path / "a", b"two")


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultError, match=r"cannot write .* --out"):
        write_new(tmp_path / "file" / "r.json", b"x")


def test_disk_that_takes_no_more(tmp_path: Path) -> None:
    """A limit on the file size fails a write in the middle, as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ResultError, match=r"cannot write .*: File too large"):
            write_new(tmp_path / "r.json", b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def edit(path: str, value: Any) -> dict[str, Any]:
    values = copy.deepcopy(measured().to_dict())
    inner, *keys = values, *path.split(".")
    for key in keys[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("trak", "mini", r"unknown key 'trak'; did you mean 'track'"),
        ("model.nmae", "x", r"result.model: unknown key 'nmae'; did you mean 'name'"),
        ("task.primary", KeyError, r"result.task: missing primary"),
        ("schema", 2, r"schema 2; this version of hybridzoo reads 1"),
        ("track", "synthetic", r"track must be one of full, subset, mini"),
        ("provenance.status", "reproduced", r"status must be one of measured, paper"),
        ("metrics", {}, r"metrics is empty"),
        ("metrics.accuracy.value", 815.0, r"in %, so 0 to 100"),
        ("metrics.accuracy.value", "81.5", r"metrics.accuracy.value: expected float, got str"),
        ("metrics.accuracy.stderr", -1.0, r"stderr must be 0 or more"),
        ("metrics.accuracy.unit", "percent", r"unit must be one of"),
        ("task.primary", "f1", r"primary metric 'f1' is not among accuracy, nll"),
        ("task.dataset.n_used", 11, r"n_used 11 must be 1 to n_total"),
        ("task.dataset.n_used", 5, r"5 of 10 samples were used, so track must be 'subset'"),
        ("task.dataset.n_used", True, r"expected int, got bool"),
        ("task.dataset.sha256", "abc", r"64 hex digits"),
        ("model.name", "a/b", r"model.name 'a/b' must be letters"),
        ("run", None, r"a measured row needs run"),
        ("run.date", "31.01.2026", r"ISO 8601"),
        ("provenance.predictions", None, r"needs provenance.predictions"),
        ("provenance.predictions.path", "../x.gz", r"a file beside the result"),
        ("metrics", [], r"result.metrics: expected an object, got list"),
    ],
)
def test_refused(path: str, value: Any, message: str) -> None:
    with pytest.raises(ResultError, match=message):
        Result.from_dict(edit(path, value))


def test_nan_is_refused() -> None:
    with pytest.raises(ResultError, match="finite number"):
        measured(metrics={"accuracy": Metric(value=float("nan"))}).to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"source": None}, "needs provenance.source"), ({"source_url": None}, "needs provenance.source")],
)
def test_paper_rows_name_their_source(change: dict[str, Any], message: str) -> None:
    values = paper().to_dict()
    values["provenance"] |= change
    with pytest.raises(ResultError, match=message):
        Result.from_dict(values)


@pytest.mark.parametrize(
    "name",
    [
        "vader/other/20260131-123456-cccccccc.json",
        "vader/toy.a1/result.json",
        "20260131-123456-cccccccc.json",
        "vader/toy.a1/paper.json",
    ],
)
def test_wrong_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(ResultError, match=r"belongs to vader/toy.a1|paper rows and only those"):
        check_location(measured(), tmp_path / name, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"schema": 1}'])
def test_no_result(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ResultError, match=r"r\.json"):
        Result.from_json(tmp_path / "r.json")


def test_committed_results_are_valid() -> None:
    found = read_results(asset_root("eval") / "results")
    assert len(found) >= 12
    for path, result in found:
        assert result.task.name in TASKS, path
        task = TASKS[result.task.name]
        assert result.task.dataset.id == task.data, path
        assert result.task.primary == task.primary, path
        if result.run is not None:
            reference = result.provenance.predictions
            assert reference is not None, path
            assert (path.parent / reference.path).is_file(), path


def test_committed_paper_rows() -> None:
    """The numbers as they stand in the sources that the rows name."""
    rows = {
        (r.task.name, r.model.full_name): r.metrics
        for _, r in read_results(asset_root("eval") / "results")
        if r.run is None
    }
    top1 = {m: v["top1"].value for (t, m), v in rows.items() if t == "imagenet1k"}
    assert top1 == {
        "iformer_small.sail_in1k": 83.4,
        "iformer_base.sail_in1k": 84.6,
        "iformer_large.sail_in1k": 84.8,
        "iformer_small_384.sail_in1k": 84.6,
        "iformer_base_384.sail_in1k": 85.7,
        "iformer_large_384.sail_in1k": 85.8,
    }
    text = {
        ("imdb_paper", ""): (92.36, 92.35),
        ("twitter_airline", ""): (80.74, 80.73),
        ("sentiment140", ""): (82.25, 82.25),
        ("imdb_paper", ".replication"): (92.32, 92.32),
        ("twitter_airline", ".replication"): (85.66, 86.03),
        ("sentiment140", ".replication"): (89.41, 89.41),
    }
    for (task, kind), (accuracy, f1) in text.items():
        metrics = rows[task, f"roberta_bilstm_base_paper{kind}"]
        assert (metrics["accuracy"].value, metrics["f1_weighted"].value) == (accuracy, f1)
