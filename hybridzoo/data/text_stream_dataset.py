"""Packed text as datasets that hand out whole batches by index, for training and validation.

`PackedText` holds a split in memory. `StreamedText` reads an endless stream, in order; asked for a later batch (a run
that goes on from a checkpoint) it goes to the nearest place that it remembers, and reads on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hybridzoo._atomic_file import whole_file
from hybridzoo.data.text_stream import IGNORED, PackedStream, Sequences, encode_documents, pack
from hybridzoo.data.text_stream_tokenizers import KEPT_FROM, kept_folder
from hybridzoo.errors import DataError

_ENCODE = 2000  # documents that are tokenised together
_CACHE_FORMAT = "documents 1"  # change it when encode_documents gives other tokens
_REMEMBER = 64  # places that a stream keeps


def as_batch(sequences: Sequences, rows: Any) -> dict[str, torch.Tensor]:
    """Rows of packed sequences as tensors (B, T) int64."""
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in sequences.rows(rows).items()}


def encode_split(tokenizer: Any, texts: Sequence[str], *, cache: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All tokens of a split in a row, int32, and where documents begin; see `text_stream.encode_documents`.

    Args:
        tokenizer: of transformers.
        texts: documents.
        cache: folder that keeps the tokens of texts of more than 8 MB, under the hash of texts and tokenizer; None is
            `$HYBRIDZOO_CACHE/tokens` or `~/.cache/hybridzoo/tokens`. One that cannot be written is not used.
    """
    if sum(map(len, texts)) < KEPT_FROM:
        return _encode(tokenizer, texts)
    path = (cache or kept_folder("tokens")) / f"{_digest(tokenizer, texts)}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(path) as kept:
        return kept["tokens"], kept["starts"]
    tokens, starts = _encode(tokenizer, texts)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as staged, open(staged, "wb") as file:  # several runs may start together
            np.savez(file, tokens=tokens, starts=starts)
    return tokens, starts


def _digest(tokenizer: Any, texts: Sequence[str]) -> str:
    found = hashlib.sha256()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    found.update(f"{_CACHE_FORMAT} {tokenizer.bos_token_id} {tokenizer.eos_token_id} {rules}".encode())
    for text in texts:
        found.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return found.hexdigest()[:32]


