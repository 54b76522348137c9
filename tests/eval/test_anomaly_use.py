"""From images to a trained detector, thresholds, results, pictures: training, harness, predict; and bad input."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hybridzoo import build_model
from hybridzoo.cli import app
from hybridzoo.data import load_data
from hybridzoo.data.anomaly.split import AnomalySplit, Entry
from hybridzoo.errors import ConfigError
from hybridzoo.eval import evaluate, load_task
from hybridzoo.eval.anomaly import SHOWN, AnomalyKind, _from_text, _shown, score_records
from hybridzoo.eval.harness import rescore, run_task
from hybridzoo.eval.metrics.anomaly import score_class
from hybridzoo.eval.schema import Result, ResultError
from hybridzoo.inference.anomaly import AnomalyDetector, _above, found_mask, heat, overlay
from hybridzoo.training import load_recipe, train


def stripes(seed: int, side: int = 64, spot: bool = False) -> np.ndarray:
    """A striped image; with `spot`, a bright square in it."""
    random = np.random.default_rng(seed)
    rows = 100 + 60 * np.sin(np.arange(side) / 3 + random.uniform(0, 6))
    image = np.repeat(rows[:, None], side, 1)[..., None] + random.normal(0, 4, (side, side, 3))
    if spot:
        y, x = random.integers(8, side - 24, 2)
        image[y : y + 16, x : x + 16] = random.uniform(0, 255, (16, 16, 3))
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("stripes")
    for i in range(20):
        path = root / "normal" / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(stripes(i)).save(path)
    for i in range(4):
        plain, spoilt = stripes(100 + i), stripes(100 + i, spot=True)
        mask = (np.abs(plain.astype(int) - spoilt).max(2) > 30).astype(np.uint8) * 255
        for folder, array in (("abnormal", spoilt), ("masks", mask)):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A run of a few steps; the teacher's weights come from a file."""
    import timm

    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    teacher = timm.create_model("test_efficientnet")
    torch.save(teacher.state_dict(), folder / "teacher.pth")
    recipe = load_recipe(
        "mambaad/folder",
        [
            "model.name=mambaad_test",
            f"model.backbone={folder / 'teacher.pth'}",
            f"data.root={images}",
            "data.options.validation=0.25",
            "training.max_steps=6",
            "training.batch_size=4",
            "training.num_workers=0",
            "training.eval_every=0",
            "training.save_every=0",
            "evaluation.tasks=[anomaly_folder]",
        ],
    )
    return train(recipe, folder / "run"), teacher


def test_a_run_learns_and_leaves_the_teacher_alone(trained):
    run, teacher = trained
    losses = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert math.isfinite(losses[-1]["eval_loss"])
    assert run.metrics["loss"] == pytest.approx(losses[-1]["eval_loss"], rel=1e-4)
    model = build_model(run.folder)
    own = model.teacher.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in teacher.state_dict().items() if k in own)
    torch.manual_seed(0)
    start = build_model("mambaad_test").decoder.state_dict()
    assert any(not torch.equal(v, start[k]) for k, v in model.decoder.state_dict().items())


def test_thresholds_are_chosen_on_held_out_normal_images(trained, images):
    run, _ = trained
    model = build_model(run.folder)
    held = load_data("anomaly_folder", root=images, validation=0.25)["validation"]
    assert len(held) == 4
    judged = AnomalyDetector(model, device="cpu")([held[i] for i in range(4)])
    scores = [one["score"] for one in judged]
    assert model.config.threshold == pytest.approx(max(scores), rel=1e-6)  # 5 % of four images are none
    pixels = np.concatenate([one["map"].ravel() for one in judged]).astype(np.float64)
    assert model.config.pixel_threshold == pytest.approx(np.quantile(pixels, 0.999), rel=1e-3)
    assert (pixels >= model.config.pixel_threshold).sum() == int(0.001 * len(pixels))
    assert not any(one["anomalous"] for one in judged)


@pytest.mark.parametrize(("rate", "reached"), [(0.0, 0), (0.05, 0), (0.1, 1), (0.25, 2), (0.99, 9)])
def test_a_threshold_is_reached_by_its_share(rate, reached):
    values = np.random.default_rng(0).permutation(10).astype(np.float32)
    threshold = _above(values, rate)
    assert (values >= threshold).sum() == reached
    assert sum(float(v) >= threshold for v in values) == reached
    assert (np.append(values, values) >= _above(np.append(values, values), rate)).sum() <= rate * 20


