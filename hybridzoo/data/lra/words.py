"""The 32-bit words that Python's and NumPy's Mersenne Twister hand out, in bulk.

`random.random()`, `random.choice`, `numpy.random.randint` … are short functions of these words. Reading the words from
a list and applying the functions in place gives the same draws at a fraction of the time.
"""

from __future__ import annotations

import random

import numpy as np


class PythonWords:
    """Words of `random.seed(seed)`."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def take(self, count: int) -> np.ndarray:
        """The next `count` words, uint32."""
        return np.frombuffer(self._random.getrandbits(32 * count).to_bytes(4 * count, "little"), "<u4")


class NumpyWords:
    """Words of `numpy.random.seed(seed)`."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.MT19937()
        self._bits._legacy_seeding(seed)

    def take(self, count: int) -> list[int]:
        """The next `count` words."""
        return self._bits.random_raw(count).tolist()


def block_seed(seed: int, block: int) -> int:
    """The seed of one block of a data set that is made in blocks.

    Block 0 has the seed itself, so it is what the official program makes; the others have seeds far from it, so that
    sets of neighbouring seeds share nothing.
    """
    return seed if block == 0 else int(np.random.SeedSequence([seed, block]).generate_state(1)[0])