def _encode(tokenizer: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    parts = [encode_documents(tokenizer, texts[i : i + _ENCODE]) for i in range(0, len(texts), _ENCODE)]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


class PackedText(Dataset):
    """The train split of a text: documents in a seeded order, cut into sequences at another place in each epoch.

    Args:
        tokenizer: of transformers.
        texts: documents.
        sequence_length: T.
        masked: documents in one sequence do not see each other.
        seed: of the order of the documents and of the cuts.

    Raises:
        DataError: the text is shorter than one sequence.
    """

    def __init__(
        self, tokenizer: Any, texts: Sequence[str], sequence_length: int, *, masked: bool = True, seed: int = 0
    ):
        tokens, starts = encode_split(tokenizer, texts)  # in the given order, so that all seeds share what is kept
        order = np.random.default_rng([seed, 1]).permutation(len(texts))
        documents = np.split(np.arange(len(tokens)), np.flatnonzero(starts)[1:])
        rows = np.concatenate([documents[i] for i in order])
        self.tokens, self.starts = tokens[rows], starts[rows]
        self.sequence_length, self.masked, self.seed = sequence_length, masked, seed
        self.count = (len(self.tokens) - sequence_length + 1) // sequence_length
        if self.count < 1:
            raise DataError(
                f"the text has {len(self.tokens)} tokens, which fill no sequence of {sequence_length} at every cut; "
                "give more text, or a smaller data.options.sequence_length"
            )

    def __len__(self) -> int:
        return self.count

    def offset(self, epoch: int) -> int:
        """Tokens that an epoch leaves out at the beginning, so that the cuts move; 0 in the first."""
        return int(np.random.default_rng([self.seed, 2, epoch]).integers(self.sequence_length)) if epoch else 0

    def __getitem__(self, key: Any) -> dict[str, torch.Tensor]:
        return {k: v[0] for k, v in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Batch of keys (with `epoch` and `index`) or plain indices: input_ids, labels, seq_idx (B, T) int64."""
        starts = [
            self.offset(getattr(k, "epoch", 0)) + int(getattr(k, "index", k)) * self.sequence_length for k in keys
        ]
        rows = np.asarray(starts)[:, None] + np.arange(self.sequence_length)
        packed = pack(
            self.tokens[rows].reshape(-1), self.starts[rows].reshape(-1), self.sequence_length, masked=self.masked
        )
        return as_batch(packed, slice(None))


class WindowedText(Dataset):
    """A held-out split in windows that overlap by one token, so that each token but a document's first is scored once.

    With `masked`, a window holds parts of several documents which do not see each other; a document that is cut goes on
    without its context in the next window.

    Args:
        tokenizer: of transformers.
        texts: documents.
        sequence_length: T.
        masked: documents do not see each other.

    Attributes:
        scored_bytes: UTF-8 bytes of the texts, which the scored tokens spell.
        scored_tokens: labels that are not ignored; the end-of-text tokens count, their bytes (none) do not.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], sequence_length: int, *, masked: bool = True):
        tokens, starts = encode_split(tokenizer, texts)
        if tokenizer.bos_token_id is None:  # something must stand before the first token that is to be predicted
            begin = np.flatnonzero(starts)
            tokens = np.insert(tokens, begin, tokenizer.eos_token_id)
            starts = np.zeros(len(tokens), dtype=bool)
            starts[begin + np.arange(len(begin))] = True
        stride = sequence_length - 1
        windows = math.ceil(max(len(tokens) - 1, 1) / stride)
        padded = windows * stride + 1
        keep = np.arange(padded) < len(tokens)
        tokens, starts = np.resize(tokens, padded), np.resize(starts, padded) & keep
        rows = np.arange(windows)[:, None] * stride + np.arange(sequence_length)
        packed = pack(tokens[rows].reshape(-1), starts[rows].reshape(-1), sequence_length, masked=True)
        labels = np.where(keep[rows], packed.labels, IGNORED)
        labels[:, 0] = IGNORED  # scored as the last token of the window before
        self.sequences = Sequences(packed.input_ids, labels, packed.seq_idx if masked else None)
        self.scored_bytes = sum(len(t.encode("utf-8", "surrogatepass")) for t in texts)
        self.scored_tokens = int((labels != IGNORED).sum())

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return as_batch(self.sequences, int(index))

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Batch of indices: input_ids, labels and, if masked, seq_idx (B, T) int64."""
        return as_batch(self.sequences, np.asarray(indices, dtype=np.int64))


class StreamedText(Dataset):
    """Sequences of a `PackedStream` by index. Indices go up; a step back or a jump is a move to a remembered place.

    Args:
        stream: of this process.
        length: sequences that an "epoch" of the trainer has; the stream itself is endless.
    """

    def __init__(self, stream: PackedStream, length: int):
        self.stream, self.length = stream, length
        self.next, self._iterator = 0, iter(stream)
        self.places: dict[int, Mapping[str, Any]] = {0: stream.state_dict()}

    def __getstate__(self) -> dict[str, Any]:
        """For a worker of a DataLoader: an iterator cannot be pickled, so the first batch moves to its place anew."""
        return {**self.__dict__, "next": -1, "_iterator": iter(())}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: Any) -> dict[str, torch.Tensor]:
        return {k: v[0] for k, v in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Batch of keys whose indices follow each other: input_ids, labels and, if masked, seq_idx (B, T) int64."""
        first = self._absolute(keys[0])
        if first != self.next:
            self.seek(first)
        self._remember()
        rows = [row for _, row in zip(keys, self._iterator)]
        if len(rows) < len(keys):
            raise DataError(
                f"the stream ended after {self.next + len(rows)} sequences of {self.stream.sequence_length}"
            )
        self.next += len(rows)
        return {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}

    def _absolute(self, key: Any) -> int:
        return int(getattr(key, "epoch", 0)) * self.length + int(getattr(key, "index", key))

    def _remember(self) -> None:
        self.places[self.next] = self.stream.state_dict()
        if len(self.places) > _REMEMBER:  # drop the oldest but the first: any index can be reached from it
            del self.places[sorted(self.places)[1]]

    def seek(self, index: int) -> None:
        """Make `index` the next sequence: from the nearest remembered place before it, reading what lies between."""
        place = max(p for p in self.places if p <= index)
        self.stream.load_state_dict(self.places[place])
        self._iterator = iter(self.stream)
        for _ in _take(self._iterator, index - place):
            pass
        self.next = index

    def state_dict(self, index: int) -> dict[str, Any]:
        """The nearest remembered place at or before sequence `index`, for a checkpoint."""
        place = max(p for p in self.places if p <= index)
        return {"index": place, "place": dict(self.places[place])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember the place of a checkpoint; raises DataError when it is of a stream with other settings."""
        self.stream.load_state_dict(state["place"])
        self.places[int(state["index"])] = state["place"]
        self.seek(int(state["index"]))


def _take(iterator: Iterator[Any], count: int) -> Iterator[Any]:
    return (row for _, row in zip(range(count), iterator))
