"""Streams of text: order, packing, document numbers, and going on at the exact place."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from hybridzoo.data.text_stream import (
    IGNORED,
    PackedStream,
    TextStream,
    cu_seqlens,
    encode_documents,
    file_shards,
    memory_shard,
    pack,
    position_ids,
)
from hybridzoo.data.text_stream_dataset import PackedText, StreamedText, WindowedText
from hybridzoo.data.text_stream_tokenizers import BOS, EOS, byte_tokenizer
from hybridzoo.errors import ConfigError, DataError

TEXTS = [f"document {i}: " + "word " * (i % 7) + "é" for i in range(50)]


def stream(**options) -> TextStream:
    return TextStream(
        [
            memory_shard(TEXTS[:20], [f"a{i}" for i in range(20)]),
            memory_shard(TEXTS[20:], [f"b{i}" for i in range(30)]),
        ],
        **{"seed": 3, "shuffle_block": 8, "epochs": 2, **options},
    )


def test_each_epoch_gives_every_document_once_in_another_order():
    names = [name for name, _ in stream()]
    assert len(names) == 100
    assert (
        sorted(names[:50]) == sorted(names[50:]) == sorted([f"a{i}" for i in range(20)] + [f"b{i}" for i in range(30)])
    )
    assert names[:50] != names[50:]
    assert names == [name for name, _ in stream()]
    assert names != [name for name, _ in stream(seed=4)]


def test_without_shuffling_the_order_inside_a_shard_stays():
    names = [name for name, _ in stream(shuffle_block=1, epochs=1)]
    assert [n for n in names if n[0] == "b"] == [f"b{i}" for i in range(30)]


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 49, 50, 51, 99, 100])
def test_a_stream_goes_on_at_the_exact_document(cut):
    names = [name for name, _ in stream()]
    first = stream()
    taken = [name for name, _ in itertools.islice(first, cut)]
    state = json.loads(json.dumps(first.state_dict()))
    second = stream()
    second.load_state_dict(state)
    assert taken + [name for name, _ in second] == names


def test_processes_share_the_documents():
    parts = [[name for name, _ in stream(rank=r, world=3, epochs=1)] for r in range(3)]
    assert sorted(name for part in parts for name in part) == sorted(name for name, _ in stream(epochs=1))
    assert max(map(len, parts)) - min(map(len, parts)) <= 3
    second = stream(rank=1, world=3)
    list(itertools.islice(second, 5))
    third = stream(rank=1, world=3)
    third.load_state_dict(second.state_dict())
    everything = [name for name, _ in stream(rank=1, world=3)]
    assert [name for name, _ in third] == everything[5:]


def test_a_place_of_another_stream_is_refused():
    with pytest.raises(DataError, match=r"seed=4.*seed=3"):
        stream().load_state_dict(stream(seed=4).state_dict())
    with pytest.raises(DataError, match="world"):
        stream(world=2).load_state_dict(stream().state_dict())
    packed = PackedStream(stream(), byte_tokenizer(), 32)
    with pytest.raises(DataError, match="sequence_length=16"):
        packed.load_state_dict(PackedStream(stream(), byte_tokenizer(), 16).state_dict())


@pytest.mark.parametrize("options", [{"shuffle_block": 0}, {"rank": 2, "world": 2}, {"rank": -1}])
def test_impossible_streams_are_refused(options):
    with pytest.raises(ConfigError):
        stream(**options)
    with pytest.raises(ConfigError, match="at least one shard"):
        TextStream([])
    with pytest.raises(DataError, match="no documents"):
        list(TextStream([memory_shard([])]))


def test_encoding_puts_markers_around_each_document_and_keeps_words_that_look_like_them():
    tokenizer = byte_tokenizer()
    tokens, starts = encode_documents(tokenizer, ["ab", "</s>"])
    assert tokens[[0, 3]].tolist() == [BOS, EOS]
    assert np.flatnonzero(starts).tolist() == [0, 4]
    assert len(tokens) == 4 + 6
    assert tokenizer.decode(tokens[5:-1]) == "</s>"
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="eos_token"):
        encode_documents(tokenizer, ["ab"])


def test_pack_numbers_documents_and_leaves_their_first_token_unpredicted():
    tokens = np.arange(10, 22)
    starts = np.zeros(12, dtype=bool)
    starts[[0, 3, 8]] = True
    packed = pack(tokens, starts, 6)
    assert packed.input_ids.tolist() == [[10, 11, 12, 13, 14, 15], [16, 17, 18, 19, 20, 21]]
    assert packed.seq_idx.tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
    assert packed.labels.tolist() == [
        [IGNORED, 11, 12, IGNORED, 14, 15],
        [16, 17, IGNORED, 19, 20, 21],
    ]
    assert position_ids(packed.seq_idx).tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]]
    assert cu_seqlens(packed.seq_idx).tolist() == [0, 3, 6, 8, 12]
    plain = pack(tokens, starts, 6, masked=False)
    assert plain.seq_idx is None
    assert (plain.labels == plain.input_ids).all()
    assert len(pack(tokens, starts, 5)) == 2


@pytest.mark.parametrize("cut", [0, 1, 10, 23, 40])
def test_a_packed_stream_goes_on_with_the_very_next_sequence(cut):
    def make():
        return PackedStream(stream(), byte_tokenizer(), 48, batch=5)

    everything = [row["input_ids"].tolist() for row in make()]
    first = make()
    taken = [row["input_ids"].tolist() for row in itertools.islice(first, cut)]
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert taken + [row["input_ids"].tolist() for row in second] == everything
    # nothing is lost: the sequences in a row are the documents in a row
    tokens, _ = encode_documents(byte_tokenizer(), [text for _, text in stream()])
    flat = [token for row in everything for token in row]
    assert flat == tokens[: len(flat)].tolist()
    assert len(tokens) - len(flat) < 48


def test_a_streamed_dataset_finds_its_place_by_index():
    def make():
        return StreamedText(PackedStream(stream(epochs=None), byte_tokenizer(), 32, batch=4), length=40)

    straight = make()
    batches = [straight.__getitems__(range(i, i + 4)) for i in range(0, 120, 4)]
    assert batches[0]["input_ids"].shape == (4, 32)
    jumped = make()
    assert jumped.__getitems__(range(60, 64))["input_ids"].equal(batches[15]["input_ids"])
    assert jumped.__getitems__(range(8, 12))["seq_idx"].equal(batches[2]["seq_idx"])
    state = json.loads(json.dumps(straight.state_dict(100)))
    assert state["index"] == 100
    loaded = make()
    loaded.load_state_dict(state)
    assert loaded.__getitems__(range(104, 108))["labels"].equal(batches[26]["labels"])


def test_a_train_split_is_cut_elsewhere_in_each_epoch():
    class Key:
        def __init__(self, epoch, index):
            self.epoch, self.index = epoch, index

    made = PackedText(byte_tokenizer(), TEXTS, 40, seed=5)
    again = PackedText(byte_tokenizer(), TEXTS, 40, seed=5)
    first = made.__getitems__([Key(0, i) for i in range(len(made))])["input_ids"]
    assert first.reshape(-1).tolist() == made.tokens[: first.numel()].tolist()
    second = made.__getitems__([Key(1, i) for i in range(len(made))])["input_ids"]
    assert made.offset(1) > 0
    assert second.reshape(-1).tolist() == made.tokens[made.offset(1) :][: second.numel()].tolist()
    assert again.__getitems__([Key(1, 3)])["input_ids"].equal(second[3:4])
    with pytest.raises(DataError, match="sequence_length"):
        PackedText(byte_tokenizer(), TEXTS[:1], 400)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("length", [16, 64, 100_000])
def test_held_out_windows_score_every_byte_once(bos, length):
    tokenizer = byte_tokenizer()
    if not bos:
        tokenizer.bos_token = None
    windows = WindowedText(tokenizer, TEXTS, length)
    total = sum(len(t.encode()) for t in TEXTS)
    assert windows.scored_bytes == total
    # a byte a token, and one end-of-text token a document
    assert windows.scored_tokens == total + len(TEXTS)
    batch = windows.__getitems__(range(len(windows)))
    scored = batch["labels"][batch["labels"] != IGNORED]
    tokens, starts = encode_documents(tokenizer, TEXTS)
    expected = tokens[~starts] if bos else tokens
    assert scored.tolist() == expected.tolist()
    same = batch["seq_idx"][:, 1:] == batch["seq_idx"][:, :-1]
    assert same[batch["labels"][:, 1:] != IGNORED].all(), "a label would be predicted across documents"


def test_files_of_all_kinds_become_shards(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one text\nof two lines\n")
    lines = "".join(json.dumps({"text": f"line {i}", "id": i}) + "\n" for i in range(3))
    (tmp_path / "b.jsonl").write_text(lines)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "d.txt.xz").write_bytes(lzma.compress(b"x"))
    (tmp_path / "e.txt.bz2").write_bytes(bz2.compress("é".encode()))
    (tmp_path / "f.png").write_bytes(b"no text")
    texts = [text for _, text in TextStream(file_shards(tmp_path), epochs=1, shuffle_block=1)]
    assert sorted(texts) == sorted(
        ["one text\nof two lines", *(f"line {i}" for i in range(3)), *(f"line {i}" for i in range(3)), "x", "é"]
    )
    with pytest.raises(DataError, match=r"no \.txt or \.jsonl"):
        file_shards(tmp_path / "nothing-here")
