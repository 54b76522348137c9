"""`leaderboard verify`, `submit`, `export`, `serve`: real runs of small models, from files to files."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml
from board_results import make_result, sample, write
from typer.testing import CliRunner

from hybridzoo import build_model
from hybridzoo.cli import app
from hybridzoo.errors import ConfigError
from hybridzoo.eval.harness import run_task
from hybridzoo.eval.leaderboard.build import Outputs, build
from hybridzoo.eval.leaderboard.check import check
from hybridzoo.eval.leaderboard.export import export
from hybridzoo.eval.leaderboard.serve import make_server
from hybridzoo.eval.leaderboard.submit import submit
from hybridzoo.eval.leaderboard.verify import parse_command, verify
from hybridzoo.eval.schema import Result, ResultError


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    """A model folder, and the result of evaluating it on 60 images."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    build_model("iformer_test", num_labels=10).save_pretrained(folder / "model")
    done = run_task(folder / "model", "fashion_mnist_mini", limit=60, out=folder / "results", name="iformer_test")
    assert done.path is not None
    return folder / "model", done.path


def changed(path: Path, target: Path, change) -> Path:
    values = json.loads(path.read_text())
    change(values)
    target.write_text(json.dumps(values))
    return target


# verify -----------------------------------------------------------------------------------------------------------


def test_a_true_result_is_confirmed(run):
    model, path = run
    found = verify(path, model=model)
    assert found.agrees
    assert found.problems == []
    assert {m.name for m in found.metrics} == set(Result.from_json(path).metrics)
    assert all(m.again is not None and m.again.value == pytest.approx(m.stated.value, abs=1e-4) for m in found.metrics)


def test_a_false_metric_other_weights_and_other_data_are_found(run, tmp_path):
    model, path = run
    lie = changed(path, tmp_path / "lie.json", lambda v: v["metrics"]["top1"].update(value=99.0))
    found = verify(lie, model=model)
    assert [m.name for m in found.metrics if not m.agrees] == ["top1"]
    torch.manual_seed(1)
    build_model("iformer_test", num_labels=10).save_pretrained(tmp_path / "other")
    found = verify(path, model=tmp_path / "other")
    assert "other weights" in found.problems[0]
    moved = changed(path, tmp_path / "data.json", lambda v: v["task"]["dataset"].update(sha256="0" * 64))
    assert "other data" in verify(moved, model=model).problems[0]


def test_the_command_line_says_so_with_its_exit_code(run, tmp_path):
    model, path = run
    done = CliRunner().invoke(app, ["leaderboard", "verify", str(path), "--model", str(model)])
    assert done.exit_code == 0, done.output
    assert "is confirmed" in done.output
    lie = changed(path, tmp_path / "lie.json", lambda v: v["metrics"]["top1"].update(value=99.0))
    done = CliRunner().invoke(app, ["leaderboard", "verify", str(lie), "--model", str(model)])
    assert done.exit_code == 1
    assert "DIFFERS" in done.output
    assert "NOT confirmed" in done.output


def test_a_result_of_a_checkpoint_of_the_zoo_needs_nothing_but_its_file(tmp_path):
    done = run_task("iformer_mini", "fashion_mnist_mini", limit=10, out=tmp_path)
    assert done.path is not None
    assert verify(done.path).agrees


def test_weights_of_another_machine_have_to_be_given(run, tmp_path):
    _, path = run
    with pytest.raises(ResultError, match="--model FOLDER"):
        verify(path)
    with pytest.raises(ConfigError, match="one of them"):
        verify(path, model="x", train=True)
    with pytest.raises(ResultError, match="leave --train out"):
        verify(path, train=True)
    paper = write(make_result("papernet", {"top1": 96.0}, status="paper"), tmp_path)
    with pytest.raises(ResultError, match="paper row"):
        verify(paper)


@pytest.mark.parametrize(
    "command",
    ["rm -rf /", "hybridzoo demo", "bash -c 'hybridzoo eval a b'", "hybridzoo eval a 'b", "", "hybridzoo; eval a b"],
)
def test_commands_of_other_programs_are_not_followed(command):
    with pytest.raises(ResultError, match="command"):
        parse_command(command)


