"""Endless text for language models: documents from files, tokenised and packed into sequences, with an exact place.

    documents -> TextStream (order, shuffling, processes) -> PackedStream (tokens, sequences of one length)

Both have `state_dict` and `load_state_dict`: a stream that was stopped and loaded goes on with the very next document
or sequence. Nothing is kept in memory beyond one block of documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.readers.corpus import documents, kind_of
from hybridzoo.errors import ConfigError, DataError

Document = tuple[str, str]
Shard = Callable[[], Iterator[Document]]  # can be pickled, for the workers of a DataLoader
IGNORED = -100  # a label that the loss leaves out


def file_shards(root: str | Path, **options: Any) -> list[Shard]:
    """One shard for each text or JSON-lines file below a folder, or for the file, in the order of their names.

    Args:
        root: file or folder.
        **options: of `hybridzoo.data.readers.corpus.documents`: separator, text_column, encoding.

    Raises:
        DataError: nothing readable is there.
    """
    root = Path(root).expanduser()
    paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file() and kind_of(p))
    if not paths:
        raise DataError(f"{root} holds no .txt or .jsonl file (also .gz, .bz2, .xz) to stream")
    return [partial(documents, path, **options) for path in paths]


def hub_shards(
    root: str, *, text_column: str = "text", config_name: str | None = None, split: str = "train"
) -> list[Shard]:
    """The shards of a hub set (`org/name[@revision]`) or local folder, read through `datasets` while they arrive.

    Raises:
        DataError: `datasets` is missing, or cannot stream the set.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError("streaming from the hub needs the package `datasets`: pip install 'hybridzoo[eval]'") from error
    name, _, revision = root.removeprefix("hf:").partition("@")
    try:
        table = datasets.load_dataset(name, config_name, split=split, streaming=True, revision=revision or None)
    except Exception as error:  # datasets raises its own, the hub's and the network's exceptions
        raise DataError(f"`datasets` cannot stream {root!r}: {type(error).__name__}: {error}") from error

    count = max(getattr(table, "num_shards", 1), 1)
    return [partial(_hub_documents, table, root, text_column, count, number) for number in range(count)]


def _hub_documents(table: Any, root: str, text_column: str, count: int, number: int) -> Iterator[Document]:
    for row_number, row in enumerate(table.shard(count, number)):
        if text_column not in row:
            raise DataError(f"{root} has no column {text_column!r} ({', '.join(row)}); give text_column=")
        if row[text_column]:
            yield f"{number}/{row_number}", row[text_column]


def memory_shard(texts: Sequence[str], ids: Sequence[str] | None = None) -> Shard:
    """Documents that are in memory already, as one shard."""
    return partial(_documents_in_memory, texts, ids)


def _documents_in_memory(texts: Sequence[str], ids: Sequence[str] | None) -> Iterator[Document]:
    for i in range(len(texts)):
        yield str(i) if ids is None else ids[i], texts[i]


class StreamSplit:
    """The train split of a stream: nothing is read until its documents are asked for.

    Args:
        shards: what the stream reads.
    """

    kind = "stream"

    def __init__(self, shards: Sequence[Shard]):
        self.shards = list(shards)

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def content(self) -> Iterator[str]:
        """The texts, in the order of the shards, read as they are asked for."""
        return (text for shard in self.shards for _, text in shard())


def hold_out(shards: Sequence[Shard], count: int) -> tuple[list[Document], list[Shard]]:
    """The first `count` documents of the first shard, and the shards without them.

    Raises:
        DataError: the first shard has no more documents than that.
    """
    first = list(islice(shards[0](), count + 1))
    if len(first) <= count:
        raise DataError(
            f"the first shard of the stream has {len(first)} documents, too few to hold out {count} for validation; "
            "give files for validation beside those for train, or a smaller data.options.validation_documents"
        )
    return first[:count], [partial(_without_first, shards[0], count), *shards[1:]]


def _without_first(shard: Shard, count: int) -> Iterator[Document]:
    return islice(shard(), count, None)


