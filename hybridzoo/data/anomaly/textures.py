"""TextureAD: an anomaly set of texture photographs with synthetic defects, built from sources that are fetched.

It is no MVTec-AD and no result on it compares with one: the textures are few, train and test crops come from two halves
of one picture each, and the defects are drawn by `defects.py`.

    python -m hybridzoo.data.anomaly.textures SOURCES OUT

SOURCES holds `brick.png`, `grass.png` and `gravel.png` of scikit-image 0.26 (CC0; `skimage/data/` inside the wheel),
and, for the other seven classes and the damaged pairs, the folder `textures/` of the Debian package
openarena-081-textures (GPL-2+; inside pak4-textures.pk3, a zip). OUT gets MVTec's layout: `<class>/train/good`,
`<class>/test/<defect>`, `<class>/ground_truth/<defect>`; and `real_damage/` likewise: crops of pictures that the
textures' artists drew damaged.

`texture_ad_mini`, in the package, is made the same way from the three CC0 textures, at 128 pixels, when it is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hybridzoo.data.anomaly.defects import DEFECTS, resample
from hybridzoo.data.anomaly.split import GOOD, Entry
from hybridzoo.data.images import open_image, to_mode
from hybridzoo.errors import DataError

CC0 = {"brick": "brick.png", "grass": "grass.png", "gravel": "gravel.png"}
OPENARENA = {
    "metal_bridge": "textures/base_floor/metalbridge04d.jpg",
    "diamond_plate": "textures/base_floor/diamond2c.jpg",
    "concrete": "textures/base_wall/concrete.jpg",
    "blocks_a": "textures/gothic_block/blocks17.jpg",
    "blocks_b": "textures/gothic_block/blocks11b.jpg",
    "blocks_c": "textures/gothic_block/blocks18c.jpg",
    "rock": "textures/cosmo_block/rock01.jpg",
}
# class -> the damaged picture, and whether its mask is where it is transparent (else: where it differs)
DAMAGED = {
    "metal_bridge": ("textures/base_floor/metalbridge04dbroke.tga", True),
    "blocks_a": ("textures/gothic_block/blocks17bloody.tga", True),
    "blocks_b": ("textures/gothic_block/blocks11bbroke.jpg", False),
}
DIFFERENCE = 40.0  # of the grey values, from which a pixel of a damaged pair counts as damaged
SIDE = 512  # of the source pictures
MAX_ANGLE, MAX_GAIN, NOISE = 4.0, 0.06, 2.0  # degrees, share, grey levels


@dataclass(frozen=True)
class Sizes:
    """How many images of which side.

    Attributes:
        side: pixels.
        train, validation, good: normal images a class.
        defects: images a class and kind of defect.
    """

    side: int
    train: int
    validation: int
    good: int
    defects: int


FULL = Sizes(side=256, train=120, validation=0, good=40, defects=16)
MINI = Sizes(side=128, train=96, validation=16, good=32, defects=12)
# rows and columns of the source picture: train above validation in the left half, test in the right half
REGIONS = {"train": (0, 352, 0, 256), "validation": (352, 512, 0, 256), "test": (0, 512, 256, 512)}


@dataclass(frozen=True)
class Sample:
    """One image that was made: uint8 (S, S) or (S, S, 3), and its mask (S, S) or None."""

    split: str
    cls_name: str
    specie: str
    number: int
    image: np.ndarray
    mask: np.ndarray | None

    @property
    def entry(self) -> Entry:
        """Its place in MVTec's layout."""
        folder = "test" if self.split == "test" else self.split
        path = f"{self.cls_name}/{folder}/{self.specie}/{self.number:03d}.png"
        mask = f"{self.cls_name}/ground_truth/{self.specie}/{self.number:03d}_mask.png" if self.mask is not None else ""
        return Entry(path, mask, self.cls_name, self.specie, int(self.specie != GOOD))


def crop(texture: np.ndarray, region: Sequence[int], side: int, random: np.random.RandomState) -> np.ndarray:
    """(S, S, C) float: a random, slightly rotated piece of a region with another brightness and some noise."""
    top, bottom, left, right = region
    part = texture[top:bottom, left:right]
    angle = np.deg2rad(random.uniform(-MAX_ANGLE, MAX_ANGLE))
    y0, x0 = (random.uniform(0, n - side) if n > side else (n - side) / 2 for n in part.shape[:2])
    steps = np.arange(side) - (side - 1) / 2
    dy, dx = np.meshgrid(steps, steps, indexing="ij")
    y = y0 + (side - 1) / 2 + dy * np.cos(angle) - dx * np.sin(angle)
    x = x0 + (side - 1) / 2 + dy * np.sin(angle) + dx * np.cos(angle)
    image = resample(part, y, x) * random.uniform(1 - MAX_GAIN, 1 + MAX_GAIN)
    return image + random.normal(0, NOISE, (side, side, 1))


