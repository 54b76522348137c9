"""Connected regions of a mask, in numpy: runs of each row, joined where they touch."""

from __future__ import annotations

import numpy as np


def label_regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the connected regions (8 neighbours) of a mask (H, W) of bool.

    Returns:
        (H, W) int64: 0 outside, 1 … R in the order in which a raster scan meets the regions; and R.
    """
    numbers = np.zeros(mask.shape, np.int64)
    if not mask.any():
        return numbers, 0
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, start = np.nonzero(edges == 1)
    end = np.nonzero(edges == -1)[1]  # one past the last pixel
    parent = _join(row, start, end)
    roots, region = np.unique(parent, return_inverse=True)
    lengths = end - start
    run = np.repeat(np.arange(len(row)), lengths)
    offset = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
    numbers[row[run], start[run] + offset] = region[run] + 1
    return numbers, len(roots)


def _join(row: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """For each run, the first run of its region; runs are in raster order."""
    # runs of the row above that touch run i, diagonals included: those with end >= start[i] and start <= end[i]
    step = int(max(end)) + 2
    low = np.searchsorted(row * step + end, (row - 1) * step + start, side="left")
    high = np.searchsorted(row * step + start, (row - 1) * step + end, side="right")
    parent = list(range(len(row)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, (a, b) in enumerate(zip(low.tolist(), high.tolist())):
        for j in range(a, b):
            x, y = root(i), root(j)
            parent[max(x, y)] = min(x, y)
    return np.array([root(i) for i in range(len(row))])
