"""Boxes drawn on images: detections alone, or beside what is annotated. PIL only."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np

from hybridzoo.data.detection.images import open_upright

RIGHT, WRONG, MISSED = (40, 170, 60), (215, 45, 40), (255, 165, 0)
_GOLDEN_ANGLE = 0.381966  # turns: neighbouring classes get colours far apart


def class_colour(label: int) -> tuple[int, int, int]:
    """A colour for a class index, the same in every picture."""
    red, green, blue = colorsys.hsv_to_rgb((0.6 + label * _GOLDEN_ANGLE) % 1.0, 0.75, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: Any,
    boxes: np.ndarray,
    captions: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
) -> Any:
    """A copy of an image with boxes and their captions.

    Args:
        image: anything that `open_upright` takes.
        boxes: (M, 4) corners in pixels; the first is drawn last, on top.
        captions: M texts; an empty one is not drawn.
        colours: M colours.

    Returns:
        A PIL image of the same size.
    """
    from PIL import ImageDraw, ImageFont

    picture = open_upright(image).copy()
    pen = ImageDraw.Draw(picture)
    side = max(picture.size)
    width = max(round(side / 400), 1)
    font = ImageFont.load_default(size=min(max(round(side / 45), 10), 40))
    for box, caption, colour in reversed(list(zip(np.asarray(boxes, np.float64).tolist(), captions, colours))):
        x1, y1, x2, y2 = box
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour, width=width)
        if not caption:
            continue
        left, top, right, bottom = pen.textbbox((0, 0), caption, font=font)
        wide, high = right - left + 4, bottom - top + 4
        x = min(max(x1, 0), max(picture.width - wide, 0))
        y = y1 - high if y1 >= high else y1
        pen.rectangle((x, y, x + wide, y + high), fill=colour)
        pen.text((x + 2 - left, y + 2 - top), caption, fill=_readable(colour), font=font)
    return picture


def _readable(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever stands out."""
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if bright > 140 else (255, 255, 255)


def draw_objects(image: Any, objects: Sequence[Any], label_names: Sequence[str]) -> Any:
    """A picture of what `Detector.__call__` named: a colour per class, "label score" at each box."""
    index = {name: i for i, name in enumerate(label_names)}
    return draw_boxes(
        image,
        np.array([one["box"] for one in objects], np.float64).reshape(-1, 4),
        [f"{one['label']} {one['score']:.2f}" for one in objects],
        [class_colour(index.get(one["label"], 0)) for one in objects],
    )


def draw_errors(
    image: Any,
    truth: tuple[np.ndarray, Sequence[str]],
    found: tuple[np.ndarray, Sequence[str]],
    right: np.ndarray,
    missed: np.ndarray,
) -> Any:
    """A picture of a detector's errors: right detections green, wrong ones red, missed objects orange.

    Args:
        image: the image.
        truth: boxes (n, 4) and names of what is annotated.
        found: boxes (M, 4) and captions of what was detected.
        right: (M,) bool.
        missed: (n,) bool.
    """
    boxes, names = truth
    chosen: list[int] = np.flatnonzero(missed).tolist()
    return draw_boxes(
        image,
        np.concatenate([found[0], boxes[chosen]]),
        [*found[1], *(f"missed {names[i]}" for i in chosen)],
        [RIGHT if r else WRONG for r in right] + [MISSED] * len(chosen),
    )
