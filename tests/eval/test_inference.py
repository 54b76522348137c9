"""TextClassifier and ImageClassifier: the same scores alone and in a batch, in the order of the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybridzoo import build_model
from hybridzoo.data import load_data
from hybridzoo.errors import ConfigError, DataError, InputError
from hybridzoo.inference import ImageClassifier, TextClassifier, load_classifier

TEXTS = [
    "good",
    "a longer text that was written " * 6,
    "",
    "bad, really bad",
    "the weather is fine today",
    "word " * 300,
]


@pytest.mark.parametrize("values", [{}, {"pooling": "flatten", "skip_padding": False}, {"pooling": "max"}])
@pytest.mark.parametrize("long_text", ["truncate", "head_tail", "sliding_window"])
def test_text_alone_equals_in_batch(values: dict[str, Any], long_text: str, tokenizer: Any) -> None:
    model = build_model("roberta_bilstm_test", **values)
    classifier = TextClassifier(model, tokenizer, long_text=long_text, device="cpu")
    together = classifier.logits(TEXTS, batch_size=4)
    alone = np.concatenate([classifier.logits([t]) for t in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.shape == (len(TEXTS), model.config.num_labels)
    assert np.ptp(together, axis=0).max() > 1e-3  # the texts do differ, so a wrong order would show


def test_text_logits_are_the_models(text_model: Any, tokenizer: Any) -> None:
    text = "the weather is fine today"
    expected = text_model.eval()(**tokenizer(text, return_tensors="pt")).logits
    found = TextClassifier(text_model, tokenizer, device="cpu").logits([text])
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)


def test_predictions(text_folder: Path) -> None:
    classifier = load_classifier(build_model(text_folder), device="cpu")
    assert isinstance(classifier, TextClassifier)  # with the tokenizer of the folder
    for prediction in classifier(TEXTS[:3]):
        scores = list(prediction["scores"].values())
        assert set(prediction["scores"]) == {"negative", "neutral", "positive"}
        assert sum(scores) == pytest.approx(1)
        assert scores == sorted(scores, reverse=True)
        assert prediction["scores"][prediction["label"]] == prediction["score"] == scores[0]
    unsure = load_classifier(build_model(text_folder), device="cpu", abstain=0.99)(["good"])[0]
    assert unsure["label"] is None
    assert unsure["score"] < 0.99


def test_windows(text_model: Any, tokenizer: Any) -> None:
    text = " ".join(f"word{i}" for i in range(60))
    ids = tokenizer(text)["input_ids"]
    room = 18

    def windows(strategy: str) -> list[list[int]]:
        return TextClassifier(text_model, tokenizer, max_length=20, long_text=strategy, device="cpu").windows(text)

    assert windows("truncate") == [[*ids[:19], ids[-1]]]
    assert windows("head_tail") == [[*ids[: 1 + room // 4], *ids[-1 - (room - room // 4) :]]]
    parts = windows("sliding_window")
    assert all(len(p) == 20 and (p[0], p[-1]) == (ids[0], ids[-1]) for p in parts)
    joined = parts[0][1:-1]
    for part in parts[1:]:
        body = part[1:-1]
        overlap = next(n for n in range(room, 0, -1) if joined[-n:] == body[:n])
        assert overlap >= room // 4
        joined += body[overlap:]
    assert joined == ids[1:-1]


def test_sliding_window_is_the_mean_of_its_windows(text_model: Any, tokenizer: Any) -> None:
    classifier = TextClassifier(text_model, tokenizer, max_length=20, long_text="sliding_window", device="cpu")
    text = " ".join(f"word{i}" for i in range(60))
    rows = classifier.windows(text)
    assert len(rows) > 3
    with torch.no_grad():
        each = [text_model(input_ids=torch.tensor([r])).logits[0].numpy() for r in rows]
    np.testing.assert_allclose(classifier.logits(["short", text])[1], np.mean(each, axis=0), atol=1e-5)


def test_cut_of_huge_texts_changes_nothing(text_model: Any, tokenizer: Any) -> None:
    classifier = TextClassifier(text_model, tokenizer, device="cpu")
    for text in ("some words and more " * 20_000, " " * 200_000 + "the end is all there is", "x" * 120_000):
        expected = tokenizer(text, truncation=True, max_length=classifier.max_length)["input_ids"]
        assert classifier.windows(text) == [expected]


def test_preprocess_of_the_config_is_applied(tokenizer: Any) -> None:
    model = build_model("roberta_bilstm_test", preprocess="html")
    classifier = TextClassifier(model, tokenizer, device="cpu")
    np.testing.assert_array_equal(classifier.logits(["good<br />film"]), classifier.logits(["good film"]))
    raw = TextClassifier(model, tokenizer, preprocess="none", device="cpu")
    assert not np.allclose(raw.logits(["good<br />film"]), raw.logits(["good film"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long_text": "slide"}, "unknown strategy"),
        ({"dtype": "float8"}, "unknown dtype"),
        ({"device": "gpu7"}, "unknown device"),
        ({"abstain": 1.5}, "probability from 0 to 1"),
        ({"max_length": 5000}, "more than the"),
        ({"max_length": 2, "long_text": "head_tail"}, "leaves no room"),
    ],
)
def test_wrong_options(text_model: Any, tokenizer: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextClassifier(text_model, tokenizer, **{"device": "cpu", **options})(["a long enough text"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(text_model: Any, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="sees no CUDA GPU"):
        TextClassifier(text_model, tokenizer, device="cuda")


def test_wrong_inputs(text_model: Any, tokenizer: Any, image_model: Any) -> None:
    classifier = TextClassifier(text_model, tokenizer, device="cpu")
    with pytest.raises(InputError, match="put a single one into a list"):
        classifier("one text")
    with pytest.raises(InputError, match="must be a string, got int"):
        classifier(["a", 3])
    with pytest.raises(ConfigError, match="comes without a tokenizer"):
        TextClassifier(text_model, device="cpu")
    with pytest.raises(InputError, match="put a single one into a list"):
        ImageClassifier(image_model, device="cpu")("photo.jpg")
    with pytest.raises(ConfigError, match="predict needs"):
        load_classifier(torch.nn.Linear(2, 2))
    assert classifier([]) == []


def test_images_alone_equal_in_batch_from_any_source(image_model: Any, tmp_path: Path) -> None:
    split = load_data("fashion_mnist_mini")["test"][:7]
    classifier = ImageClassifier(image_model, device="cpu")
    together = classifier.logits(split, batch_size=3)
    images = [split[i]["image"] for i in range(7)]
    np.testing.assert_allclose(together, np.concatenate([classifier.logits([im]) for im in images]), atol=1e-5)
    paths = []
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    for form in (images, paths, [str(p) for p in paths], [np.asarray(im) for im in images]):
        np.testing.assert_allclose(classifier.logits(form, batch_size=7), together, atol=1e-5)
    np.testing.assert_allclose(classifier.logits(paths, batch_size=2, num_workers=1), together, atol=1e-5)
    assert np.ptp(together, axis=0).max() > 1e-4
    paths[2].write_bytes(paths[2].read_bytes()[:80])
    with pytest.raises(DataError, match=r"sample 2: .*2\.png.*damaged"):
        classifier.logits(paths)


def test_bfloat16_and_channels_last_stay_close(image_model: Any) -> None:
    split = load_data("fashion_mnist_mini")["test"][:4]
    exact = ImageClassifier(image_model, device="cpu").logits(split)
    np.testing.assert_allclose(
        ImageClassifier(image_model, device="cpu", channels_last=True).logits(split), exact, atol=1e-5
    )
    half = ImageClassifier(image_model, device="cpu", dtype="bfloat16").logits(split)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, exact, atol=0.05)
    assert not np.array_equal(half, exact)