def test_options_that_are_not_known_are_not_followed(run, tmp_path):
    model, path = run
    command = "hybridzoo eval model fashion_mnist_mini --out /somewhere"
    odd = changed(path, tmp_path / "odd.json", lambda v: v["run"].update(command=command))
    with pytest.raises(ResultError, match="--out"):
        verify(odd, model=model)


def test_a_training_is_run_again_from_its_command(tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "title": "tiny",
                "paper": "ours",
                "model": {"name": "iformer_test"},
                "data": {"name": "fashion_mnist_mini"},
                "training": {"max_steps": 2, "batch_size": 8, "learning_rate": 1e-3, "seed": 0},
                "evaluation": {"tasks": [], "batch_size": 100, "metric": "accuracy"},
            }
        )
    )
    torch.manual_seed(0)
    build_model("iformer_test", num_labels=10).save_pretrained(tmp_path / "model")
    command = f"python -m hybridzoo train {recipe} training.seed=0 --run-dir runs/x"
    done = run_task(
        tmp_path / "model", "fashion_mnist_mini", out=tmp_path / "results", name="iformer_test", command=command
    )
    found = verify(done.path, train=True)
    assert found.again.run is not None
    assert found.problems == []  # other weights are expected
    assert len(found.metrics) == len(done.result.metrics)


# submit -----------------------------------------------------------------------------------------------------------


def test_a_submission_applies_to_a_clone_and_passes_the_check(run, tmp_path):
    _, path = run
    board = tmp_path / "clone" / "eval" / "results"
    board.mkdir(parents=True)
    made = submit(path.parent, tmp_path / "out", results=board, by="A. Name")
    (copy,) = made.results
    result = Result.from_json(copy)
    assert result.provenance.submitted_by == "A. Name"
    assert result.metrics == Result.from_json(path).metrics
    text = made.text.read_text()
    assert "| 1 | iformer_test |" in text
    assert "**new**" in text
    assert "hybridzoo eval" in text
    clone = tmp_path / "clone"
    subprocess.run(["git", "-C", clone, "init", "-q"], check=True)
    subprocess.run(["git", "-C", clone, "apply", str(made.patch)], check=True)
    outputs = build(board, Outputs.in_folder(tmp_path / "page"))
    assert check(board, outputs) == []
    assert {p.name for p in board.rglob("*.json*")} == {p.name for p in (tmp_path / "out").rglob("*.json*")}


def test_what_the_board_would_refuse_is_not_prepared(run, tmp_path):
    _, path = run
    board = tmp_path / "board"
    submit(path, tmp_path / "first", results=board)
    import shutil

    shutil.copytree(tmp_path / "first" / "eval" / "results", board)
    with pytest.raises(ResultError, match="duplicate"):
        submit(path, tmp_path / "second", results=board)
    assert not (tmp_path / "second").exists()
    with pytest.raises(ConfigError, match="not empty"):
        submit(path, tmp_path / "first", results=board)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultError, match="no result below"):
        submit(tmp_path / "empty", tmp_path / "third", results=board)


def test_a_changed_score_is_not_submitted(run, tmp_path):
    _, path = run
    import shutil

    folder = tmp_path / "results" / path.parent.parent.name / path.parent.name
    shutil.copytree(path.parent, folder)
    changed(path, folder / path.name, lambda v: v["metrics"]["top1"].update(value=99.0))
    with pytest.raises(ResultError, match="its predictions give"):
        submit(tmp_path / "results", tmp_path / "out", results=tmp_path / "none")


# export and serve -------------------------------------------------------------------------------------------------


