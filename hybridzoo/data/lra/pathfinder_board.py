"""The board that Pathfinder's paths grow on: which ways a dash may take, what it occupies, and what is still free."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hybridzoo.data.lra.patches import LEVELS, Patch, dilate, disc, draw_patch, half_side
from hybridzoo.data.lra.pathfinder_rules import PathfinderRules


@dataclass
class Way:
    """One orientation: where dashes of it lead."""

    radians: float
    sine: float
    cosine: float
    choices: tuple[tuple[int, float, int], ...] = ()  # (offset of the next head, weight, its number in the ring)
    patch: Patch | None = None
    structure: tuple[np.ndarray | None] | None = None
    room: np.ndarray | None = None  # free tails of first seeds


class Board:
    """What is the same for all images of one margin: tables, and the arrays that are filled anew for each attempt."""

    def __init__(self, rules: PathfinderRules, margin: int) -> None:
        self.rules, self.margin = rules, margin
        size, length = rules.size, rules.dash_length
        self.reach = half_side(length, rules.dash_thickness, margin)
        self.step = length + margin
        # Heads, pivots and patches may lie outside the image by so much.
        self.border = border = 2 * self.step + length + 2 * margin + self.reach + margin + 2
        self.width = width = size + 2 * border
        inside = np.zeros((width, width), np.uint8)
        inside[border : border + size, border : border + size] = 1
        self.inside = inside.tobytes()
        padding = rules.padding
        mask = np.zeros((width, width), np.uint8)
        image = mask[border : border + size, border : border + size]
        image[:padding] = image[-padding:] = 255
        image[:, :padding] = image[:, -padding:] = 255
        around = dilate(mask, disc(margin))
        around[inside == 0] = 255  # no head may lie outside
        self.empty_mask, self.empty_around = mask.tobytes(), around.tobytes()
        self.mask, self.around = bytearray(self.empty_mask), bytearray(self.empty_around)
        self.mask_2d = np.frombuffer(self.mask, np.uint8).reshape(width, width)
        self.around_2d = np.frombuffer(self.around, np.uint8).reshape(width, width)
        self.free = (1.0 - LEVELS).tolist()
        self._ring()
        self.degrees = [self._way(degree * np.pi / 180) for degree in range(-180, 180)]
        self.turns = [self._way(float(angle)) for angle in self.ring_angles]
        self.back = [self._way(float(a + np.pi if a < 0 else a - np.pi)) for a in self.ring_angles]
        circle = np.arange(360) * np.pi / 180
        self.around_seed = [
            (float(rules.seed_distance * s), float(rules.seed_distance * c))
            for s, c in zip(np.sin(circle), np.cos(circle))
        ]

    def _ring(self) -> None:
        """Pixels at the distance of one step: where the head of the next dash may lie, seen from a pivot."""
        angles = np.arange(0, 360, 360.0 / (2 * self.step * np.pi)) * np.pi / 180
        middle = 2 * self.step  # as coordinates of an image, so that rounding is the same
        points = np.stack([middle + self.step * np.sin(angles), middle + self.step * np.cos(angles)], 1).astype(int)
        self.ring = np.unique(points, axis=0) - middle
        self.ring_angles = np.arctan2(self.ring[:, 0], self.ring[:, 1])

    def _way(self, radians: float) -> Way:
        turn = np.abs(self.ring_angles - radians)
        turn = np.minimum(np.minimum(turn, 2 * np.pi - turn) * self.rules.continuity, 0.5 * np.pi)
        weights = np.maximum(np.cos(turn), 0) ** 2
        choices = tuple(
            (int(dy) * self.width + int(dx), float(weight), number)
            for number, ((dy, dx), weight) in enumerate(zip(self.ring, weights))
            if weight > 1e-20  # cos(pi / 2) is not exactly 0; what is less cannot be drawn
        )
        return Way(radians, float(np.sin(radians)), float(np.cos(radians)), choices)

    def patch(self, way: Way) -> Patch:
        """The way's dash, rendered at its first use."""
        if way.patch is None:
            r = self.rules
            drawn = draw_patch(way.radians, r.dash_length, r.dash_thickness, self.margin, r.scale)
            hard = tuple((dy * self.width + dx, level, 0) for dy, dx, level in drawn.hard)
            way.patch = Patch(drawn.line, drawn.mask, drawn.surroundings, hard)
        return way.patch

    def structure(self, way: Way) -> np.ndarray | None:
        """(K, K) bool: pixels that a dash of this way fully occupies, off the middle by one as in the official program.

        None where all of them lie to one side of some corner. The official dilation has no value there (OpenCV's border
        is minus infinity), which its program takes for "no room at all".
        """
        if way.structure is None:
            found = self._structure(way)
            dy, dx = (axis - self.step for axis in np.nonzero(found))
            corners = (((sy * dy > 0) | (sx * dx > 0)).all() for sy in (-1, 1) for sx in (-1, 1))
            way.structure = (None if any(corners) else found,)
        return way.structure[0]

    def _structure(self, way: Way) -> np.ndarray:
        side = 2 * self.step + 1
        patch = self.patch(way).mask
        out = np.zeros((side, side), bool)
        start = self.step + 1 - self.reach  # of the patch in the structure
        rows = range(max(0, start), min(side, start + len(patch)))
        for row in rows:
            left, right = max(0, start), min(side, start + len(patch))
            out[row, left:right] = patch[row - start, left - start : right - start] == 255
        return out

    def first_room(self, way: Way) -> np.ndarray:
        """(N, 2) tails that a first seed of this way may have."""
        if way.room is None:
            r = self.rules
            taken = np.ones((r.size, r.size), np.uint8)
            edge = max(2 * r.seed_distance, r.padding)
            taken[edge : r.size - edge, edge : r.size - edge] = 0
            structure = self.structure(way)
            way.room = np.zeros((0, 2), int) if structure is None else np.argwhere(dilate(taken, structure) == 0)
        return way.room

    def place(self, way: Way, row: int, column: int) -> None:
        """A dash that starts at a pixel occupies its place."""
        patch = self.patch(way)
        top, left, side = row + self.border - self.reach, column + self.border - self.reach, 2 * self.reach + 1
        view = self.mask_2d[top : top + side, left : left + side]
        np.maximum(view, patch.mask, out=view)
        top, left, side = top - self.margin, left - self.margin, side + 2 * self.margin
        view = self.around_2d[top : top + side, left : left + side]
        np.maximum(view, patch.surroundings, out=view)
