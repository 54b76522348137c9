"""The sets that ship inside the package: `hybridzoo/data/embedded/` (see README.md there for origin, licence and how
they were made).
"""

from __future__ import annotations

import bz2
import io
import lzma
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.base import ArrayImages, Raw, Split, sha256_files
from hybridzoo.data.readers.idx import FASHION_LABELS
from hybridzoo.data.splits import split_grouped
from hybridzoo.errors import DataError, unknown

FOLDER = Path(__file__).resolve().parent.parent / "embedded"
VADER_SOURCES = ("tweets", "movies", "amazon", "nyt")
VADER_LABELS = ("negative", "neutral", "positive")
VADER_THRESHOLD = 0.5


def embedded_file(name: str) -> Path:
    """The path of a file of `hybridzoo/data/embedded`."""
    path = FOLDER / name
    if not path.is_file():
        raise DataError(f"{path} is missing: it is part of hybridzoo; reinstall the package")
    return path


def vader_label(rating: float) -> int:
    """0 negative, 1 neutral, 2 positive, for a mean rating from -4 to 4; the border +-0.5 is neutral."""
    return 0 if rating < -VADER_THRESHOLD else 2 if rating > VADER_THRESHOLD else 1


def read_vader(root: None, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """23,703 snippets with mean human ratings in three classes, split 80/10/10; equal texts never cross a split."""
    wanted = options.get("sources") or VADER_SOURCES
    wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    for source in wanted:
        if source not in VADER_SOURCES:
            raise DataError(unknown("source of the VADER set", source, VADER_SOURCES))
    path = embedded_file("vader.tsv.bz2")
    ids, labels, texts = [], [], []
    for line in bz2.decompress(path.read_bytes()).decode("utf-8").split("\n")[:-1]:
        source, number, rating, text = line.split("\t", 3)
        if source in wanted:
            ids.append(f"{source}/{number}")
            labels.append(vader_label(float(rating)))
            texts.append(text)
    parts = split_grouped(labels, [" ".join(t.split()).lower() for t in texts], seed=seed)
    everything = Split(ids, labels, texts, "text")
    return Raw(
        splits={name: everything.select(rows) for name, rows in parts.items()},
        label_names=VADER_LABELS,
        sha256=sha256_files([path]),
        revision="vaderSentiment 0.5, hutto_ICWSM_2014",
        subset=set(wanted) != set(VADER_SOURCES),
    )


def read_fashion_mnist_mini(root: None, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """A class-balanced draw from Fashion-MNIST with fixed splits (the test images come from its test part)."""
    path = embedded_file("fashion_mnist_mini.npz.xz")
    with np.load(io.BytesIO(lzma.decompress(path.read_bytes()))) as arrays:
        splits = {
            name: Split(
                [f"{'test' if name == 'test' else 'train'}-{i}" for i in arrays[f"{name}_rows"]],
                arrays[f"{name}_labels"].tolist(),
                ArrayImages(arrays[f"{name}_images"]),
                "image",
            )
            for name in ("train", "validation", "test")
        }
    return Raw(
        splits=splits,
        label_names=FASHION_LABELS,
        sha256=sha256_files([path]),
        revision="seed 42: 100 / 20 / 50 images a class",
    )