class TextStream:
    """The documents of this process, epoch after epoch.

    In each epoch the shards come in a seeded order, and inside it blocks of `shuffle_block` documents are shuffled. The
    processes share one order: process r of w takes documents r, r + w, r + 2w, …

    Args:
        shards: see `file_shards`, `hub_shards`, `memory_shard`.
        seed: of both shufflings.
        shuffle_block: documents that are shuffled together and kept in memory; 1 keeps the order.
        rank, world: this process, of how many.
        epochs: passes; None is endless.

    Raises:
        ConfigError: impossible values.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        seed: int = 0,
        shuffle_block: int = 1024,
        rank: int = 0,
        world: int = 1,
        epochs: int | None = None,
    ):
        if not shards:
            raise ConfigError("a text stream needs at least one shard")
        if shuffle_block < 1 or not 0 <= rank < world:
            raise ConfigError(f"shuffle_block={shuffle_block} must be at least 1, and rank={rank} below world={world}")
        self.shards, self.seed, self.shuffle_block = list(shards), seed, shuffle_block
        self.rank, self.world, self.epochs = rank, world, epochs
        self._place = {"epoch": 0, "read": 0, "block": 0, "given": 0}

    def state_dict(self) -> dict[str, int]:
        """The place: epoch, documents of it (of all processes) read before this block, the block, given from it."""
        return {**self._place, "seed": self.seed, "shuffle_block": self.shuffle_block, "world": self.world}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a place; the next iteration begins there.

        Raises:
            DataError: the state is of a stream with another seed, block or number of processes.
        """
        for key, own in (("seed", self.seed), ("shuffle_block", self.shuffle_block), ("world", self.world)):
            if state.get(key) != own:
                raise DataError(
                    f"the saved place belongs to a stream with {key}={state.get(key)}, this one has {key}={own}; the "
                    "order of its documents is another"
                )
        self._place = {key: int(state[key]) for key in self._place}

    def __iter__(self) -> Iterator[Document]:
        while self.epochs is None or self._place["epoch"] < self.epochs:
            empty = True
            for block in self._blocks():
                order = np.random.default_rng([self.seed, self._place["epoch"], self._place["block"]])
                shuffled = order.permutation(len(block))
                size = len(block)
                for i in shuffled[self._place["given"] :]:
                    empty = False
                    self._place["given"] += 1
                    if i % self.world == self.rank:
                        yield block[i]
                self._place["read"] += size
                self._place["block"] += 1
                self._place["given"] = 0
            if empty and not self._place["read"]:
                raise DataError("the text stream is empty: its shards hold no documents")
            self._place = {"epoch": self._place["epoch"] + 1, "read": 0, "block": 0, "given": 0}

    def _blocks(self) -> Iterator[list[Document]]:
        """Blocks of documents of all processes from the present place on."""
        order = np.random.default_rng([self.seed, self._place["epoch"]]).permutation(len(self.shards))
        skip, block = self._place["read"], []
        for number in order:
            for document in self.shards[number]():
                if skip:
                    skip -= 1
                    continue
                block.append(document)
                if len(block) == self.shuffle_block * self.world:
                    yield block
                    block = []
        if block:
            yield block


