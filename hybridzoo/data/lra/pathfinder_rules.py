"""Sizes of Pathfinder as the Long Range Arena documents them (`lra_benchmarks/data/pathfinder.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from hybridzoo.errors import DataError, unknown

CONTOUR_LENGTHS = (6, 9, 14)
LEVEL_FOLDERS = {6: "curv_baseline", 9: "curv_contour_length_9", 14: "curv_contour_length_14"}
LEVEL_NAMES = {"easy": 6, "intermediate": 9, "hard": 14}


@dataclass(frozen=True)
class PathfinderRules:
    """Sizes of one variant; `rules_of` has the Long Range Arena's."""

    size: int
    contour_length: int
    padding: int
    margins: tuple[int, ...]
    seed_distance: int
    dash_length: int
    dash_thickness: float | int
    marker_radius: float | int
    continuity: float
    num_distractors: int
    target_contrast: float
    distractor_contrast: float
    scale: int = 2
    retries: int = 2  # for a dash; distractors: 4
    distractor_retries: int = 4

    @property
    def distractor_length(self) -> int:
        """Dashes of a distractor."""
        return self.contour_length // 3

    def metadata_row(self, batch: int, index: int, label: int, margin: int) -> list[str]:
        """The fields of the official metadata for one image."""
        values = (self.continuity, self.contour_length, self.distractor_length, self.dash_length, self.dash_thickness)
        return [f"imgs/{batch}", f"sample_{index}.png", str(index), str(label), *map(str, (*values, margin, 1))]


# size: padding, margins, seed distance, dash length, thickness, disc, continuity, distractor dashes, contrasts of
# targets and of distractors
_SIZES: dict[int, tuple[int, tuple[int, ...], int, int, float | int, float | int, float, int, float, float]] = {
    32: (1, (1,), 7, 2, 0.5, 1.5, 1.0, 20, 0.75 * 2, 2.0),
    64: (1, (1,), 12, 5, 1, 2.5, 1.8, 22, 0.8, 0.8),
    128: (1, (2, 3), 20, 5, 1.5, 3, 1.8, 35, 0.9, 0.9),
    256: (22, (3,), 27, 5, 2, 5, 1.8, 30, 1.0, 1.0),
}


def rules_of(size: int, contour_length: int = 14) -> PathfinderRules:
    """The Long Range Arena's parameters.

    Args:
        size: 32, 64, 128 (Path-X) or 256.
        contour_length: dashes of a target path: 14 (hard, the benchmark), 9 (intermediate) or 6 (easy).
    """
    if size not in _SIZES:
        raise DataError(unknown("size of Pathfinder images", str(size), map(str, _SIZES)))
    if contour_length not in CONTOUR_LENGTHS:
        raise DataError(unknown("contour length of Pathfinder", str(contour_length), map(str, CONTOUR_LENGTHS)))
    padding, margins, seed_distance, length, thickness, radius, continuity, dashes, target, distractor = _SIZES[size]
    return PathfinderRules(
        size=size,
        contour_length=contour_length,
        padding=padding,
        margins=margins,
        seed_distance=seed_distance,
        dash_length=length,
        dash_thickness=thickness,
        marker_radius=radius,
        continuity=continuity,
        num_distractors=dashes // (contour_length // 3),
        target_contrast=target,
        distractor_contrast=distractor,
    )
