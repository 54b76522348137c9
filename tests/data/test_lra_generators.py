"""ListOps and Pathfinder against samples that the official programs made from the same seeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from hybridzoo.cli import app
from hybridzoo.data import load_data
from hybridzoo.data.lra.listops import (
    ListOpsRules,
    ListOpsStream,
    evaluate,
    generate,
    with_parentheses,
    write_listops,
)
from hybridzoo.data.lra.patches import dilate, disc
from hybridzoo.data.lra.pathfinder import PathfinderStream
from hybridzoo.data.lra.pathfinder_files import read_metadata, write_pathfinder
from hybridzoo.data.lra.pathfinder_rules import rules_of
from hybridzoo.data.lra.words import NumpyWords, PythonWords, block_seed
from hybridzoo.errors import DataError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "lra"
SHORT = ListOpsRules(max_depth=4, max_args=4, min_length=5, max_length=60)


@pytest.mark.parametrize("part", ["full", "small"])
def test_listops_are_the_official_ones(part: str) -> None:
    made = json.loads((FIXTURES / "lra_listops_seeded.json").read_text())[part]
    rules = ListOpsRules(made["max_depth"], made["max_args"], made["min_length"], made["max_length"])
    samples = generate(len(made["samples"]), made["seed"], rules)
    assert [s.source for s in samples] == [s["source"] for s in made["samples"]]
    assert [s.value for s in samples] == [s["target"] for s in made["samples"]]
    assert [len(s.tokens) for s in samples] == [s["length"] for s in made["samples"]]
    assert [evaluate(s.tokens) for s in samples] == [s.value for s in samples]

    stream, different = ListOpsStream(made["seed"], rules), set()
    for sample in stream.accepted():
        different.add(sample.tokens)
        if len(different) == len(made["samples"]):
            break
    assert stream.tries == made["tries"]


def test_listops_do_not_depend_on_how_words_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees that reach over the end of the words at hand are the same."""
    whole = generate(300, 7, SHORT)
    monkeypatch.setattr("hybridzoo.data.lra.listops._CHUNK", 700)
    assert generate(300, 7, SHORT) == whole


def test_words_are_those_of_the_generators() -> None:
    import random

    numbers = random.Random(3)
    assert PythonWords(3).take(40).tolist() == [numbers.getrandbits(32) for _ in range(40)]
    state = np.random.RandomState(3)
    words = NumpyWords(3).take(4)
    assert ((words[0] >> 5) * 67108864.0 + (words[1] >> 6)) / 2**53 == state.rand()
    assert block_seed(5, 0) == 5
    assert len({block_seed(s, b) for s in range(20) for b in range(20)}) == 400 - 0


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        (("[MAX", "6", "2", "]"), 6),
        (("[MIN", "6", "2", "X"), 2),
        (("[MED", "1", "2", "4", "8", "]"), 3),
        (("[MED", "1", "2", "5", "8", "]"), 3),
        (("[SM", "9", "[MED", "7", "2", "]", "]"), 3),
        (("7",), 7),
    ],
)
def test_values(tokens: tuple[str, ...], value: int) -> None:
    assert evaluate(tokens) == value


def test_parentheses() -> None:
    assert with_parentheses(("[MAX", "6", "[SM", "1", "2", "]", "]")) == "( ( ( [MAX 6 ) ( ( ( [SM 1 ) 2 ) ] ) ) ] )"


@pytest.mark.parametrize("tokens", [("[MAX", "6"), ("6", "7"), ("]",), ("[MAX", "six", "]"), ()])
def test_what_is_no_expression_is_refused(tokens: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="no ListOps expression"):
        evaluate(tokens)


