"""What happens to boxes that cannot be right: one rule for every source.

| box | what happens |
|---|---|
| not four finite numbers | left out, counted and named |
| no width or no height (empty), or x2 < x1 or y2 < y1 (inverted) | left out, counted and named |
| entirely outside its image | left out, counted and named |
| partly outside | `outside="clip"`: clipped, counted in the notes; "keep": kept as it is; "refuse": DataError |

Too many left out (more than `max_skipped`, 5 %) refuse the file: then it has another box format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hybridzoo.data.base import MAX_SKIPPED, Skipped, check_skipped
from hybridzoo.errors import DataError, unknown

OUTSIDE = ("clip", "keep", "refuse")
_SLACK = 0.51  # pixels beyond the border that rounding explains; such a box is not reported as outside


@dataclass
class BoxLog:
    """Counts what the rules did while a file is read.

    Attributes:
        where: the file, for errors.
        outside: see the table above.
        skipped: annotations (and images) that were left out.
        kept: annotations that were taken.
        clipped: boxes that were cut to their image.
    """

    where: str
    outside: str = "clip"
    skipped: list[Skipped] = field(default_factory=list)
    kept: int = 0
    clipped: int = 0
    derived_area: int = 0
    derived_box: int = 0

    def __post_init__(self) -> None:
        if self.outside not in OUTSIDE:
            raise DataError(unknown("rule for boxes outside their image", str(self.outside), OUTSIDE))

    def skip(self, where: str, reason: str) -> None:
        """Note something that was left out."""
        self.skipped.append(Skipped(where, reason))

    def take(self, corners: Any, size: tuple[int, int] | None, where: str) -> np.ndarray | None:
        """The box (4,) float64 as it is to be used, or None when it is left out.

        Args:
            corners: x1, y1, x2, y2 in pixels.
            size: width and height of the image, None if unknown.
            where: how the annotation is called in reports.
        """
        try:
            box = np.asarray([float(v) for v in corners], np.float64)
        except (TypeError, ValueError):
            box = np.full(4, np.nan)
        if box.shape != (4,) or not np.isfinite(box).all():
            return self.skip(where, f"box {_short(corners)} is not four finite numbers")
        x1, y1, x2, y2 = box.tolist()
        if x2 <= x1 or y2 <= y1:
            kind = "inverted" if x2 < x1 or y2 < y1 else "empty"
            return self.skip(where, f"{kind} box, x {x1:g} to {x2:g}, y {y1:g} to {y2:g}")
        if size is not None:
            width, height = size
            if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
                return self.skip(where, f"box {_corners(box)} lies outside its image of {width} x {height}")
            if self.outside != "keep" and (min(x1, y1) < 0 or x2 > width or y2 > height):
                far = max(-x1, -y1, x2 - width, y2 - height) > _SLACK
                if far and self.outside == "refuse":
                    raise DataError(
                        f"{self.where}: {where}: box {_corners(box)} reaches out of its image of {width} x {height}; "
                        'outside="clip" cuts such boxes, "keep" leaves them'
                    )
                self.clipped += far
                box = np.clip(box, 0, [width, height, width, height])
        self.kept += 1
        return box

    def check(self, max_skipped: float = MAX_SKIPPED) -> None:
        """Raise DataError when so much was left out that the file was probably misread."""
        if self.kept or self.skipped:
            check_skipped(
                self.skipped, self.kept, self.where, limit=max_skipped, fix="Are the boxes of the format that is read?"
            )

    def notes(self) -> list[str]:
        """Sentences for `DataInfo.notes`."""
        made = []
        if self.clipped:
            made.append(f"{self.clipped} boxes that reached out of their image were clipped")
        if self.derived_area:
            made.append(f"{self.derived_area} annotations without area: the outline's or the box's was taken")
        if self.derived_box:
            made.append(f"{self.derived_box} annotations without bbox: the outline's extent was taken")
        return made


def _corners(box: np.ndarray) -> str:
    return "[" + ", ".join(f"{v:g}" for v in box.tolist()) + "]"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def polygon_area(polygon: Sequence[float] | np.ndarray) -> float:
    """Shoelace area of a flat polygon (x1, y1, x2, y2, …)."""
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    x, y = points[:, 0], points[:, 1]
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
