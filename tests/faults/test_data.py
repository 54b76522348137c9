"""Bad data sets, images, texts and files for prediction and evaluation."""

from __future__ import annotations

import gzip
from typing import Any

import numpy as np
import pytest
from fault_case import Case, Work

from hybridzoo.data import load_data
from hybridzoo.errors import ConfigError, DataError, InputError, UnknownNameError

HEADER = "text,label\n"


def table(work: Work, rows: str, **options: Any) -> Any:
    return load_data("text_csv", root=work.file("train.csv", rows), **options)


def folder(work: Work, **contents: bytes) -> Any:
    """Class folders a and b with good images, and broken ones beside them."""
    for name in ("a", "b"):
        for number in range(8):
            work.image(f"set/{name}/{number}.png")
    for name, content in contents.items():
        for number in range(30):
            work.file(f"set/a/{name}{number}.png", content)
    return load_data("image_folder", root=work.path / "set", verify="decode")


def classify(work: Work, images: Any) -> Any:
    from hybridzoo.inference import ImageClassifier

    return ImageClassifier(work.model())(images)


def text_classifier(work: Work) -> Any:
    from hybridzoo.inference import TextClassifier

    return TextClassifier(work.model("roberta_bilstm_test"))


def read(work: Work, source: Any) -> Any:
    from hybridzoo.data.images import open_image

    return open_image(source)


def idx_set(work: Work, **files: tuple[tuple[int, ...], int | None, int]) -> Any:
    """Black images of 2 classes in IDX files; `files` gives (shape, bytes, element type) of one that is wrong."""
    for part, n in (("train", 20), ("t10k", 10)):
        for stem, shape in ((f"{part}-images-idx3-ubyte", (n, 4, 4)), (f"{part}-labels-idx1-ubyte", (n,))):
            shape, count, kind = files.get(stem.replace("-", "_"), (shape, None, 8))
            work.idx(f"idx/{stem}", shape, count, kind)
            if stem.endswith("idx1-ubyte") and shape == (n,):
                work.file(f"idx/{stem}", (work.path / "idx" / stem).read_bytes()[:8] + bytes(i % 2 for i in range(n)))
    return load_data("idx", root=work.path / "idx")


def damaged_gz(work: Work) -> Any:
    idx_set(work)
    images = work.path / "idx" / "train-images-idx3-ubyte"
    work.file("idx/train-images-idx3-ubyte.gz", gzip.compress(images.read_bytes())[:-20])
    images.unlink()
    return load_data("idx", root=work.path / "idx")


def evaluated(work: Work, model: str, task: str, **options: Any) -> Any:
    from hybridzoo.eval import evaluate

    return evaluate(model, task, out=None, **options)


def results(work: Work, text: str) -> Any:
    from hybridzoo.eval import Result

    return Result.from_json(text)


SETS = [
    Case("data set", DataError, ("fashion_mnst", "did you mean 'fashion_mnist"), lambda w: load_data("fashion_mnst")),
    Case("option", DataError, ("sorce", "source"), lambda w: load_data("vader", sorce="x")),
    Case("protocol", DataError, ("offical", "official"), lambda w: load_data("imdb", protocol="offical", root=w.path)),
    Case("limit", DataError, ("0", "at least 1"), lambda w: load_data("vader", limit=0)),
    Case("no root", DataError, ("imdb", "root"), lambda w: load_data("imdb")),
    Case("missing root", DataError, ("nowhere", "does not exist"), lambda w: load_data("idx", root=w.path / "nowhere")),
    Case("root of an embedded set", DataError, ("vader", "no root"), lambda w: load_data("vader", root=w.path)),
    Case("empty folder", DataError, ("class folders", "jpg"), lambda w: load_data("image_folder", root=w.path)),
    Case("a file as folder", DataError, ("x.txt", "folder"), lambda w: load_data("image_folder", root=w.file("x.txt"))),
    Case("no ImageNet", DataError, ("train/", "wnid"), lambda w: load_data("imagenet1k", root=w.path)),
    Case("no aclImdb", DataError, ("train", "txt"), lambda w: load_data("acl_imdb", root=w.path)),
    Case("empty table", DataError, ("train.csv", "header"), lambda w: table(w, "")),
    Case("header only", DataError, (r"train\.csv is empty", "Expected columns"), lambda w: table(w, HEADER)),
    Case("column", DataError, ("text", "text_column|columns"), lambda w: table(w, "body,label\nx,1\ny,0\n")),
    Case("one class", DataError, ("'1'", "at least two classes"), lambda w: table(w, HEADER + "x,1\n" * 50)),
    Case(
        "no class column",
        DataError,
        ("label_column", "different"),
        lambda w: table(w, HEADER + "".join(f"t{i},l{i}\n" for i in range(400))),
    ),
    Case("encoding", DataError, ("utf-9", "utf-8"), lambda w: table(w, HEADER + "x,1\ny,0\n", encoding="utf-9")),
    Case(
        "truncated idx",
        DataError,
        ("train-images", "fetch it again"),
        lambda w: idx_set(w, train_images_idx3_ubyte=((20, 4, 4), 100, 8)),
    ),
    Case(
        "idx of floats",
        DataError,
        ("0x0d", "0x08"),
        lambda w: idx_set(w, train_images_idx3_ubyte=((20, 4, 4), None, 13)),
    ),
    Case("idx pair", DataError, ("train", "together"), lambda w: idx_set(w, train_labels_idx1_ubyte=((9,), None, 8))),
    Case("no idx", DataError, ("train-images", "holds"), lambda w: load_data("idx", root=w.path)),
    Case("damaged gz", DataError, ("gz", "fetch it again"), damaged_gz),
    Case(
        "not Fashion-MNIST",
        DataError,
        ("Fashion-MNIST", "idx"),
        lambda w: [idx_set(w), load_data("fashion_mnist", root=w.path / "idx")],
    ),
    Case("broken images", DataError, ("30 of", "a/"), lambda w: folder(w, cut=b"\x89PNG\r\n\x1a\n" + b"x" * 40)),
    Case("empty images", DataError, ("30 of", "a/"), lambda w: folder(w, void=b"")),
]