def test_listops_files_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    sizes = {"train": 50, "val": 20, "test": 20}
    write_listops(tmp_path / "one", sizes=sizes, seed=3, rules=SHORT, block=30)
    write_listops(tmp_path / "two", sizes=sizes, seed=3, rules=SHORT, block=30, workers=2)
    for name in ("basic_train.tsv", "basic_val.tsv", "basic_test.tsv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    lines = (tmp_path / "one" / "basic_train.tsv").read_text().splitlines()
    assert lines[0] == "Source\tTarget"
    assert lines[1:31] == [f"{s.source}\t{s.value}" for s in generate(30, 3, SHORT)]
    every = [p.split("\t")[0] for f in (tmp_path / "one").glob("*.tsv") for p in f.read_text().splitlines()[1:]]
    assert len(every) == len(set(every)) == 90
    with pytest.raises(DataError, match="exists"):
        write_listops(tmp_path / "one", sizes=sizes, rules=SHORT)


def test_impossible_rules_are_refused() -> None:
    with pytest.raises(DataError, match="exclusive"):
        ListOpsRules(min_length=10, max_length=11)
    with pytest.raises(DataError, match="at least 2"):
        ListOpsRules(max_args=1)
    with pytest.raises(DataError, match="different trees"):
        generate(200, 0, ListOpsRules(max_depth=2, max_args=2, min_length=0, max_length=4))


@pytest.mark.parametrize(
    ("name", "size", "length"),
    [("32_len14", 32, 14), ("32_len6", 32, 6), ("64_len14", 64, 14), ("128_len14", 128, 14)],
)
def test_pathfinder_is_the_official_one(name: str, size: int, length: int) -> None:
    made = load_file(FIXTURES / f"lra_pathfinder{name}.safetensors")
    rows = json.loads((FIXTURES / f"lra_pathfinder{name}.json").read_text())["metadata_rows"]
    rules = rules_of(size, length)
    stream = PathfinderStream(rules, 0)
    for index, row in enumerate(rows):
        image = stream.draw()
        np.testing.assert_array_equal(image.pixels, made["out.images"][index])
        assert image.label == made["out.labels"][index]
        assert " ".join(rules.metadata_row(0, index, image.label, image.margin)) == row


def test_pathfinder_does_not_depend_on_how_words_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = rules_of(32, 6)
    whole = PathfinderStream(rules, 4)
    first = [whole.draw().pixels for _ in range(3)]
    monkeypatch.setattr("hybridzoo.data.lra.pathfinder._WORDS", 37)
    again = PathfinderStream(rules, 4)
    for image in first:
        np.testing.assert_array_equal(again.draw().pixels, image)


def test_pathfinder_of_256_pixels() -> None:
    image = PathfinderStream(rules_of(256, 6), 1).draw()
    assert image.pixels.shape == (256, 256)
    assert (image.pixels.min(), image.pixels.max()) == (0, 255)


@pytest.mark.parametrize(("size", "length"), [(48, 14), (32, 12)])
def test_pathfinder_refuses_what_the_benchmark_has_not(size: int, length: int) -> None:
    with pytest.raises(DataError, match=r"choose one of|did you mean"):
        rules_of(size, length)


def test_dilation_is_scipys() -> None:
    from scipy import ndimage

    image = np.random.default_rng(0).integers(0, 256, (13, 11)).astype(np.uint8)
    for radius in (1, 2, 3):
        expected = ndimage.grey_dilation(image, footprint=disc(radius), mode="constant", cval=0)
        np.testing.assert_array_equal(dilate(image, disc(radius)), expected)


def test_pathfinder_files(tmp_path: Path) -> None:
    made = {"size": 32, "contour_length": 6, "batch": 6, "seed": 1}
    text = write_pathfinder(tmp_path / "text", 12, workers=2, **made)
    binary = write_pathfinder(tmp_path / "binary", 12, metadata="binary", **made)
    assert text == tmp_path / "text" / "pathfinder32" / "curv_baseline"
    for number in (0, 1):
        rows = read_metadata(text / "metadata" / f"{number}.npy")
        assert rows == read_metadata(binary / "metadata" / f"{number}.npy")
        assert [r[:3] for r in rows] == [[f"imgs/{number}", f"sample_{i}.png", str(i)] for i in range(6)]
        for row in rows:
            assert (text / row[0] / row[1]).read_bytes() == (binary / row[0] / row[1]).read_bytes()
    assert (text / "metadata" / "0.npy").read_text().startswith("imgs/0 sample_0.png 0 ")
    assert (binary / "metadata" / "0.npy").read_bytes().startswith(b"\x93NUMPY")

    first = PathfinderStream(rules_of(32, 6), 1)
    bundles = [load_data("lra_pathfinder", root=tmp_path / k, level="easy") for k in ("text", "binary")]
    assert bundles[0].info.sizes == {"train": 10, "validation": 1, "test": 1}
    assert [b[s].ids for b in bundles for s in b] == [b[s].ids for b in bundles[::-1] for s in b]
    by_id = {b["id"]: b for s in bundles[0] for b in (bundles[0][s][i] for i in range(len(bundles[0][s])))}
    for index in range(6):
        drawn = first.draw()
        sample = by_id[f"curv_baseline/imgs/0/sample_{index}.png"]
        np.testing.assert_array_equal(np.asarray(sample["image"]), drawn.pixels)
        assert sample["label"] == drawn.label


def test_a_stopped_pathfinder_run_goes_on(tmp_path: Path) -> None:
    made = {"size": 32, "contour_length": 6, "batch": 4, "seed": 1}
    folder = write_pathfinder(tmp_path, 4, **made)
    stamp = (folder / "imgs" / "0" / "sample_0.png").stat().st_mtime_ns
    (folder / "imgs" / "1").mkdir()  # of a run that was killed before its metadata
    (folder / "imgs" / "1" / "sample_9.png").write_bytes(b"half")
    write_pathfinder(tmp_path, 8, **made)
    assert (folder / "imgs" / "0" / "sample_0.png").stat().st_mtime_ns == stamp
    assert sorted(p.name for p in (folder / "imgs" / "1").iterdir()) == [f"sample_{i}.png" for i in range(4)]
    with pytest.raises(DataError, match="another data set"):
        write_pathfinder(tmp_path, 8, **(made | {"batch": 8}))


def test_commands(tmp_path: Path) -> None:
    run = CliRunner()
    rules = ["--max-depth", "4", "--max-args", "4", "--min-length", "5", "--max-length", "60"]
    sizes = ["--n-train", "30", "--n-val", "10", "--n-test", "0"]
    done = run.invoke(app, ["data", "lra-listops", str(tmp_path / "l"), *sizes, *rules, "--quiet"])
    assert done.exit_code == 0, done.output
    assert "30 train, 10 val samples" in done.output
    assert sorted(p.name for p in (tmp_path / "l").iterdir()) == ["basic_train.tsv", "basic_val.tsv", "made.json"]
    easy = ["--level", "easy", "--n", "3", "--quiet"]
    done = run.invoke(app, ["data", "lra-pathfinder", str(tmp_path / "p"), *easy])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "p" / "pathfinder32" / "curv_baseline" / "imgs" / "0" / "sample_2.png").is_file()
    done = run.invoke(app, ["data", "lra-pathfinder", str(tmp_path / "p"), "--level", "hardest"])
    assert isinstance(done.exception, DataError)
    assert "hard" in str(done.exception)
    done = run.invoke(app, ["data", "list", "lra"])
    assert done.exit_code == 0
    assert "lra_pathx" in done.output
