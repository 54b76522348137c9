"""What stands around the text models: cleaning modes, the trained tokenizer, recipes, the TF-IDF baseline."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from hybridzoo import build_model
from hybridzoo.data import Split, load_data
from hybridzoo.data.text_cleaning import MODES, clean_text, cleaner, wordnet_lemmatizer
from hybridzoo.data.tokenizers import train_bpe_tokenizer
from hybridzoo.errors import ConfigError, InputError, UnknownNameError
from hybridzoo.eval.baselines import list_baselines, load_baseline
from hybridzoo.eval.harness import run_task
from hybridzoo.eval.tasks import Task
from hybridzoo.training import list_recipes, load_recipe

CASES = [
    # text, html, tweet, paper
    ("plain words", "plain words", "plain words", "plain words"),
    ("Great<br /><br />film", "Great film", "Great film", "great film"),
    ("Tom &amp; Jerry &lt;3", "Tom & Jerry <3", "Tom & Jerry <3", "tom jerry"),
    ("@United was 2 hrs late", "@United was 2 hrs late", "@user was 2 hrs late", "was hrs late"),
    ("see https://t.co/x?y=1 now", "see https://t.co/x?y=1 now", "see http now", "see now"),
    ("mail me: a@b.org", "mail me: a@b.org", "mail me: a@b.org", "mail me"),
    ("#LoveIt, the BEST!", "#LoveIt, the BEST!", "#LoveIt, the BEST!", "loveit best"),
    ("I don't like an apple", "I don't like an apple", "I don't like an apple", "i dont like apple"),
    ("a < b and c > d", "a < b and c > d", "a < b and c > d", "b and c d"),
    ("  two\n lines\t", "two lines", "two lines", "two lines"),
    ("\N{SMILING FACE WITH OPEN MOUTH} 100%", "\N{SMILING FACE WITH OPEN MOUTH} 100%", None, ""),
    ("", "", "", ""),
]


@pytest.mark.parametrize("case", CASES, ids=[repr(c[0]) for c in CASES])
def test_cleaning(case: tuple[str, ...]) -> None:
    text, *expected = case
    assert clean_text(text, "none") == text
    for mode, wanted in zip(("html", "tweet", "paper"), expected):
        if wanted is not None:
            assert clean_text(text, mode) == wanted, mode


@pytest.mark.parametrize("mode", MODES)
def test_cleaning_twice_changes_nothing_on_real_texts(mode: str) -> None:
    clean = cleaner(mode)
    for sample in load_data("vader")["test"][:600]:
        once = clean(sample["text"])
        assert clean(once) == once
    tricky = "&amp;lt;br&amp;gt; x &#39;y&#39; <b>z"
    assert clean(clean(tricky)) == clean(tricky)


def test_cleaning_refuses() -> None:
    with pytest.raises(ConfigError, match="'tweet'"):
        cleaner("tweets")
    with pytest.raises(InputError, match="int"):
        clean_text(3, "html")
    with pytest.raises(ConfigError, match="belongs to preprocess='paper'"):
        clean_text("x", "html", lemmatize=str)


def test_lemmatiser_reads_wordnet_files(tmp_path: Path) -> None:
    (tmp_path / "noun.exc").write_text("geese goose\nmice mouse\n")
    index = ("bus", "box", "fly", "film", "woman", "wolf", "glass", "goose", "mouse")
    (tmp_path / "index.noun").write_text("  1 This is the licence\n" + "".join(f"{w} n 1 0 1 0 0001\n" for w in index))
    lemmatize = wordnet_lemmatizer(tmp_path)
    forms = {"geese": "goose", "flies": "fly", "boxes": "box", "films": "film", "women": "woman", "glasses": "glass"}
    for word, base in {**forms, "bus": "bus", "buses": "bus", "sparkly": "sparkly"}.items():
        assert lemmatize(word) == base
    text = clean_text("The geese & two films!", "paper", lemmatize=lemmatize)
    assert text == "goose two film"
    with pytest.raises(ConfigError, match="wordnet-base"):
        wordnet_lemmatizer(tmp_path / "missing")


def test_tokenizer_is_deterministic_and_fits_roberta(tmp_path: Path) -> None:
    texts = [sample["text"] for sample in load_data("vader")["train"][:600]]
    one, two = train_bpe_tokenizer(texts, 1024), train_bpe_tokenizer(texts, 1024)
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()
    assert len(one) == 1024
    assert (one.cls_token_id, one.pad_token_id, one.sep_token_id, one.unk_token_id) == (0, 1, 2, 3)
    ids = one("naïve \N{SMILING FACE WITH OPEN MOUTH} café")["input_ids"]
    assert ids[0] == 0
    assert ids[-1] == 2
    assert one.unk_token_id not in ids  # bytes: nothing is unknown
    assert one.decode(ids, skip_special_tokens=True).strip() == "naïve \N{SMILING FACE WITH OPEN MOUTH} café"
    config = build_model("roberta_bilstm_mini", device="meta").config.encoder
    assert config.pad_token_id == one.pad_token_id


# Recipes -------------------------------------------------------------------------------------------------------------

RECIPES = [name for name in list_recipes() if str(name).startswith("roberta_bilstm/")]


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 9


@pytest.mark.parametrize("name", [n for n in RECIPES if str(n).endswith("_paper")])
def test_paper_recipes_hold_the_papers_values(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.paper == "https://arxiv.org/abs/2406.00367"
    t = recipe.training
    assert (t.learning_rate, t.epochs) == (1e-5, 5)
    model = build_model(recipe.model.name, device="meta", **recipe.model.config)
    c = model.config
    assert (c.pooling, c.max_length, c.cell, c.bidirectional) == ("flatten", 128, "lstm", True)
    assert (c.lstm_hidden_size, c.input_dropout, c.preprocess) == (256, 0.1, "paper")
    assert recipe.data.protocol == "paper"  # 90/5/5


@pytest.mark.parametrize("name", ["imdb_minilm", "airline_minilm", "vader_mini"])
def test_ablations_differ_from_their_recipe_in_the_model_alone(name: str) -> None:
    full, linear = load_recipe(f"roberta_bilstm/{name}"), load_recipe(f"roberta_bilstm/{name}_linear")
    assert full.training == linear.training
    assert full.data == linear.data
    assert full.evaluation == linear.evaluation
    assert full.model.config == linear.model.config
    assert full.model.backbone == linear.model.backbone
    models = [build_model(r.model.name, device="meta", **r.model.config) for r in (full, linear)]
    assert [m.config.cell for m in models] == ["lstm", "none"]
    if "minilm" in name:
        assert models[0].config.encoder.to_dict() == models[1].config.encoder.to_dict()


# Baseline ------------------------------------------------------------------------------------------------------------


def toy(labels: list[int]) -> Split:
    words = {0: "dull boring mess", 1: "fine enough", 2: "warm funny gem"}
    texts = [f"{words[label]} number {i % 3}" for i, label in enumerate(labels)]
    return Split([str(i) for i in range(len(labels))], labels, texts, "text")


@pytest.mark.parametrize("classes", [2, 3])
def test_tfidf_learns_and_its_logits_are_the_classifiers_probabilities(classes: int) -> None:
    pytest.importorskip("sklearn")
    baseline = load_baseline("tfidf_lr", task="text-classification")
    with pytest.raises(InputError, match="fit"):
        baseline.logits(toy([0, 1]))
    train = toy([i % classes for i in range(60)])
    baseline.fit(train)
    test = toy([0, 1, classes - 1])
    logits = baseline.logits(test)
    assert logits.shape == (3, classes)
    assert logits.argmax(1).tolist() == test.labels
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = baseline.classifier.predict_proba(baseline.vectorizer.transform(test.content))
    np.testing.assert_allclose(shifted / shifted.sum(1, keepdims=True), probabilities, atol=1e-9)


def test_baseline_errors() -> None:
    pytest.importorskip("sklearn")
    assert list_baselines() == ["tfidf_lr"]
    with pytest.raises(UnknownNameError, match="tfidf_lr"):
        load_baseline("tfidf", task="text-classification")
    with pytest.raises(ConfigError, match="image-classification"):
        load_baseline("tfidf_lr", task="image-classification")
    with pytest.raises(ConfigError, match="class 1"):
        load_baseline("tfidf_lr", task="text-classification").fit(toy([0, 2] * 10))


def test_tfidf_through_the_harness(tmp_path: Path) -> None:
    """Part of the real embedded texts, read back from a CSV: well above the majority class, and reproducible."""
    pytest.importorskip("sklearn")
    train = load_data("vader")["train"]
    with open(tmp_path / "texts.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([train.content[i], train.labels[i]] for i in range(4000))
    task = Task(
        name="part",
        title="part of VADER",
        data="text_csv",
        protocol="90/5/5",
        metrics=("accuracy",),
        primary="accuracy",
    )
    results = [run_task("baseline:tfidf_lr", task, root=tmp_path / "texts.csv").result for _ in range(2)]
    assert results[0].metrics == results[1].metrics
    assert results[0].model.name == "baseline_tfidf_lr"
    assert results[0].model.settings["preprocess"] == "none"
    majority = 100 * max(train.labels.count(label) for label in range(3)) / len(train)
    assert results[0].metrics["accuracy"].value > majority + 8