def test_the_recipes_task_was_run(trained):
    run, _ = trained
    result = Result.from_json(run.folder / run.results[0])
    assert result.task.name == "anomaly_folder"
    assert set(load_task("anomaly_folder").metrics) == set(result.metrics)
    assert result.model.settings["threshold"] == build_model(run.folder).config.threshold


def test_result_follows_from_the_maps(trained, images, tmp_path):
    run, _ = trained
    done = run_task(str(run.folder), "anomaly_folder", root=images, out=tmp_path, device="cpu")
    split = load_data("anomaly_folder", root=images)["test"]
    detector = AnomalyDetector(build_model(run.folder), device="cpu")
    maps = np.stack([one["map"] for one in detector.judge([split[i] for i in range(len(split))])])
    masks = np.stack([split[i]["mask"] for i in range(len(split))])
    for evaluator in ("ader", "exact"):
        want = score_class(maps, masks, evaluator=evaluator)
        for name, value in want.items():
            key = name if name in done.result.metrics else f"{name}_{evaluator}"
            assert done.result.metrics[key].value == pytest.approx(100 * value, abs=2e-5), key
    assert done.result.metrics["i_auroc"].stderr > 0
    assert rescore(done.path) == done.result.metrics

    kept = [row for row in done.predictions.rows if "heat" in row]
    assert len(kept) == 1  # one class, one kind of defect
    at = split.ids.index(kept[0]["id"])
    coarse = _from_text(kept[0]["heat"])
    blocks = maps[at].reshape(32, 2, 32, 2).mean((1, 3)) / (2 * detector.pixel_threshold)
    np.testing.assert_allclose(coarse, blocks.clip(0, 1), atol=1 / 255)
    (picture,) = AnomalyKind().pictures(done.predictions, done.result, done.path.with_suffix(""), done.bundle, 0)
    with Image.open(picture) as sheet:
        assert sheet.size == (128, 3 * 128)
        truth = np.asarray(sheet.crop((0, 256, 128, 384)).resize((64, 64), Image.Resampling.BOX))[..., 0] > 127
    assert (truth == masks[at]).mean() > 0.99


