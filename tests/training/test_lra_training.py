"""The Long Range Arena from files to results: tokens, pairs and pixels through recipes, training and evaluation."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from hybridzoo import build_model
from hybridzoo.data import DataWarning, load_data
from hybridzoo.data.collate import TextCollator
from hybridzoo.data.lra.listops import ListOpsRules, write_listops
from hybridzoo.data.lra.pathfinder_files import write_pathfinder
from hybridzoo.data.lra.tokenizers import lra_tokenizer
from hybridzoo.errors import ConfigError, DataError, InputError
from hybridzoo.eval import evaluate, rescore
from hybridzoo.eval.harness import run_task
from hybridzoo.inference import TextPairClassifier, load_classifier
from hybridzoo.training import recipe_from_dict
from hybridzoo.training.datasets import PairDataset, TextDataset, flat_tokens, stored_tokens
from hybridzoo.training.run import train
from hybridzoo.training.schedule import Schedule

RULES = ListOpsRules(max_depth=4, max_args=4, min_length=5, max_length=60)
TRAINING = {"max_steps": 2, "batch_size": 4, "eval_every": 0, "save_every": 0, "log_every": 1, "select_best": True}


@pytest.fixture
def listops(tmp_path: Path) -> Path:
    write_listops(tmp_path / "listops", sizes={"train": 60, "val": 20, "test": 20}, rules=RULES)
    return tmp_path / "listops"


def _recipe(model: dict, data: dict, tasks: list[str]):
    evaluation = {"tasks": tasks, "batch_size": 8}
    return recipe_from_dict({"model": model, "data": data, "training": TRAINING, "evaluation": evaluation})


def test_stored_tokens_are_the_tokenizers(listops: Path) -> None:
    split = load_data("lra_listops", root=listops)["train"]
    collator = TextCollator(lra_tokenizer("listops", []), 100)
    stored = stored_tokens(split, collator)
    assert stored is not None
    for fast, slow in zip(stored, flat_tokens(split.content, collator)):
        np.testing.assert_array_equal(fast, slow)
    assert stored_tokens(split, TextCollator(lra_tokenizer("listops:eos", []), 100)) is None
    assert stored_tokens(split, TextCollator(lra_tokenizer("bytes", []), 100)) is None
    plain = TextDataset(split, TextCollator(lra_tokenizer("listops:eos", []), 100))
    assert plain.tokens[plain.starts[1] - 1] == 2


def test_samples_that_are_too_long_are_cut_and_counted(listops: Path) -> None:
    split = load_data("lra_listops", root=listops)["train"]
    with pytest.warns(DataWarning, match=r"\d+ of 60 samples have more than the 20 tokens"):
        dataset = TextDataset(split, TextCollator(lra_tokenizer("listops", []), 20))
    assert dataset.lengths.max() == 20
    whole = TextDataset(split, TextCollator(lra_tokenizer("listops", []), 100))
    for i in range(60):
        row = dataset.tokens[dataset.starts[i] : dataset.starts[i + 1]]
        np.testing.assert_array_equal(row, whole.tokens[whole.starts[i] : whole.starts[i] + len(row)])


@pytest.mark.filterwarnings("ignore::hybridzoo.data.DataWarning")
def test_listops_from_files_to_a_result(listops: Path, tmp_path: Path) -> None:
    data = {"name": "lra_listops", "root": str(listops), "tokenizer": "listops"}
    run = train(_recipe({"name": "chela_test"}, data, ["lra_listops"]), tmp_path / "run")
    assert run.status == "finished"
    (file,) = run.results
    assert set(rescore(run.folder / file)) == {"accuracy", "f1_macro", "nll", "ece"}
    done = run_task(run.folder, "lra_listops", root=listops, batch_size=7)
    assert done.result.metrics == rescore(run.folder / file)
    assert done.result.metrics["accuracy"].stderr is not None
    assert (done.result.track, done.result.task.protocol) == ("subset", "free-for-all")
    same = evaluate(run.folder, "lra_listops", root=listops, protocol="apples-to-apples")
    assert same.task.name == "lra_listops_apples"
    assert same.metrics["accuracy"] == done.result.metrics["accuracy"]

    classifier = load_classifier(build_model(run.folder))
    official = classifier(["( ( ( [MAX 6 ) 2 ) ] )"])[0]
    assert official == classifier(["[MAX 6 2 X"])[0]
    assert set(official["scores"]) == set("0123456789")


def test_short_listops_train_from_the_package_alone(tmp_path: Path) -> None:
    data = {"name": "listops_short_mini", "tokenizer": "listops", "options": {"train_size": 24}}
    recipe = _recipe({"name": "chela_test", "config": {"max_length": 256}}, data, [])
    run = train(recipe, tmp_path / "run")
    assert 0 <= run.metrics["accuracy"] <= 1
    result = evaluate(run.folder, "listops_short_mini", limit=30)
    assert (result.track, result.task.dataset.n_total) == ("subset", 2000)


def test_models_without_room_for_the_vocabulary_are_refused(tmp_path: Path) -> None:
    data = {"name": "listops_short_mini", "tokenizer": "bytes", "options": {"train_size": 24}}
    with pytest.raises(ConfigError, match="knows 259 tokens"):
        train(_recipe({"name": "chela_test"}, data, []), tmp_path / "run")


# Pairs ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "tsv_data"
    folder.mkdir()
    for part in ("train", "eval", "test"):
        rows = [f"{i % 2}.0\tA{i}\tB{i}\t{part} text {'long ' * (i % 5)}\tother {'w' * i}" for i in range(20)]
        (folder / f"new_aan_pairs.{part}.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.filterwarnings("ignore::hybridzoo.data.DataWarning")
def test_pairs_from_files_to_a_result(pairs: Path, tmp_path: Path) -> None:
    model = {"name": "chela_pair_test", "config": {"vocab_size": 259}}
    data = {"name": "lra_retrieval", "root": str(pairs), "tokenizer": "bytes"}
    run = train(_recipe(model, data, ["lra_retrieval"]), tmp_path / "run")
    assert build_model(run.folder).config.num_labels == 2
    (file,) = run.results
    done = run_task(run.folder, "lra_retrieval", root=pairs, batch_size=3)
    assert done.result.metrics["accuracy"] == rescore(run.folder / file)["accuracy"]

    classifier = load_classifier(build_model(run.folder))
    assert isinstance(classifier, TextPairClassifier)
    texts = [load_data("lra_retrieval", root=pairs)["test"].content[i] for i in range(6)]
    together = classifier.logits(texts, batch_size=6)
    for i, pair in enumerate(texts):
        np.testing.assert_allclose(classifier.logits([pair])[0], together[i], atol=1e-5)
    with pytest.raises(InputError, match="expected a pair of texts"):
        classifier.logits(["one text"])


def test_pair_dataset(pairs: Path) -> None:
    split = load_data("lra_retrieval", root=pairs)["train"]
    dataset = PairDataset(split, TextCollator(lra_tokenizer("bytes", []), 16))
    batch = dataset.__getitems__([3, 9])
    assert batch["labels"].tolist() == [1, 1]
    for row, index in enumerate((3, 9)):
        for name, text in zip(("input_ids", "pair_input_ids"), split.content[index]):
            kept = text.encode()[:16]
            ids = batch[name][row][batch[name.replace("input_ids", "attention_mask")][row].bool()]
            assert ids.tolist() == [b + 3 for b in kept]
    assert dataset.lengths.tolist() == [
        max(min(len(a.encode()), 16), min(len(b.encode()), 16)) for a, b in split.content
    ]


# Pixels --------------------------------------------------------------------------------------------------------------


def test_pathfinder_from_files_to_a_result(tmp_path: Path) -> None:
    folder = write_pathfinder(tmp_path / "lra", 40, contour_length=6)
    model = {"name": "chela_image_test", "config": {"image_size": 32, "max_length": 1024}}
    data = {"name": "lra_pathfinder", "root": str(folder), "options": {"level": "easy"}}
    run = train(_recipe(model, data, []), tmp_path / "run")
    built = build_model(run.folder)
    assert built.config.id2label == {0: "separate", 1: "connected"}
    bundle = load_data("lra_pathfinder", root=folder, level="easy")
    images = [bundle["test"][i]["image"] for i in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = load_classifier(built).logits(images)
    pixels = torch.from_numpy(np.stack([np.asarray(i) for i in images])).float().div(255).sub(0.5).div(0.5)
    with torch.no_grad():
        expected = built.eval()(pixel_values=pixels[:, None]).logits
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(("level", "contour"), [("easy", 6), ("intermediate", 9)])
def test_easier_levels_of_pathfinder_are_scored_by_tasks_of_their_own(tmp_path: Path, level: str, contour: int) -> None:
    name = f"lra_pathfinder_{level}"
    folder = write_pathfinder(tmp_path / "lra", 40, contour_length=contour)
    model = {"name": "chela_image_test", "config": {"image_size": 32, "max_length": 1024}}
    run = train(_recipe(model, {"name": name, "root": str(folder)}, [name]), tmp_path / "run")
    (file,) = run.results
    assert Path(file).parts[1] == name
    same = load_data("lra_pathfinder", root=folder, level=level)
    assert load_data(name, root=folder).info.sha256 == same.info.sha256
    with pytest.raises(DataError, match="curv_contour_length_14"):
        load_data("lra_pathfinder", root=folder)
    with pytest.raises(DataError, match=f"--level {level}"):
        load_data(name, root=tmp_path)


def test_warm_up_with_a_power() -> None:
    schedule = Schedule("linear", 1.0, 0.0, 0.2, 10, 20, warmup_power=2.0)
    assert schedule(0) == pytest.approx(0.2)
    assert schedule(5) == pytest.approx(0.2 + 0.8 * 0.25)
    assert schedule(10) == pytest.approx(1.0)
