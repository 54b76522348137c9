"""Standard errors by the bootstrap (Efron 1979): seeded, so a result file can be computed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np


def bootstrap_errors(
    statistics: Callable[[np.ndarray], Mapping[str, float]], samples: int, *, seed: int = 0, resamples: int = 500
) -> dict[str, float]:
    """Standard deviation of each statistic over resampled test sets.

    Args:
        statistics: from row numbers (N,), drawn with replacement, to named values.
        samples: N.
        seed: of the draws.
        resamples: how many test sets.
    """
    random = np.random.default_rng(seed)
    drawn = [statistics(random.integers(0, samples, samples)) for _ in range(resamples)]
    return {name: float(np.std([d[name] for d in drawn], ddof=1)) for name in drawn[0]}
