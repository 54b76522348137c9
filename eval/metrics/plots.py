"""The confusion matrix as a picture (matplotlib, extra `[eval]`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

MAX_CLASSES = 40  # beyond that a cell has no room for its number, and the picture says nothing


def save_confusion_matrix(matrix: np.ndarray, names: Sequence[str], path: str | Path, *, title: str = "") -> bool:
    """Write a PNG; returns False (and writes nothing) without matplotlib or with more than 40 classes.

    Args:
        matrix: (K, K) counts, row = true class.
        names: K class names.
        path: where to write.
        title: above the picture.
    """
    if len(names) > MAX_CLASSES:
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    matrix = np.asarray(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.4 + 0.62 * len(names)
    figure = Figure(figsize=(side + 0.6, side), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(names)):
        for column in range(len(names)):
            text = f"{matrix[row, column]:,}" + (f"\n{shares[row, column]:.0%}" if len(names) <= 12 else "")
            colour = "white" if shares[row, column] > 0.55 else "#222222"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    figure.savefig(path, format="png")
    return True