def _finish(image: np.ndarray) -> np.ndarray:
    array = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return array[..., 0] if array.shape[2] == 1 else array


def make_samples(textures: Mapping[str, np.ndarray], sizes: Sizes, seed: int = 0) -> Iterator[Sample]:
    """All images of all classes, one after the other.

    Args:
        textures: class -> (512, 512, C) uint8, C of 1 or 3.
        sizes: how many.
        seed: the same gives the same images, class by class.
    """
    names = list(textures)
    for c, name in enumerate(names):
        texture = textures[name].astype(np.float64)
        other = textures[names[(c + 1) % len(names)]].astype(np.float64)
        for part, (split, count) in enumerate(
            (("train", sizes.train), ("validation", sizes.validation), ("test", sizes.good))
        ):
            random = np.random.RandomState([seed, c, part])
            for i in range(count):
                image = crop(texture, REGIONS[split], sizes.side, random)
                yield Sample(split, name, GOOD, i, _finish(image), None)
        for d, (kind, draw) in enumerate(DEFECTS.items()):
            random = np.random.RandomState([seed, c, 10 + d])
            for i in range(sizes.defects):
                image = crop(texture, REGIONS["test"], sizes.side, random)
                foreign = crop(other, REGIONS["test"], sizes.side, random)
                if foreign.shape[2] != image.shape[2]:
                    foreign = np.repeat(foreign.mean(2, keepdims=True), image.shape[2], 2)
                damaged, mask = draw(image, random, foreign)
                yield Sample("test", name, kind, i, _finish(damaged), mask)


def damaged_samples(sources: Path, textures: Mapping[str, np.ndarray], side: int) -> Iterator[Sample]:
    """Crops of the artists' damaged pictures with at least 0.2 % damaged pixels, and the same of the good ones."""
    for name, (path, transparent) in DAMAGED.items():
        picture = open_image(sources / path, path)
        if transparent:
            damaged = np.asarray(picture.getchannel("A")) < 128
        else:
            grey = [np.asarray(to_mode(p, 1)).astype(float) for p in (picture, open_image(sources / OPENARENA[name]))]
            damaged = np.abs(grey[0] - grey[1]) > DIFFERENCE
        array, number = np.asarray(to_mode(picture, 3)), 0
        if transparent:  # what shows through a hole is dark
            array = np.where(damaged[..., None], 10, array).astype(np.uint8)
        for y in range(0, SIDE - side + 1, side // 2):
            for x in range(SIDE // 2, SIDE - side + 1, side // 2):
                window = (slice(y, y + side), slice(x, x + side))
                yield Sample("test", name, GOOD, number, np.ascontiguousarray(textures[name][window]), None)
                if damaged[window].mean() > 0.002:
                    yield Sample("test", name, "damage", number, array[window], damaged[window])
                number += 1


def load_textures(sources: Path, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """class -> (512, 512, C) uint8.

    Raises:
        DataError: a source is missing or has another size.
    """
    textures = {}
    for name, file in names.items():
        picture = open_image(sources / file, str(sources / file))
        if picture.size != (SIDE, SIDE):
            raise DataError(f"{sources / file} has {picture.size} pixels, expected {SIDE} x {SIDE}: another version?")
        array = np.asarray(picture if picture.mode in ("L", "RGB") else to_mode(picture, 3))
        textures[name] = array[..., None] if array.ndim == 2 else array
    return textures


def write_samples(samples: Iterator[Sample], out: Path) -> int:
    """Write images and masks as PNG files in MVTec's layout; gives their number."""
    from PIL import Image

    count = 0
    for sample in samples:
        entry = sample.entry
        for path, array in ((entry.img_path, sample.image), (entry.mask_path, sample.mask)):
            if path and array is not None:
                (out / path).parent.mkdir(parents=True, exist_ok=True)
                pixels = array.astype(np.uint8) * 255 if array.dtype == bool else array
                Image.fromarray(pixels).save(out / path)
        count += 1
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """Build TextureAD."""
    parser = argparse.ArgumentParser(prog="python -m hybridzoo.data.anomaly.textures", description=main.__doc__)
    parser.add_argument("sources", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    textures = load_textures(given.sources, CC0 | OPENARENA)
    made = write_samples(make_samples(textures, FULL, given.seed), given.out)
    real = write_samples(damaged_samples(given.sources, textures, FULL.side), given.out / "real_damage")
    print(
        f"{given.out}: {made} images of {len(textures)} classes; real_damage: {real} images of {len(DAMAGED)} classes"
    )


if __name__ == "__main__":
    main()
