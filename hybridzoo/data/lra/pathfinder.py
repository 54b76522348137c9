"""Pathfinder (Linsley et al. 2018) as the Long Range Arena uses it: do the two discs lie on the same dashed path?

Source of the rules: drewlinsley/pathfinder at commit ab9c130 (MIT), with the parameters of the Long Range Arena; this
is our own code for the same draws, so a seed gives the images of the official program. Two target paths grow dash by
dash from neighbouring seeds; when one gets stuck both start again (about 485 times per image at 32 pixels and 14
dashes). Then distractors are added where there is room, and two discs mark one end of a path and the other end of the
same or of the other path.

What makes it fast: dashes are rendered once per orientation (`patches.py`); the free surroundings are kept up to date
instead of dilated anew (`pathfinder_board.py`); images are only put together for paths that succeed; random words are
read in bulk (`words.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hybridzoo.data.lra.patches import byte_scale, dilate, shrink, translate
from hybridzoo.data.lra.pathfinder_board import Board, Way
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
class _Path:
    """A path under way: its last dash (drawn, but not yet in the mask) and where it goes on."""

    pivot: tuple[int, int]
    way: Way
    last: tuple[Way, int, int]  # way of the patch, row and column of its start
    dashes: list[tuple[Way, int, int]]
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
        self.boards = [Board(rules, margin) for margin in rules.margins]
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

    def _targets(self, board: Board) -> tuple[_Path, _Path] | None:
        board.mask[:], board.around[:] = board.empty_mask, board.empty_around
        first = self._first_seed(board)
        second = None if first is None else self._second_seed(board, first.origin)
        if first is None or second is None:
            return None
        for _ in range(self.rules.contour_length - 1):
            if not self._extend(board, first) or not self._extend(board, second):
                return None
        return first, second

    def _started(self, board: Board, way: Way, tail: tuple[int, int]) -> _Path | None:
        """A path with its first dash, or None when its head or pivot lies outside."""
        length, size = self.rules.dash_length, self.rules.size
        head_y, head_x = math.ceil(tail[0] + length * way.sine), math.ceil(tail[1] + length * way.cosine)
        opposite = way.radians + np.pi if way.radians + np.pi < np.pi else way.radians - np.pi
        pivot = translate((head_y, head_x), opposite, length + board.margin)
        if not (0 <= head_y < size and 0 <= head_x < size and 0 <= pivot[0] < size and 0 <= pivot[1] < size):
            return None
        dash = (way, *tail)
        return _Path(pivot, way, dash, [dash], tail)

    def _first_seed(self, board: Board) -> _Path | None:
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

    def _second_seed(self, board: Board, first: tuple[int, int]) -> _Path | None:
        for _ in range(self.rules.retries + 1):
            way = board.degrees[self._below(360)]
            dy, dx = board.around_seed[self._below(360)]
            path = self._started(board, way, (round(first[0] + dy), round(first[1] + dx)))
            if path is not None:
                return path
        return None

    def _extend(self, board: Board, path: _Path) -> bool:
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

    def _distractor(self, board: Board) -> list[tuple[Way, int, int]] | None:
        """Dashes of one more path, now part of the mask; None (and the mask as before) when there is no room."""
        before = bytes(board.mask), bytes(board.around)
        path = self._free_seed(board)
        if path is not None and all(self._extend(board, path) for _ in range(self.rules.distractor_length - 1)):
            board.place(*path.last)
            return path.dashes
        board.mask[:], board.around[:] = before
        return None

    def _free_seed(self, board: Board) -> _Path | None:
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

    def _draw(self, board: Board, image: np.ndarray, dashes: list[tuple[Way, int, int]], contrast: float) -> None:
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
