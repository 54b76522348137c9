"""`hybridzoo eval` and `hybridzoo predict` as a person types them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hybridzoo.cli import app
from hybridzoo.data import load_data
from hybridzoo.errors import ConfigError, DataError
from hybridzoo.eval import rescore


def run(*words: object, stdin: bytes | None = None) -> Any:
    """The finished command; an error of hybridzoo is raised, as `main` would print it."""
    result = CliRunner().invoke(app, [str(w) for w in words], input=stdin, catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_eval_writes_what_it_prints(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("eval", image_folder, "fashion_mnist_mini", "--limit", 40, "--device", "cpu", "--timm-csv", "timm.csv")
    assert done.exit_code == 0
    assert "40 of 500 samples, track subset" in done.stdout
    files = list((tmp_path / "results" / "fashion_mnist_mini" / "tiny_image").iterdir())
    assert sorted("".join(f.suffixes) for f in files) == [".confusion.png", ".json", ".predictions.jsonl.gz"]
    (path,) = [f for f in files if f.suffix == ".json"]
    assert f"{rescore(path)['top1'].value:.2f}" in done.stdout
    assert (tmp_path / "timm.csv").read_text().count("\n") == 2


def test_eval_lists_tasks() -> None:
    done = run("eval", "--tasks")
    assert done.exit_code == 0
    assert "imagenet1k" in done.stdout
    assert "embedded" in done.stdout


def test_predict_lines_of_stdin(text_folder: Path) -> None:
    text = "What a lovely day\n\nAwful\nbad \xff byte\n".encode("latin-1")
    done = run("predict", text_folder, "--format", "jsonl", "--device", "cpu", stdin=text)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["id"] for r in rows] == ["stdin:1", "stdin:3", "stdin:4"]
    assert rows[2] == {"id": "stdin:4", "label": None, "error": "not UTF-8; --encoding latin-1?"}
    assert sum(rows[0]["scores"].values()) == pytest.approx(1)
    assert "1 of 3 inputs could not be used" in done.stderr


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_predict_files_by_column(text_folder: Path, tmp_path: Path, kind: str) -> None:
    source, target = tmp_path / f"in.{kind}", tmp_path / "out.csv"
    texts = ['two\nlines, "quoted"', "", "plain"]
    if kind == "csv":
        with open(source, "w", newline="") as file:
            csv.writer(file).writerows([["id", "tweet"], *[[i, t] for i, t in enumerate(texts)]])
    else:
        source.write_text("\n".join(json.dumps({"tweet": t}) for t in texts))
    words = ("predict", text_folder, source, "--column", "tweet", "--format", "csv", "-o", target, "--device", "cpu")
    done = run(*words)
    assert done.stdout == ""
    rows = list(csv.DictReader(target.open()))
    assert [bool(r["label"]) for r in rows] == [True, False, True]
    assert rows[1]["error"] == "empty text"
    assert float(rows[0]["score"]) == max(float(rows[0][f"score_{n}"]) for n in ("negative", "neutral", "positive"))
    with pytest.raises(DataError, match="exists; give another --output"):
        run(*words)
    if kind == "csv":
        with pytest.raises(DataError, match=r"unknown column 'text'.*choose with --column"):
            run("predict", text_folder, source, "--device", "cpu")


def test_predict_agrees_with_eval(text_folder: Path, tmp_path: Path) -> None:
    """The same texts through both commands: equal labels, so equal accuracy."""
    from hybridzoo.eval import run_task

    predictions = run_task(text_folder, "vader", limit=80, device="cpu", batch_size=64).predictions
    test = load_data("vader")["test"]
    texts = dict(zip(test.ids, test.content))
    source = tmp_path / "test.jsonl"
    source.write_text("\n".join(json.dumps({"text": texts[i]}) for i in predictions.test.ids))
    done = run("predict", text_folder, source, "--format", "jsonl", "--device", "cpu", "--batch-size", 7)
    labels = [json.loads(line)["label"] for line in done.stdout.splitlines()]
    assert predictions.test.logits is not None
    assert labels == [predictions.label_names[i] for i in predictions.test.logits.argmax(1)]


def test_predict_images_and_folders(image_folder: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "inner"
    photos.mkdir(parents=True)
    split = load_data("fashion_mnist_mini")["test"]
    for i in range(3):
        split[i]["image"].save(photos / f"{i}.png")
    (photos / "cut.png").write_bytes((photos / "0.png").read_bytes()[:90])
    (photos / "notes.txt").write_text("not an image")
    done = run("predict", image_folder, tmp_path / "photos", "--device", "cpu", "--batch-size", 2)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + 4
    assert [("LABEL_" in line) for line in lines[2:]] == [True, True, True, False]
    assert "cut.png: the image is damaged or cut off" in done.stderr
    with pytest.raises(DataError, match="none of the 1 inputs could be used"):
        run("predict", image_folder, photos / "cut.png", "--device", "cpu")
    with pytest.raises(DataError, match="give files or folders"):
        run("predict", image_folder, "--device", "cpu")


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--format", "xml"], ConfigError, "unknown format 'xml'"),
        (["--abstain", "2"], ConfigError, "probability"),
        (["--tokenizer", "/no/such/folder"], ConfigError, "no tokenizer in /no/such/folder"),
        (["missing.csv"], DataError, "missing.csv: no such file"),
        (["-o", "/no/such/folder/x.csv"], DataError, "/no/such/folder does not exist"),
    ],
)
def test_wrong_words(text_folder: Path, words: list[str], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        run("predict", text_folder, *words, "--device", "cpu", stdin=b"a text\n")
