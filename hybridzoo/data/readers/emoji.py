"""Google's emoji as a small set of colour images in nine categories."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.base import ArrayImages, Raw, Skipped, Split
from hybridzoo.errors import DataError

SIDE = 64
SPLITS = (("train", 80), ("validation", 10), ("test", 10))


def read_emoji(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """Images composited on white; split by code point, so that skin tones of one emoji stay together.

    Option `skin_tones` (default False) adds the variations.
    """
    root = root / "package" if (root / "package" / "emoji.json").is_file() else root
    folder, listing = root / "img" / "google" / "64", root / "emoji.json"
    if not listing.is_file() or not folder.is_dir():
        raise DataError(f"{root} must hold emoji.json and img/google/64")
    try:
        entries = json.loads(listing.read_text(encoding="utf-8"))
        rows = [(e["unified"], e["category"], e["image"]) for e in entries]
        if options.pop("skin_tones", False):
            rows += [
                (e["unified"], e["category"], v["image"])
                for e in entries
                for v in e.get("skin_variations", {}).values()
            ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{listing} is not the list of emoji-datasource ({error})") from error
    rows = [row for row in rows if row[1] != "Component"]  # bare skin tones and hair
    names = tuple(sorted({category for _, category, _ in rows}))
    parts: dict[str, list[tuple[str, int, np.ndarray]]] = {name: [] for name, _ in SPLITS}
    skipped, digest = [], hashlib.sha256()
    for base, category, file in sorted(rows):
        image = _on_white(folder / file)
        if image is None:
            skipped.append(Skipped(file, "missing, or not 64 x 64 RGBA"))
            continue
        digest.update(image.tobytes())
        parts[_split_of(base, seed)].append((Path(file).stem, names.index(category), image))
    if not all(parts.values()):
        raise DataError(f"{folder} holds too few of the images that emoji.json lists ({len(skipped)} missing)")
    splits = {
        name: Split([r[0] for r in part], [r[1] for r in part], ArrayImages(np.stack([r[2] for r in part])), "image")
        for name, part in parts.items()
    }
    return Raw(
        splits=splits,
        label_names=names,
        sha256=digest.hexdigest(),
        sha256_of="pixels on white, in order",
        skipped=tuple(skipped),
    )


def _split_of(base: str, seed: int) -> str:
    """By the code point alone: a number from 0 to 99 of its digest."""
    number = int.from_bytes(hashlib.sha256(f"{seed} {base}".encode()).digest()[:8], "big") % 100
    for name, share in SPLITS:
        if number < share:
            return name
        number -= share
    return SPLITS[-1][0]


def _on_white(path: Path) -> np.ndarray | None:
    """(64, 64, 3) uint8, or None."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGBA")
    except OSError:
        return None
    if image.size != (SIDE, SIDE):
        return None
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    return np.asarray(canvas.convert("RGB"))