PREDICTION = [
    Case("one image, no list", InputError, ("str", "list"), lambda w: classify(w, "a.png")),
    Case("missing image", DataError, (r"nowhere\.png", "no such file"), lambda w: read(w, w.path / "nowhere.png")),
    Case("text as image", DataError, (r"a\.png", "no known image format"), lambda w: read(w, w.file("a.png", "hello"))),
    Case(
        "cut image",
        DataError,
        (r"a\.png", "damaged or cut off"),
        lambda w: read(w, w.file("a.png", w.image("b.png", (64, 64)).read_bytes()[:60])),
    ),
    Case("empty image", DataError, (r"a\.png", "image"), lambda w: read(w, w.file("a.png"))),
    Case("array of floats", DataError, ("float64", "uint8"), lambda w: read(w, np.ones((4, 4)))),
    Case("a number", DataError, ("path, bytes", "PIL"), lambda w: read(w, 3)),
    Case("no tokenizer", ConfigError, ("tokenizer", "tokenizer="), text_classifier),
    Case(
        "a text model for images",
        ConfigError,
        ("roberta_bilstm_test does text-classification", "image-classification"),
        lambda w: evaluated(w, "roberta_bilstm_test", "fashion_mnist_mini", limit=4),
    ),
    Case("task", UnknownNameError, ("vadr", "vader"), lambda w: evaluated(w, "iformer_test", "vadr")),
    Case(
        "model of a task",
        UnknownNameError,
        ("iformer_tst", "iformer_test"),
        lambda w: evaluated(w, "iformer_tst", "fashion_mnist_mini", limit=4),
    ),
    Case(
        "limit of a task",
        DataError,
        ("-3", "at least 1"),
        lambda w: evaluated(w, "iformer_test", "fashion_mnist_mini", limit=-3),
    ),
    Case("half a result", DataError, ("not JSON", "line 1"), lambda w: results(w, "{")),
    Case("a result of nothing", DataError, ("schema None", "reads 1"), lambda w: results(w, "{}")),
]


@pytest.mark.parametrize("case", SETS + PREDICTION, ids=lambda case: case.name)
def test_fault(case: Case, work: Work) -> None:
    case.check(work)


class TestTexts:
    """Texts that are odd and yet answered: empty, huge, not UTF-8. The score of one must not depend on the others."""

    @pytest.fixture(scope="class")
    def classifier(self) -> Any:
        from hybridzoo import build_model
        from hybridzoo.data.tokenizers import train_bpe_tokenizer
        from hybridzoo.inference import TextClassifier

        tokenizer = train_bpe_tokenizer(["a few words to learn from", "and some more"] * 20, vocab_size=300)
        return TextClassifier(build_model("roberta_bilstm_test").eval(), tokenizer, device="cpu")

    @pytest.mark.parametrize(
        "text",
        ["", " \n\t", "word " * 50_000, "\x00\x07", "\udcff broken", "👩‍👩‍👧‍👦" * 100, "<s></s><pad>", "a" * 100_000],
        ids=["empty", "blank", "huge", "control", "surrogate", "emoji", "special", "one word"],
    )
    def test_odd_texts_are_answered(self, classifier: Any, text: str) -> None:
        alone = classifier([text])[0]
        beside = classifier(["a few words", text, "more"])[1]
        assert sum(alone["scores"].values()) == pytest.approx(1.0, abs=1e-5)
        assert alone["scores"] == pytest.approx(beside["scores"], abs=1e-5)

    @pytest.mark.parametrize("text", [None, 3, b"bytes", ["list"]], ids=str)
    def test_what_is_no_text_is_refused(self, classifier: Any, text: Any) -> None:
        with pytest.raises(InputError, match=r"must be a string, got \w+"):
            classifier(["fine", text])

    def test_nothing_to_do(self, classifier: Any) -> None:
        assert classifier([]) == []