def test_results_are_exported_as_the_hub_reads_them(tmp_path):
    from huggingface_hub import ModelCard

    written = export(sample(tmp_path / "results"), tmp_path / "hub", repository="https://example.org/zoo",
                     datasets={"vader": "someone/vader"})  # fmt: skip
    names = {p.relative_to(tmp_path / "hub").as_posix() for p in written}
    assert "iformer_mini/README.md" in names
    assert "iformer_mini/.eval_results/fashion_mnist.yaml" in names
    assert not any(name.startswith(("papernet", "baseline")) for name in names)  # nothing measured, nothing to load
    assert "roberta_bilstm_mini/.eval_results/vader.yaml" not in names  # the mini track is not the Hub's data
    (entry,) = yaml.safe_load((tmp_path / "hub/iformer_mini/.eval_results/fashion_mnist.yaml").read_text())
    assert entry["dataset"] == {"id": "zalando-datasets/fashion_mnist", "task_id": "fashion_mnist"}
    assert entry["value"] == pytest.approx(93.8)
    assert entry["date"] == "2026-01-31"
    assert entry["source"]["url"] == "https://example.org/zoo"
    card = ModelCard.load(tmp_path / "hub/iformer_mini/README.md")
    assert {r.metric_type for r in card.data.eval_results} == {"top1", "ece"}
    assert card.data.eval_results[0].dataset_split == "test"
    try:
        from huggingface_hub import parse_eval_result_entries
    except ImportError:  # an older client
        return
    (parsed,) = parse_eval_result_entries([entry])
    assert (parsed.dataset_id, parsed.value) == ("zalando-datasets/fashion_mnist", entry["value"])


def test_wrong_exports_are_refused(tmp_path):
    results = sample(tmp_path / "results")
    with pytest.raises(ConfigError, match="org/name"):
        export(results, tmp_path / "hub", datasets={"vader": "no id"})
    with pytest.raises(ResultError, match="no measured result"):
        export(tmp_path / "none", tmp_path / "hub")
    done = CliRunner().invoke(app, ["leaderboard", "export", "--out", str(tmp_path / "x"), "--dataset", "vader"])
    assert done.exit_code != 0


def test_the_board_is_served_with_the_files_it_links_to(tmp_path):
    server = make_server(sample(tmp_path / "results"), tmp_path / "served", host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        page = urllib.request.urlopen(address).read().decode()
        assert "hybridzoo leaderboard" in page
        data = json.loads(page.partition('id="board-data">')[2].partition("</script>")[0])
        links = [run["json"] for t in data["tasks"] for r in t["rows"] for run in r["runs"]]
        assert len(links) == 11
        for link in links:
            assert json.loads(urllib.request.urlopen(address + link).read())["schema"] == 1
        with pytest.raises(ConfigError, match="--port"):
            make_server(tmp_path / "results", tmp_path / "again", host="127.0.0.1", port=server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_bundle_is_complete(tmp_path):
    results, out = sample(tmp_path / "results"), tmp_path / "public"
    done = CliRunner().invoke(app, ["leaderboard", "build", "--results", str(results), "--out", str(out), "--bundle"])
    assert done.exit_code == 0, done.output
    assert len(list((out / "results").rglob("*.json"))) == len(list(results.rglob("*.json")))
    assert any((out / "recipes").rglob("*.yaml"))
    done = CliRunner().invoke(app, ["leaderboard", "build", "--bundle"])
    assert done.exit_code != 0


def test_pictures_are_drawn_from_stored_predictions(tmp_path):
    torch.manual_seed(0)
    model = build_model("co_detr_test", num_labels=1).eval()
    model.config.id2label = {0: "tree"}
    done = run_task(model, "trees_mini", out=tmp_path / "results", name="co_detr_test")
    assert done.path is not None
    result = CliRunner().invoke(app, ["leaderboard", "pictures", str(tmp_path / "results")])
    assert result.exit_code == 0, result.output
    boxes = done.path.with_name(f"{done.path.stem}.boxes.png")
    assert str(boxes) in result.output.replace("\n", "")
    assert boxes.read_bytes().startswith(b"\x89PNG")
    page = build(tmp_path / "results", Outputs.in_folder(tmp_path / "out")).page.read_text(encoding="utf-8")
    assert '"title":"Detections"' in page
    none = CliRunner().invoke(app, ["leaderboard", "pictures", str(tmp_path / "out")])
    assert isinstance(none.exception, ResultError)
