"""What lies beside a result to be looked at: pictures and texts, in a small version that the page carries.

    <result>.<kind>.png|jpg|webp    heat (heat maps), boxes, samples (generated images), curves, …
    <result>.<kind>.txt             texts that a language model wrote
    <result>.errors/*.png           a detector's worst images

A confusion matrix needs no picture: the page draws it from the counts in the result.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from pathlib import Path
from typing import Any

from hybridzoo.eval.leaderboard.render import relative
from hybridzoo.eval.leaderboard.rows import Row

TITLES = {
    "heat": "Heat maps",
    "boxes": "Detections",
    "samples": "Samples",
    "curves": "Precision and recall",
    "errors": "Most errors",
    "text": "Written by the model",
}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
DRAWN_ELSEWHERE = ("confusion",)
MOST_PICTURES = 5  # of one row
PIXELS, SIDE = 260_000, 1200  # of an embedded picture: as many at most, and on its longer side
SHARP = 560  # longer side that small pictures are enlarged to
MOST_TEXT = 4000  # characters
# Encoders differ between builds of Pillow, so `leaderboard check` compares pages without these.
EMBEDDED = re.compile(r'"src":"data:image/webp;base64,[^"]*"')


def row_samples(row: Row, folder: Path) -> list[dict[str, Any]]:
    """Samples of the first run of a row that has any; links are relative to `folder`."""
    for entry in row.entries:
        found = [_sample(path, kind, folder) for path, kind in sample_files(entry.path)]
        if any(found):
            return [sample for sample in found if sample]
    return []


def sample_files(result: Path) -> list[tuple[Path, str]]:
    """(file, kind) of what lies beside a result file, in the order of TITLES, at most MOST_PICTURES."""
    found = []
    for path in sorted(result.parent.glob(f"{result.stem}.*")):
        kind = path.stem.removeprefix(f"{result.stem}.")
        if path.is_dir() and path.name == f"{result.stem}.errors":
            found += [(inner, "errors") for inner in sorted(path.iterdir()) if inner.suffix.lower() in PICTURES]
        elif path.suffix.lower() in (*PICTURES, ".txt") and kind and kind not in DRAWN_ELSEWHERE:
            found.append((path, kind))
    order = list(TITLES)
    found.sort(key=lambda item: order.index(item[1]) if item[1] in order else len(order))
    return found[:MOST_PICTURES]


def _sample(path: Path, kind: str, folder: Path) -> dict[str, Any] | None:
    title = TITLES.get(kind, kind.replace("_", " ").capitalize())
    facts = {"kind": kind, "title": title, "href": relative(path, folder)}
    data = path.read_bytes()
    if path.suffix == ".txt":
        return facts | {"text": data.decode("utf-8", "replace")[:MOST_TEXT]}
    small = _small(data)
    if small is None:
        return None
    source, width, height = small
    return facts | {"src": source, "width": width, "height": height, "sha": hashlib.sha256(data).hexdigest()[:16]}


def _small(data: bytes) -> tuple[str, int, int] | None:
    """A data URI and the size of its picture; None for what is no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None
    scale = min(1.0, SIDE / max(image.size), (PIXELS / (image.width * image.height)) ** 0.5)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    elif max(image.size) * 2 <= SHARP:  # small images stay sharp when they are shown larger
        factor = SHARP // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=72, method=4)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}", image.width, image.height
