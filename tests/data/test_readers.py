"""Readers of people's own data: what is broken is named, what is unusable is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybridzoo.data import DataWarning, load_data
from hybridzoo.errors import DataError


def lines(count: int = 60) -> list[str]:
    return [f"text number {i},{'yes' if i % 2 else 'no'}" for i in range(count)]


def write(path: Path, rows: list[str], header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_csv_round_trip(tmp_path: Path) -> None:
    bundle = load_data("text_csv", root=write(tmp_path / "a.csv", lines()))
    assert bundle.info.label_names == ("no", "yes")
    assert bundle.info.sizes == {"train": 54, "validation": 3, "test": 3}
    for sample in bundle["train"]:
        number = int(sample["text"].split()[-1])
        assert sample["label"] == number % 2
        assert sample["id"] == f"a.csv:{number + 2}"


def test_quoted_newlines_commas_quotes_and_bom(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = ['"line one\nline ""two"", end",yes', "plain,no", *lines()]
    path.write_bytes(b"\xef\xbb\xbf" + ("text,label\r\n" + "\r\n".join(rows)).encode())
    bundle = load_data("text_csv", root=path)
    texts = {s["id"]: s["text"] for split in bundle for s in bundle[split]}
    assert texts["a.csv:2"] == 'line one\nline "two", end'
    assert texts["a.csv:4"] == "plain"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"caf\xe9,yes", "not UTF-8"),
        (b"one,two,three", "3 fields, the header has 2"),
        (b"  ,yes", "empty text"),
        (b"a text,", "no label"),
    ],
)
def test_broken_rows_are_counted_and_named(tmp_path: Path, bad: bytes, reason: str) -> None:
    path = write(tmp_path / "a.csv", lines())
    path.write_bytes(path.read_bytes() + bad + b"\n")
    with pytest.warns(DataWarning, match="left out 1 unusable samples: a.csv:62"):
        bundle = load_data("text_csv", root=path)
    assert [(s.where, s.reason) for s in bundle.info.skipped] == [("a.csv:62", reason)]
    assert sum(bundle.info.sizes.values()) == 60


def test_unknown_label_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [*lines(), "typo,yess"])
    with pytest.warns(DataWarning, match="label 'yess' is not one of no, yes"):
        load_data("text_csv", root=path, label_names=["no", "yes"])


def test_unclosed_quote_does_not_swallow_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [*lines(), '"never closed,yes', *["x,no"] * 2500])
    with pytest.raises(DataError, match=r"unusable|several|quote is opened") as error:
        load_data("text_csv", root=path, max_skipped=0)
    assert "a quote is opened and not closed" in str(error.value)


def test_mostly_broken_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [*lines(20), *["a;b;c"] * 10])
    with pytest.raises(DataError, match=r"10 of 30 samples are unusable .* max_skipped=1.0"):
        load_data("text_csv", root=path)
    with pytest.warns(DataWarning, match="left out 10"):
        bundle = load_data("text_csv", root=write(tmp_path / "b.csv", [*lines(40), *["a;b;c"] * 10]), max_skipped=1.0)
    assert sum(bundle.info.sizes.values()) == 40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"text,label\n", "is empty: no samples"),
        (b"sentence,label\n" + b"a,b\n" * 30, "unknown column 'text'.*columns: sentence, label"),
        (b"text,label\n" + b"same class,yes\n" * 60, "every sample has the label 'yes'"),
        (b"text,label\n" + b"".join(b"t %d,id%d\n" % (i, i) for i in range(60)), "is no class"),
        (b"text,label\na,x\nb,y\nc,x\n", "stratified split"),
    ],
)
def test_refused_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_data("text_csv", root=path)


def test_encodings(tmp_path: Path) -> None:
    text = "text,label\n" + "".join(f"caf\xe9 {i},{i % 2}\n" for i in range(60))
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("utf-16"))
    assert load_data("text_csv", root=path)["train"][0]["text"].startswith("caf\xe9")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load_data("text_csv", root=path)
    assert load_data("text_csv", root=path, encoding="latin-1")["train"][0]["text"].startswith("caf\xe9")
    with pytest.raises(DataError, match="unknown encoding 'latin1x'"):
        load_data("text_csv", root=path, encoding="latin1x")
    with pytest.raises(DataError, match="line 2: the bytes are not ascii"):
        load_data("text_csv", root=path, encoding="ascii")


def test_megabyte_field(tmp_path: Path) -> None:
    huge = "word " * 600_000
    bundle = load_data("text_csv", root=write(tmp_path / "a.csv", [f"{huge},yes", *lines()]))
    longest = max((s["text"] for split in bundle for s in bundle[split]), key=len)
    assert len(longest) == len(huge)


def test_numeric_labels_sort_by_value_and_tsv(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    rows = "".join(f"text {i}\t{i % 11}\n" for i in range(440))
    path.write_text("text\tlabel\n" + rows, encoding="utf-8")
    bundle = load_data("text_csv", root=path)
    assert bundle.info.label_names == tuple(map(str, range(11)))
    assert all(s["label"] == int(s["text"].split()[1]) % 11 for s in bundle["train"])


def test_jsonl_folder_with_broken_lines(tmp_path: Path) -> None:
    good = [json.dumps({"review": f"text {i}", "stars": i % 2}) for i in range(60)]
    (tmp_path / "train.jsonl").write_text("\n".join([*good, "{broken", '["list"]', '{"review": 3, "stars": 1}']))
    (tmp_path / "dev.jsonl").write_text("\n".join(good[:10]).replace("text", "other"))
    with pytest.warns(DataWarning, match="left out 3"):
        bundle = load_data("text_jsonl", root=tmp_path, text_column="review", label_column="stars")
    assert bundle.info.sizes == {"train": 60, "validation": 10}
    assert bundle.info.protocol == "given"
    assert [s.where for s in bundle.info.skipped] == ["train.jsonl:61", "train.jsonl:62", "train.jsonl:63"]
    reasons = [s.reason.split(" (")[0] for s in bundle.info.skipped]
    assert reasons == [
        "not JSON",
        "a JSON list, not an object",
        "text is no string",
    ]


def test_folder_without_split_files(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(DataError, match=r"no train/validation/test file .* \(it holds: notes.md\)"):
        load_data("text_csv", root=tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", lines())
    path.chmod(0)
    with pytest.raises(DataError, match="may not be read"):
        load_data("text_csv", root=path)


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    random = np.random.RandomState(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(40):
            Image.fromarray(random.randint(0, 256, (9, 7, 3), dtype=np.uint8)).save(tmp_path / name / f"{i:02}.png")
    return tmp_path


def test_image_folder(pictures: Path) -> None:
    bundle = load_data("image_folder", root=pictures)
    assert bundle.info.label_names == ("cat", "dog")
    assert bundle.info.sizes == {"train": 72, "validation": 4, "test": 4}
    sample = bundle["train"][0]
    assert sample["image"].size == (7, 9)
    assert sample["id"].startswith(bundle.info.label_names[sample["label"]])
    before = bundle.info.sha256
    Image.new("RGB", (7, 9)).save(pictures / "cat" / "00.png")
    assert load_data("image_folder", root=pictures).info.sha256 != before


def test_broken_images_are_named(pictures: Path) -> None:
    whole = (pictures / "cat" / "00.png").read_bytes()
    (pictures / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "dog" / "html.jpg").write_bytes(b"<html>404</html>")
    (pictures / "dog" / "empty.png").write_bytes(b"")
    with pytest.warns(DataWarning, match="left out 3"):
        bundle = load_data("image_folder", root=pictures)
    assert {Path(s.where).name for s in bundle.info.skipped} == {"cut.png", "html.jpg", "empty.png"}
    assert sum(bundle.info.sizes.values()) == 80


def test_broken_image_met_later_is_named_too(pictures: Path) -> None:
    bundle = load_data("image_folder", root=pictures, verify="none")
    path = pictures / bundle["train"].ids[0]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=rf"{path.name}.*damaged or cut off.*verify='decode'"):
        bundle["train"][0]


def test_given_splits_and_strange_classes(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("splits")
    for split in ("train", "val"):
        (root / split).mkdir()
        for name in ("cat", "dog"):
            (root / split / name).symlink_to(pictures / name)
    with pytest.warns(DataWarning, match="80 of validation in train"):
        bundle = load_data("image_folder", root=root)
    assert bundle.info.sizes == {"train": 80, "validation": 80}
    assert bundle.info.duplicates == {"validation in train": 80}
    with pytest.raises(DataError, match="class folders dog are not among"):
        load_data("image_folder", root=root, label_names=["cat", "bird"])


def test_image_folder_without_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no class folders"):
        load_data("image_folder", root=tmp_path)


def test_imagenet_layout(tmp_path: Path) -> None:
    picture = tmp_path / "x.JPEG"
    Image.new("RGB", (8, 8)).save(picture)
    for i in range(1000):
        folder = tmp_path / "val" / f"n{i:08}"
        folder.mkdir(parents=True)
        (folder / "ILSVRC2012_val.JPEG").symlink_to(picture)
    bundle = load_data("imagenet1k", root=tmp_path)
    assert bundle.info.sizes == {"test": 1000}
    assert bundle.info.track == "subset"  # 50,000 in the real one
    assert bundle["test"].labels == list(range(1000))
    assert bundle["test"][7]["image"].size == (8, 8)
    (tmp_path / "val" / "n00000999" / "ILSVRC2012_val.JPEG").unlink()
    (tmp_path / "val" / "n00000999").rmdir()
    with pytest.raises(DataError, match="has 999 class folders"):
        load_data("imagenet1k", root=tmp_path)


# Hub sets -------------------------------------------------------------------------------------------------------------


def test_hub_reader_without_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the package `datasets`: pip install 'hybridzoo\[eval\]'"):
        load_data("hf_text", root="org/name")


def test_hub_text_from_local_files(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for split, count in (("train", 40), ("test", 10)):
        rows = [{"text": f"{split} {i}", "label": ["no", "yes"][i % 2]} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bundle = load_data("hf_text", root=str(tmp_path))
    assert bundle.info.sizes == {"train": 40, "test": 10}
    assert bundle.info.label_names == ("no", "yes")
    with pytest.raises(DataError, match=r"unknown column .* 'sentence'"):
        load_data("hf_text", root=str(tmp_path), text_column="sentence")


def test_hub_images_from_local_files(pictures: Path) -> None:
    pytest.importorskip("datasets")
    bundle = load_data("hf_images", root=str(pictures))
    assert bundle.info.label_names == ("cat", "dog")
    assert bundle["train"][0]["image"].size == (7, 9)
