"""Synthetic defects on texture images: scratch, hole, stain, crack, and a patch of another texture.

Images are float arrays (S, S, C) in 0 … 255. Random numbers come from `numpy.random.RandomState`, whose streams are
frozen, and only numpy computes, so that the same seed gives the same images everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MARKED = 0.35  # share of a defect in a pixel from which the pixel counts as anomalous


def resample(texture: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear values of (H, W, C) at positions y, x (…,), mirrored at the edges -> (…, C)."""

    def fold(v: np.ndarray, n: int) -> np.ndarray:
        v = np.mod(v, 2 * (n - 1))
        return np.where(v > n - 1, 2 * (n - 1) - v, v)

    height, width = texture.shape[:2]
    y, x = fold(y, height), fold(x, width)
    top, left = np.minimum(y.astype(int), height - 2), np.minimum(x.astype(int), width - 2)
    fy, fx = (y - top)[..., None], (x - left)[..., None]
    upper = texture[top, left] * (1 - fx) + texture[top, left + 1] * fx
    lower = texture[top + 1, left] * (1 - fx) + texture[top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy


def value_noise(side: int, cells: int, random: np.random.RandomState, octaves: int = 3) -> np.ndarray:
    """(S, S) smooth noise in 0 … 1: sums of upsampled random grids, each finer and weaker than the one before."""
    total, weight = np.zeros((side, side)), 0.0
    at = np.arange(side) / side
    for octave in range(octaves):
        n = cells << octave
        grid = random.uniform(size=(n + 1, n + 1, 1))
        y, x = np.meshgrid(at * n, at * n, indexing="ij")
        total += resample(grid, y, x)[..., 0] * 0.5**octave
        weight += 0.5**octave
    return total / weight


def distance_to(points: np.ndarray, side: int) -> np.ndarray:
    """(S, S) distance of each pixel to the nearest of the points (P, 2), rows first."""
    grid = np.arange(side)
    best = np.full((side, side), np.inf)
    for y, x in points:
        best = np.minimum(best, (grid[:, None] - y) ** 2 + (grid[None] - x) ** 2)
    return np.sqrt(best)


def _centre(side: int, random: np.random.RandomState) -> np.ndarray:
    return random.uniform(0.2, 0.8, 2) * side


def _cover(distance: np.ndarray, radius: float) -> np.ndarray:
    """1 inside the radius, falling to 0 over one pixel and a half."""
    return np.clip((radius - distance) / 1.5 + 0.5, 0, 1)


def _blend(image: np.ndarray, share: np.ndarray, other: np.ndarray | float) -> np.ndarray:
    return image * (1 - share[..., None]) + other * share[..., None]


def scratch(image: np.ndarray, random: np.random.RandomState, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A thin, bright or dark quadratic curve."""
    side = len(image)
    start, angle, length = _centre(side, random), random.uniform(0, 2 * np.pi), random.uniform(0.25, 0.5) * side
    end = start + length * np.array([np.sin(angle), np.cos(angle)])
    bend = (start + end) / 2 + random.uniform(-0.15, 0.15, 2) * side
    t = np.linspace(0, 1, int(length) + 2)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    share = _cover(distance_to(points, side), random.uniform(0.8, 1.6)) * random.uniform(0.6, 0.9)
    tone = 235.0 if image.mean() < 128 or random.uniform() < 0.3 else 20.0
    return _blend(image, share, tone), share > MARKED


def hole(image: np.ndarray, random: np.random.RandomState, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A dark, irregular disc with a bright rim."""
    side = len(image)
    wobble = (value_noise(side, 4, random) - 0.5) * 0.08 * side
    distance = distance_to(_centre(side, random)[None], side) + wobble
    radius = random.uniform(0.04, 0.1) * side
    rim = _cover(distance, radius * 1.3)
    inside = _cover(distance, radius)
    bright = np.minimum(image * 1.3 + 20, 255)
    return _blend(_blend(image, rim * 0.6, bright), inside, 18.0), rim > MARKED


def stain(image: np.ndarray, random: np.random.RandomState, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A cloud of another tone (of another colour on colour images) with ragged edges."""
    side = len(image)
    distance = distance_to(_centre(side, random)[None], side)
    wobble = (value_noise(side, 5, random) - 0.5) * 0.3 * side
    cloud = _cover(distance + wobble, random.uniform(0.09, 0.17) * side)
    share = cloud * random.uniform(0.45, 0.75)
    tone = random.uniform(20, 90, image.shape[2]) if random.uniform() < 0.7 else random.uniform(190, 240, 1)
    return _blend(image, share, tone), cloud > 0.5


def crack(image: np.ndarray, random: np.random.RandomState, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A dark line of short straight pieces that sometimes forks."""
    side = len(image)
    points: list[np.ndarray] = []
    heads = [(_centre(side, random), random.uniform(0, 2 * np.pi), random.randint(6, 11))]
    while heads:
        at, angle, pieces = heads.pop()
        for _ in range(pieces):
            angle += random.uniform(-0.7, 0.7)
            length = random.uniform(0.03, 0.07) * side
            steps = np.arange(0, length, 0.7)[:, None]
            points.extend(at + steps * np.array([np.sin(angle), np.cos(angle)]))
            at = at + length * np.array([np.sin(angle), np.cos(angle)])
            if random.uniform() < 0.15 and len(heads) < 2:
                heads.append((at, angle + random.choice([-1.0, 1.0]), 3))
    share = _cover(distance_to(np.array(points), side), random.uniform(0.8, 1.5)) * 0.85
    return _blend(image, share, 12.0), share > MARKED


def cut_paste(image: np.ndarray, random: np.random.RandomState, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A rotated rectangle of another texture."""
    side = len(image)
    centre, angle = _centre(side, random), random.uniform(0, np.pi)
    half = random.uniform(0.05, 0.12, 2) * side
    grid = np.arange(side)
    dy, dx = grid[:, None] - centre[0], grid[None] - centre[1]
    along, across = dy * np.sin(angle) + dx * np.cos(angle), dy * np.cos(angle) - dx * np.sin(angle)
    outside = np.maximum(np.abs(along) - half[0], np.abs(across) - half[1])
    share = _cover(outside, 0.0)
    return _blend(image, share, other), share > 0.5


DEFECTS: dict[str, Callable[[np.ndarray, np.random.RandomState, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "scratch": scratch,
    "hole": hole,
    "stain": stain,
    "crack": crack,
    "cut_paste": cut_paste,
}
