"""Pathfinder (Linsley et al. 2018) as the Long Range Arena uses it: do the two discs lie on the same dashed path?

Source of the rules: drewlinsley/pathfinder at commit ab9c130 (MIT), with the parameters of the Long Range Arena; this
is our own code for the same draws, so a seed gives the images of the official program. Two target paths grow dash by
dash from neighbouring seeds; when one gets stuck both start again (about 485 times per image at 32 pixels and 14
dashes). Then distractors are added where there is room, and two discs mark one end of a path and the other end of the
same or of the other path.

What makes it fast: dashes are rendered once per orientation (`patches.py`); the free surroundings are kept up to date
instead of dilated anew; images are only put together for paths that succeed; random words are read in bulk
(`words.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hybridzoo.data.lra.patches import (
    LEVELS,
    Patch,
    byte_scale,
    dilate,
    disc,
    draw_patch,
    half_side,
    shrink,
    translate,
)
from hybridzoo.data.lra.pathfinder_rules import PathfinderRules
from hybridzoo.data.lra.words import NumpyWords

_WORDS = 1 << 16
_FREE_LEVEL = 76  # occupied at most so much is free: ceil(level / 255 - 0.3) is 0
_ENOUGH_FREE = 0.01  # share of the image that must be free for another distractor


@dataclass(frozen=True)
class PathfinderImage:
    """One sample.

    Attributes:
        pixels: (size, size) uint8.
        label: 1 when the discs lie on the same path.
        margin: of its dashes.
        attempts: how often the two targets were begun.
    """

    pixels: np.ndarray
    label: int
    margin: int
    attempts: int


@dataclass
class _Way:
    """One orientation: where dashes of it lead."""

    radians: float
    sine: float
    cosine: float
    choices: tuple[tuple[int, float, int], ...] = ()  # (offset of the next head, weight, its number in the ring)
    patch: Patch | None = None
    structure: tuple[np.ndarray | None] | None = None
    room: np.ndarray | None = None  # free tails of first seeds


class _Board:
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

    def _way(self, radians: float) -> _Way:
        turn = np.abs(self.ring_angles - radians)
        turn = np.minimum(np.minimum(turn, 2 * np.pi - turn) * self.rules.continuity, 0.5 * np.pi)
        weights = np.maximum(np.cos(turn), 0) ** 2
        choices = tuple(
            (int(dy) * self.width + int(dx), float(weight), number)
            for number, ((dy, dx), weight) in enumerate(zip(self.ring, weights))
            if weight > 1e-20  # cos(pi / 2) is not exactly 0; what is less cannot be drawn
        )
        return _Way(radians, float(np.sin(radians)), float(np.cos(radians)), choices)

    def patch(self, way: _Way) -> Patch:
        """The way's dash, rendered at its first use."""
        if way.patch is None:
            r = self.rules
            drawn = draw_patch(way.radians, r.dash_length, r.dash_thickness, self.margin, r.scale)
            hard = tuple((dy * self.width + dx, level, 0) for dy, dx, level in drawn.hard)
            way.patch = Patch(drawn.line, drawn.mask, drawn.surroundings, hard)
        return way.patch

    def structure(self, way: _Way) -> np.ndarray | None:
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

    def _structure(self, way: _Way) -> np.ndarray:
        side = 2 * self.step + 1
        patch = self.patch(way).mask
        out = np.zeros((side, side), bool)
        start = self.step + 1 - self.reach  # of the patch in the structure
        rows = range(max(0, start), min(side, start + len(patch)))
        for row in rows:
            left, right = max(0, start), min(side, start + len(patch))
            out[row, left:right] = patch[row - start, left - start : right - start] == 255
        return out

    def first_room(self, way: _Way) -> np.ndarray:
        """(N, 2) tails that a first seed of this way may have."""
        if way.room is None:
            r = self.rules
            taken = np.ones((r.size, r.size), np.uint8)
            edge = max(2 * r.seed_distance, r.padding)
            taken[edge : r.size - edge, edge : r.size - edge] = 0
            structure = self.structure(way)
            way.room = np.zeros((0, 2), int) if structure is None else np.argwhere(dilate(taken, structure) == 0)
        return way.room

    def place(self, way: _Way, row: int, column: int) -> None:
        """A dash that starts at a pixel occupies its place."""
        patch = self.patch(way)
        top, left, side = row + self.border - self.reach, column + self.border - self.reach, 2 * self.reach + 1
        view = self.mask_2d[top : top + side, left : left + side]
        np.maximum(view, patch.mask, out=view)
        top, left, side = top - self.margin, left - self.margin, side + 2 * self.margin
        view = self.around_2d[top : top + side, left : left + side]
        np.maximum(view, patch.surroundings, out=view)