@dataclass(frozen=True)
class Sequences:
    """Packed sequences, int64 arrays of shape (N, T).

    Attributes:
        input_ids: tokens.
        labels: equal to `input_ids`, with -100 where nothing predicts the token (see `pack`).
        seq_idx: number of the document in its row, from 0; None where documents see each other.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    seq_idx: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def rows(self, index: Any) -> dict[str, np.ndarray]:
        """Model inputs of one row (T,), or of several (B, T)."""
        chosen = {"input_ids": self.input_ids[index], "labels": self.labels[index]}
        return chosen if self.seq_idx is None else chosen | {"seq_idx": self.seq_idx[index]}


def encode_documents(tokenizer: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of several documents in a row, each as `<bos>` (where the tokenizer has one), text, `<eos>`.

    Words in a text that look like special tokens stay text.

    Returns:
        tokens (N,) int32, and starts (N,) bool: whether a document begins there.

    Raises:
        ConfigError: a tokenizer without an end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer {type(tokenizer).__name__} has no eos_token to put between documents")
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    lengths = np.fromiter((len(row) + len(first) + 1 for row in rows), dtype=np.int64, count=len(rows))
    tokens = np.fromiter(
        (t for row in rows for part in (first, row, (tokenizer.eos_token_id,)) for t in part), np.int32, lengths.sum()
    )
    starts = np.zeros(len(tokens), dtype=bool)
    starts[np.cumsum(lengths) - lengths] = True
    return tokens, starts


def pack(tokens: np.ndarray, starts: np.ndarray, sequence_length: int, *, masked: bool = True) -> Sequences:
    """Cut a row of documents into sequences of one length; what does not fill the last one is left out.

    Args:
        tokens: (M,) of documents in a row.
        starts: (M,) bool, true where a document begins.
        sequence_length: T.
        masked: documents do not see each other, and the first token of each, which nothing predicts, has no label.
            Otherwise one sequence is one text.

    Returns:
        M // T sequences. A document that is cut goes on in the next sequence, as a document of its own.
    """
    count = len(tokens) // sequence_length
    ids = tokens[: count * sequence_length].reshape(count, sequence_length).astype(np.int64)
    if not masked:
        return Sequences(ids, ids.copy())
    begins = starts[: count * sequence_length].reshape(count, sequence_length).copy()
    labels = np.where(begins, IGNORED, ids)
    begins[:, :1] = False
    return Sequences(ids, labels, np.cumsum(begins, axis=1))


def position_ids(seq_idx: np.ndarray) -> np.ndarray:
    """Positions that restart at 0 with each document, (B, T) int64, from document numbers (B, T)."""
    numbers = np.asarray(seq_idx)
    columns = np.broadcast_to(np.arange(numbers.shape[1]), numbers.shape)
    begins = np.ones(numbers.shape, dtype=bool)
    begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return columns - np.maximum.accumulate(np.where(begins, columns, 0), axis=1)


def cu_seqlens(seq_idx: np.ndarray) -> np.ndarray:
    """Offsets of the documents of a packed batch laid row after row, (D + 1,) int32, from document numbers (B, T)."""
    positions = position_ids(seq_idx).reshape(-1)
    return np.append(np.flatnonzero(positions == 0), len(positions)).astype(np.int32)


class PackedStream:
    """Sequences of one length from a text stream.

    Args:
        stream: where the documents come from.
        tokenizer: of transformers, with an end-of-text token.
        sequence_length: tokens of a sequence.
        masked: see `pack`.
        batch: documents that are tokenised together.
    """

    def __init__(
        self, stream: TextStream, tokenizer: Any, sequence_length: int, *, masked: bool = True, batch: int = 64
    ):
        if sequence_length < 2:
            raise ConfigError(f"sequence_length={sequence_length}: a sequence needs at least 2 tokens")
        self.stream, self.tokenizer, self.sequence_length = stream, tokenizer, sequence_length
        self.masked, self.batch = masked, batch
        self._begin: dict[str, Any] = {"stream": stream.state_dict(), "tokens": [], "starts": []}
        self._given = 0

    def state_dict(self) -> dict[str, Any]:
        """The place, as JSON can hold it: where the batch of documents began, what was left before it, what it gave."""
        return {**self._begin, "given": self._given, "sequence_length": self.sequence_length, "batch": self.batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place; raises DataError for a state of a stream with other settings."""
        for key, own in (("sequence_length", self.sequence_length), ("batch", self.batch)):
            if state.get(key) != own:
                raise DataError(f"the saved place has {key}={state.get(key)}, this stream has {own}")
        self.stream.load_state_dict(state["stream"])
        self._begin = {key: state[key] for key in ("stream", "tokens", "starts")}
        self._given = int(state["given"])

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """`input_ids`, `labels` and, if masked, `seq_idx` of one sequence, each (T,) int64."""
        source = iter(self.stream)
        tokens = np.asarray(self._begin["tokens"], dtype=np.int32)
        starts = np.asarray(self._begin["starts"], dtype=bool)
        while True:
            texts = [text for _, (_, text) in zip(range(self.batch), source)]
            if not texts:
                return
            more, begins = encode_documents(self.tokenizer, texts)
            tokens, starts = np.concatenate([tokens, more]), np.concatenate([starts, begins])
            packed = pack(tokens, starts, self.sequence_length, masked=self.masked)
            for i in range(self._given, len(packed)):
                self._given += 1
                yield packed.rows(i)
            tokens, starts = (a[len(packed) * self.sequence_length :] for a in (tokens, starts))
            place = self.stream.state_dict()
            self._begin = {"stream": place, "tokens": tokens.tolist(), "starts": starts.tolist()}
            self._given = 0
