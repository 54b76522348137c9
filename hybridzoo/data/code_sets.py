"""Sets for image generation, as keywords of `catalog.DataSpec`: extracted codes, emoji; the rules of code sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybridzoo.data.base import IMAGE
from hybridzoo.errors import DataError

GENERATION = "image-generation"
SPECS: tuple[dict[str, Any], ...] = (
    {
        "name": "llamagen_codes",
        "title": "Codes of images in classes, as LlamaGen's script extracts them",
        "task": GENERATION,
        "reader": "hybridzoo.data.readers.codes:read_class_codes",
        "license": "of the images",
        "source": "https://github.com/FoundationVision/LlamaGen (autoregressive/train/extract_codes_c2i.py)",
        "protocols": ("given",),
        "needs": "root = a folder with imagenet256_codes/0.npy, 1.npy, … (1, versions, tokens) or (1, tokens) integers "
        "and imagenet256_labels/ with the same names, (1,) integers; any number in place of 256",
        "options": ("num_classes", "hold_out"),
    },
    {
        "name": "text_codes",
        "title": "Codes of images with features of their texts",
        "task": GENERATION,
        "reader": "hybridzoo.data.readers.codes:read_text_codes",
        "license": "of the images",
        "source": "local folder (CC3M or your own, as LlamaGen's extract_codes_t2i.py and its T5 script give them)",
        "protocols": ("given",),
        "needs": "root = a folder with codes/NAME.npy (1, tokens) integers and texts/NAME.npy (1, length, width) "
        "floats, the features of a T5 encoder for the text's tokens",
        "options": ("hold_out",),
    },
    {
        "name": "emoji",
        "title": "Google's emoji, 64 x 64 pixels on white",
        "task": IMAGE,
        "reader": "hybridzoo.data.readers.emoji:read_emoji",
        "license": "Apache-2.0 (images), MIT (list)",
        "source": "npm emoji-datasource-google 16.0.0 (https://github.com/iamcal/emoji-data)",
        "protocols": ("80/10/10",),
        "needs": "root = a folder with emoji.json and img/google/64/*.png, as `npm pack "
        "emoji-datasource-google@16.0.0` unpacks into package/",
        "options": ("skin_tones",),
    },
)


def check_splits(name: str, splits: Mapping[str, Any], label_names: Sequence[str]) -> None:
    """Raise DataError for an empty split, or a label that is no class."""
    if not splits or not all(len(split) for split in splits.values()):
        raise DataError(f"{name}: no codes were found")
    for split_name, split in splits.items():
        low, high = min(split.labels), max(split.labels)
        if low < 0 or high >= len(label_names):
            raise DataError(
                f"{name}: split {split_name!r} has labels from {low} to {high}, and there are {len(label_names)} "
                "classes (num_classes= says how many)"
            )


def draw(split: Any, limit: int, seed: int) -> Any:
    """At most `limit` samples, drawn with a seed."""
    if len(split) <= limit:
        return split
    return split.select(sorted(np.random.default_rng(seed).permutation(len(split))[:limit].tolist()))