@dataclass
class _Path:
    """A path under way: its last dash (drawn, but not yet in the mask) and where it goes on."""

    pivot: tuple[int, int]
    way: _Way
    last: tuple[_Way, int, int]  # way of the patch, row and column of its start
    dashes: list[tuple[_Way, int, int]]
    origin: tuple[int, int]
    tip: tuple[int, int] = (0, 0)


class PathfinderStream:
    """The images that the official program makes after `numpy.random.seed(seed)`, one by one.

    Args:
        rules: see `rules_of`.
        seed: of NumPy's generator.
    """

    def __init__(self, rules: PathfinderRules, seed: int) -> None:
        self.rules = rules
        self.boards = [_Board(rules, margin) for margin in rules.margins]
        self._source = NumpyWords(seed)
        self._words: list[int] = []
        self._at = 0

    # Draws ---------------------------------------------------------------------------------------------------------

    def _refill(self) -> None:
        self._words = self._words[self._at :] + self._source.take(_WORDS)
        self._at = 0

    def _below(self, count: int) -> int:
        """numpy.random.randint(0, count): words cut to the needed bits until one is small enough."""
        if count <= 1:
            return 0  # draws nothing
        cut = (1 << (count - 1).bit_length()) - 1
        while True:
            if self._at >= len(self._words):
                self._refill()
            value = self._words[self._at] & cut
            self._at += 1
            if value < count:
                return value

    def _uniform(self) -> float:
        """numpy.random.rand()"""
        if self._at + 2 > len(self._words):
            self._refill()
        words, at = self._words, self._at
        self._at = at + 2
        return ((words[at] >> 5) * 67108864.0 + (words[at + 1] >> 6)) / 9007199254740992.0

    # Images --------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[PathfinderImage]:
        while True:
            yield self.draw()

    def draw(self) -> PathfinderImage:
        """The next image."""
        rules = self.rules
        label = self._below(2)
        board = self.boards[self._below(len(self.boards))]
        attempts = 1
        while (targets := self._targets(board)) is None:
            attempts += 1
        way, row, column = targets[1].last  # of the first path the last dash is left out, as in the official program
        board.place(way, row, column)
        image = np.zeros((rules.size, rules.size))
        for path in targets:
            self._draw(board, image, path.dashes, rules.target_contrast)
        for _ in range(rules.num_distractors):
            for _ in range(rules.distractor_retries + 1):
                found = self._distractor(board)
                if found is not None:
                    self._draw(board, image, found, rules.distractor_contrast)
                    break
        first = self._below(2)
        second = first if label else 1 - first
        discs = np.maximum(self._disc(targets[first].origin), self._disc(targets[second].tip))
        pixels = byte_scale(np.maximum(image, discs.astype(np.float64) / 255))
        return PathfinderImage(pixels, label, board.margin, attempts)

    def _targets(self, board: _Board) -> tuple[_Path, _Path] | None:
        board.mask[:], board.around[:] = board.empty_mask, board.empty_around
        first = self._first_seed(board)
        second = None if first is None else self._second_seed(board, first.origin)
        if first is None or second is None:
            return None
        for _ in range(self.rules.contour_length - 1):
            if not self._extend(board, first) or not self._extend(board, second):
                return None
        return first, second

    def _started(self, board: _Board, way: _Way, tail: tuple[int, int]) -> _Path | None:
        """A path with its first dash, or None when its head or pivot lies outside."""
        length, size = self.rules.dash_length, self.rules.size
        head_y, head_x = math.ceil(tail[0] + length * way.sine), math.ceil(tail[1] + length * way.cosine)
        opposite = way.radians + np.pi if way.radians + np.pi < np.pi else way.radians - np.pi
        pivot = translate((head_y, head_x), opposite, length + board.margin)
        if not (0 <= head_y < size and 0 <= head_x < size and 0 <= pivot[0] < size and 0 <= pivot[1] < size):
            return None
        dash = (way, *tail)
        return _Path(pivot, way, dash, [dash], tail)

    def _first_seed(self, board: _Board) -> _Path | None:
        for _ in range(self.rules.retries + 1):
            way = board.degrees[self._below(360)]
            room = board.first_room(way)
            if not len(room):
                return None
            row, column = room[self._below(len(room))].tolist()
            path = self._started(board, way, (row, column))
            if path is not None:
                return path
        return None

    def _second_seed(self, board: _Board, first: tuple[int, int]) -> _Path | None:
        for _ in range(self.rules.retries + 1):
            way = board.degrees[self._below(360)]
            dy, dx = board.around_seed[self._below(360)]
            path = self._started(board, way, (round(first[0] + dy), round(first[1] + dx)))
            if path is not None:
                return path
        return None

    def _extend(self, board: _Board, path: _Path) -> bool:
        """Add a dash to a path; False when there is no way on."""
        reach = self.rules.dash_length + 2 * board.margin
        way, border, width = path.way, board.border, board.width
        row = math.ceil(path.pivot[0] + reach * way.sine)
        column = math.ceil(path.pivot[1] + reach * way.cosine)
        here = (row + border) * width + column + border
        around, free = board.around, board.free
        total, masses, numbers = 0.0, [], []
        for offset, weight, number in way.choices:
            mass = free[around[here + offset]] * weight
            if mass:
                total += mass
                masses.append(mass)
                numbers.append((offset, number))
        if total < 1e-4:
            return False
        mask, inside = board.mask, board.inside
        for _ in range(self.rules.retries + 1):
            wanted, reached = self._uniform(), 0.0
            chosen = numbers[0]
            for mass, candidate in zip(masses, numbers):
                reached += mass / total
                if reached > wanted:
                    chosen = candidate
                    break
            offset, number = chosen
            back = board.back[number]
            head = here + offset
            for pixel, level, _ in board.patch(back).hard:
                if mask[head + pixel] >= level and inside[head + pixel]:
                    break
            else:
                board.place(*path.last)
                y, x = divmod(head, width)
                path.tip = (y - border, x - border)
                path.last = (back, *path.tip)
                path.dashes.append(path.last)
                path.pivot, path.way = (row, column), board.turns[number]
                return True
        return False

    def _distractor(self, board: _Board) -> list[tuple[_Way, int, int]] | None:
        """Dashes of one more path, now part of the mask; None (and the mask as before) when there is no room."""
        before = bytes(board.mask), bytes(board.around)
        path = self._free_seed(board)
        if path is not None and all(self._extend(board, path) for _ in range(self.rules.distractor_length - 1)):
            board.place(*path.last)
            return path.dashes
        board.mask[:], board.around[:] = before
        return None

    def _free_seed(self, board: _Board) -> _Path | None:
        size, border = self.rules.size, board.border
        view = board.mask_2d[border : border + size, border : border + size]
        taken = (view > _FREE_LEVEL).astype(np.uint8)
        lined = taken.copy()
        lined[0] = lined[-1] = 1
        lined[:, 0] = lined[:, -1] = 1
        enough = (size * size - int(taken.sum())) / (size * size) >= _ENOUGH_FREE
        for _ in range(self.rules.retries + 1):
            way = board.degrees[self._below(360)]
            structure = board.structure(way)
            if not enough or structure is None:
                return None
            room = np.flatnonzero(dilate(lined, structure) == 0)
            if not len(room):
                return None
            path = self._started(board, way, divmod(int(room[self._below(len(room))]), size))
            if path is not None:
                return path
        return None

    # Drawing -------------------------------------------------------------------------------------------------------

    def _draw(self, board: _Board, image: np.ndarray, dashes: list[tuple[_Way, int, int]], contrast: float) -> None:
        """Dashes onto (size, size) floats, the brighter value wins."""
        size, reach = self.rules.size, board.reach
        for way, row, column in dashes:
            line = (board.patch(way).line * contrast).astype(np.float32)
            top, left = max(0, row - reach), max(0, column - reach)
            bottom, right = min(size, row + reach + 1), min(size, column + reach + 1)
            view = image[top:bottom, left:right]
            part = line[top - row + reach : bottom - row + reach, left - column + reach : right - column + reach]
            np.maximum(view, part, out=view)

    def _disc(self, centre: tuple[int, int]) -> np.ndarray:
        """(size, size) uint8."""
        size, scale = self.rules.size, self.rules.scale
        rows = np.arange(-centre[0] * scale, (size - centre[0]) * scale)
        columns = np.arange(-centre[1] * scale, (size - centre[1]) * scale)
        inside = rows[:, None] ** 2 + columns[None, :] ** 2 <= (self.rules.marker_radius * scale) ** 2
        return shrink(byte_scale(inside.astype(np.float64)), (size, size))