@pytest.mark.parametrize(("classes", "kinds"), [(1, 3), (3, 5), (10, 5), (40, 2), (2, 0)])
def test_the_pictures_images_are_spread_over_classes_and_kinds(classes, kinds):
    rows = [Entry(f"{k}{i}", "", "c", f"kind{k}", 1) for k in range(kinds) for i in range(2)]
    part = AnomalySplit([Entry("good", "", "c", "good", 0), *rows])
    chosen = [_shown(part, c, classes) for c in range(classes)]
    assert sum(map(len, chosen)) <= SHOWN
    assert all(part.entries[i].anomaly for one in chosen for i in one)
    names = [part.entries[i].specie_name for one in chosen for i in one]
    assert len(set(names)) == min(kinds, SHOWN)  # every kind is seen
    assert all(len(one) == min(kinds, max(1, SHOWN // classes)) for one in chosen[:SHOWN])


def test_other_image_sizes_and_modes(trained):
    run, _ = trained
    detector = AnomalyDetector(build_model(run.folder), device="cpu")
    colour = stripes(3)
    grey = colour[..., 0]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    wide = Image.fromarray(colour).resize((90, 40))
    judged = detector([colour, grey, deep, wide])
    assert all(one["map"].shape == (64, 64) and math.isfinite(one["score"]) for one in judged)
    assert judged[1]["score"] == pytest.approx(judged[2]["score"], rel=1e-5)  # 16 bits of the same picture
    half = AnomalyDetector(build_model(run.folder), device="cpu", dtype="bfloat16")([colour])
    assert half[0]["score"] == pytest.approx(judged[0]["score"], rel=0.2)


def test_predict_writes_scores_heat_maps_and_masks(trained, images, tmp_path):
    run, _ = trained
    (tmp_path / "in").mkdir()
    for name in ("0.png", "1.png"):
        (tmp_path / "in" / name).write_bytes((images / "abnormal" / name).read_bytes())
    (tmp_path / "in" / "broken.png").write_bytes(b"nothing")
    done = CliRunner().invoke(
        app, ["predict", str(run.folder), str(tmp_path / "in"), "--out", str(tmp_path / "maps"), "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "maps" / "scores.csv").open()))
    assert [r["anomalous"] != "" for r in rows] == [True, True, False]
    assert "not an image" in rows[2]["error"]
    one = AnomalyDetector(build_model(run.folder), device="cpu")([tmp_path / "in" / "0.png"])[0]
    assert float(rows[0]["score"]) == pytest.approx(one["score"], abs=1e-6)
    assert rows[0]["anomalous"] == ("yes" if one["anomalous"] else "no")
    mask = np.asarray(Image.open(tmp_path / "maps" / "0.mask.png"))
    assert np.array_equal(mask > 0, one["map"] >= build_model(run.folder).config.pixel_threshold)
    assert Image.open(tmp_path / "maps" / "1.heat.png").size == (64, 64)
    again = CliRunner().invoke(app, ["predict", str(run.folder), str(tmp_path / "in"), "--out", str(tmp_path / "maps")])
    assert again.exit_code != 0  # nothing is overwritten


def test_heat_maps_have_the_images_size():
    one = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    colours = heat(one, 0.0, 1.0)
    assert tuple(colours[0, 0]) < tuple(colours[-1, -1])  # from blue to red
    image = Image.new("RGB", (50, 30), "white")
    assert overlay(image, one).size == (50, 30)
    assert found_mask(image, one, 2.0).getextrema() == (0, 0)
    assert found_mask(image, one, 0.0).getextrema() == (255, 255)


def record(name, label, score, cls="a", pixel=None):
    row = {"id": name, "class": cls, "specie": "", "label": label, "score": score}
    return row | ({"pixel": pixel, "pixels": [4, 4]} if pixel else {})


def test_classes_without_a_metric_are_left_out_and_named():
    values = {"p_auroc": 0.5, "p_ap": 0.5, "p_f1max": 0.5, "aupro": None}
    rows = [record("0", 0, 0.1, pixel={"ader": values}), record("1", 1, 0.9)]
    rows += [record("2", 1, 0.5, "b"), record("3", 1, 0.6, "b")]  # all anomalous
    metrics, details = score_records(rows, ("i_auroc", "i_ap", "p_auroc", "aupro_ader", "mad_ader"))
    assert metrics["i_auroc"].value == 100
    assert metrics["p_auroc"].value == 50
    assert set(metrics) == {"i_auroc", "i_ap", "p_auroc"}
    assert details["undefined"]["i_auroc"] == ["b"]
    assert details["undefined"]["aupro_ader"] == ["a", "b"]
    assert details["per_class"]["b"]["anomalous"] == 2
    with pytest.raises(ResultError, match="all normal, or all anomalous"):
        score_records([record("0", 0, 0.1)], ("i_auroc",))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (["training.augment.hflip=0.5"], "without augmentation"),
        (["model.backbone=null"], "teacher of an anomaly detector must be trained"),
        (["training.mixup=0.5"], "for classifiers"),
        (["evaluation.metric=accuracy"], "metric"),
    ],
)
def test_recipes_that_cannot_be(changes, match, images):
    from hybridzoo.training.objectives import objective_of

    def datasets():
        base = ["model.name=mambaad_test", "model.backbone=x.pth", f"data.root={images}", "training.num_workers=0"]
        objective = objective_of(load_recipe("mambaad/folder", base + changes))
        return objective.datasets(objective.load(), build_model("mambaad_test"), None)

    with pytest.raises(ConfigError, match=match):
        datasets()


def test_data_of_another_task_is_refused():
    from hybridzoo.training.objectives import objective_of

    recipe = load_recipe("mambaad/texture_ad_mini", ["data.name=fashion_mnist_mini", "model.backbone=x.pth"])
    objective = objective_of(recipe)
    with pytest.raises(ConfigError, match="detects anomalies"):
        objective.datasets(objective.load(), build_model("mambaad_test"), None)


def test_an_image_task_refuses_an_anomaly_model():
    with pytest.raises(ConfigError, match="anomaly-detection"):
        evaluate(build_model("mambaad_test"), "fashion_mnist_mini")
    with pytest.raises(ConfigError, match="needs one for anomaly-detection"):
        AnomalyDetector(build_model("iformer_test"))


def test_thresholds_need_images():
    detector = AnomalyDetector(build_model("mambaad_test"), device="cpu")
    with pytest.raises(ConfigError, match="no image to choose"):
        detector.calibrate([])
    with pytest.raises(ConfigError, match="image_rate"):
        detector.calibrate([stripes(0)], image_rate=1.0)
    detector.calibrate([stripes(0), stripes(1)], image_rate=0)
    assert not any(one["anomalous"] for one in detector([stripes(0), stripes(1)]))
