"""Texts over a small vocabulary, kept as one byte per token."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class TokenTexts(Sequence[str]):
    """Texts of words with blanks between them.

    Training reads `flat` and `starts` in place of the texts where the tokenizer agrees with `words`
    (`hybridzoo.training.datasets.stored_tokens`).

    Args:
        words: the vocabulary, at most 256 words.
        flat: uint8 positions in `words`, text after text.
        lengths: words of each text.
    """

    def __init__(self, words: Sequence[str], flat: np.ndarray, lengths: Sequence[int] | np.ndarray) -> None:
        self.words = tuple(words)
        self._flat: np.ndarray | None = flat
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    @property
    def flat(self) -> np.ndarray:
        """(total,) uint8."""
        assert self._flat is not None
        return self._flat

    @property
    def starts(self) -> np.ndarray:
        """(N + 1,) int64: text i is flat[starts[i]:starts[i + 1]]."""
        return self._starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        start = int(index) % len(self)
        return " ".join([self.words[i] for i in self.flat[self.starts[start] : self.starts[start + 1]]])

    def select(self, indices: Sequence[int]) -> TokenTexts:
        """These texts, in this order."""
        parts = [self.flat[self.starts[i] : self.starts[i + 1]] for i in indices]
        flat = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
        return TokenTexts(self.words, flat, [len(p) for p in parts])

    def digests(self) -> list[bytes] | None:
        """A short hash of each text."""
        return [
            hashlib.blake2b(self.flat[a:b].tobytes(), digest_size=12).digest()
            for a, b in zip(self.starts[:-1], self.starts[1:])
        ]


class MadeTokenTexts(TokenTexts):
    """Texts that are made when the first one is asked for.

    Args:
        words: the vocabulary.
        count: how many texts `make` gives.
        make: gives (flat, lengths).
    """

    def __init__(self, words: Sequence[str], count: int, make: Callable[[], tuple[np.ndarray, np.ndarray]]) -> None:
        self.words, self._count, self._make = tuple(words), count, make
        self._flat = None
        self._starts = np.zeros(0, np.int64)

    def _fill(self) -> None:
        if self._flat is None:
            self._flat, lengths = self._make()
            self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            assert len(lengths) == self._count

    @property
    def flat(self) -> np.ndarray:
        """See TokenTexts."""
        self._fill()
        return super().flat

    @property
    def starts(self) -> np.ndarray:
        """See TokenTexts."""
        self._fill()
        return super().starts

    def __len__(self) -> int:
        return self._count

    def digests(self) -> None:
        """None: comparing them would mean making them; `make` leaves out what lies in the other splits."""
        return None
