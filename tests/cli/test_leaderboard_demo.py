"""`hybridzoo leaderboard` and `hybridzoo demo`: real models, real embedded data, files on disk."""

from __future__ import annotations

import json

import pytest
import torch

from hybridzoo import build_model
from hybridzoo.cli._demo_stages import find_stages
from hybridzoo.eval.schema import Result


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder as checkpoints/ is: a classifier, a detector, a tokenizer of images, folders that cannot be shown."""
    root = tmp_path_factory.mktemp("zoo") / "checkpoints"
    torch.manual_seed(0)
    build_model("iformer_test", num_labels=10).save_pretrained(root / "iformer_test")
    detector = build_model("co_detr_test", num_labels=1)
    detector.config.id2label = {0: "tree"}
    detector.save_pretrained(root / "co_detr_test")
    build_model("llamagen_vq_test").save_pretrained(root / "llamagen_vq_test")
    build_model("iformer_test", num_labels=7).save_pretrained(root / "seven")
    (root / "empty").mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{")
    (root / "broken" / "model.safetensors").write_bytes(b"")
    (root / "_notes").mkdir()
    return root


def test_demo_evaluates_draws_and_ranks_and_check_agrees(cli, checkpoints, tmp_path):
    out = tmp_path / "out"
    done = cli("demo", "--checkpoints", checkpoints, "--only", "iformer_*", "--out", out)
    assert "[1/1] iformer_test: image classification on fashion_mnist_mini" in done.stdout
    (file,) = (out / "results").rglob("*.json")
    result = Result.from_json(file)
    assert (result.model.name, result.task.name, result.track) == ("iformer_test", "fashion_mnist_mini", "mini")
    assert f"Top-1 {result.metrics['top1'].value:.2f}" in done.stdout
    picture = file.with_name(f"{file.stem}.confusion.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in done.stdout
    assert (out / "index.html").resolve().as_uri() in done.stdout
    assert "iformer_test" in (out / "LEADERBOARD.md").read_text()

    options = ("--results", out / "results", "--out", out)
    assert "valid and up to date" in cli("leaderboard", "check", *options).stdout
    values = json.loads(file.read_text())
    values["metrics"]["top1"]["value"] = 99.0
    file.write_text(json.dumps(values))
    done = cli("leaderboard", "check", *options, code=1)
    assert "metric: " in done.stderr
    assert "top1 = 99.0, but the predictions give" in done.stderr
    cli("leaderboard", "build", *options)
    assert "1 problem\n" in cli("leaderboard", "check", *options, code=1).stderr


def test_demo_shows_boxes_and_reconstructions_on_the_page(cli, checkpoints, tmp_path):
    out = tmp_path / "out"
    done = cli("demo", "--checkpoints", checkpoints, "--only", "co_detr_test", "--only", "llamagen*", "--out", out)
    assert "[1/2] co_detr_test: object detection on trees_mini" in done.stdout
    assert "PSNR" in done.stdout
    (boxes,) = (out / "results" / "trees_mini").rglob("*.boxes.png")
    assert boxes.read_bytes().startswith(b"\x89PNG")
    assert (out / "pictures" / "llamagen_vq_test.reconstructions.png").is_file()
    page = (out / "index.html").read_text(encoding="utf-8")
    assert '"title":"Detections"' in page
    assert "data:image/webp;base64," in page


def test_demo_says_what_cannot_be_shown_and_why(checkpoints):
    stages, left_out = find_stages(checkpoints)
    assert [(s.name, s.task) for s in stages] == [
        ("iformer_test", "fashion_mnist_mini"),
        ("co_detr_test", "trees_mini"),
        ("llamagen_vq_test", None),
    ]
    reasons = dict(left_out)
    assert set(reasons) == {"seven", "empty", "broken"}
    assert "no embedded task fits" in reasons["seven"]
    assert "no weights" in reasons["empty"]
    assert "is not JSON" in reasons["broken"]


def test_a_model_that_breaks_does_not_hide_the_others(cli, checkpoints, tmp_path):
    import shutil

    root = tmp_path / "checkpoints"
    shutil.copytree(checkpoints / "iformer_test", root / "b_good")
    shutil.copytree(checkpoints / "iformer_test", root / "a_broken")
    weights = root / "a_broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = cli("demo", "--checkpoints", root, "--out", tmp_path / "out", code=1)
    assert "failed: " in done.stderr
    assert len(list((tmp_path / "out" / "results").rglob("*.json"))) == 1


def test_demo_without_any_checkpoint_says_what_is_missing(cli, checkpoints, tmp_path):
    done = cli("demo", "--checkpoints", checkpoints, "--only", "empty", "--out", tmp_path / "out", code=2)
    assert "left out: empty" in done.stderr
    assert "no trained model" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_demo_shows_every_checkpoint_of_the_zoo():
    from hybridzoo._paths import asset_root
    from hybridzoo.data import data_spec
    from hybridzoo.eval.tasks import load_task

    stages, left_out = find_stages(asset_root("checkpoints"))
    assert left_out == []
    assert {"iformer_mini", "roberta_bilstm_mini"} <= {s.name for s in stages}
    for stage in stages:
        if stage.task is not None:
            spec = data_spec(load_task(stage.task).data)
            assert spec.needs == ""  # ships in the package


def test_build_and_check_of_an_empty_folder(cli, tmp_path):
    options = ("--results", tmp_path / "none", "--out", tmp_path / "board")
    assert cli("leaderboard", "check", *options, code=1).stderr.count("stale: ") == 3
    cli("leaderboard", "build", *options)
    cli("leaderboard", "check", *options)
