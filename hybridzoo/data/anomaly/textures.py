"""TextureAD: an anomaly set of texture photographs with synthetic defects, built from sources that are fetched.

It is no MVTec-AD and no result on it compares with one: the textures are few, train and test crops come from two halves
of one picture each, and the defects are drawn by `defects.py`.

    apt-get download openarena-081-textures && dpkg-deb -x openarena-081-textures_*.deb deb
    python -m zipfile -e deb/usr/share/games/openarena/baseoa/pak4-textures.pk3 SOURCES
    python -m hybridzoo.data.anomaly.textures SOURCES OUT

Three classes are the CC0 textures that ship with hybridzoo; the other seven and the damaged pictures come from SOURCES,
which holds the folder `textures/` of the Debian package openarena-081-textures (GPL-2+). OUT gets MVTec's layout:
`<class>/train/good`, `<class>/test/<defect>`, `<class>/ground_truth/<defect>`; and `real_damage/` likewise: crops of
pictures that the textures' artists drew damaged, with good ones. The same sources and the same versions of numpy and
Pillow give the same files.

`texture_ad_mini`, in the package, is made the same way from the three CC0 textures, at 128 pixels, when it is read.
"""

from __future__ import annotations

import argparse
import io
import lzma
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.anomaly.defects import DEFECTS, resample
from hybridzoo.data.anomaly.split import GOOD, Entry
from hybridzoo.data.images import open_image, to_mode
from hybridzoo.errors import DataError

CC0 = {"brick": "brick.png", "grass": "grass.png", "gravel": "gravel.png"}
MINI_FILE = "textures_cc0.npz.xz"
OPENARENA = {
    "metal_bridge": "textures/base_floor/metalbridge04d.jpg",
    "diamond_plate": "textures/base_floor/diamond2c.jpg",
    "concrete": "textures/base_wall/concrete.jpg",
    "blocks_a": "textures/gothic_block/blocks17.jpg",
    "blocks_b": "textures/gothic_block/blocks11b.jpg",
    "blocks_c": "textures/gothic_block/blocks18c.jpg",
    "rock": "textures/cosmo_block/rock01.jpg",
}
# pictures of the same textures, drawn damaged: class, file, and whether the damage is where it is transparent
DAMAGED = (
    ("metal_bridge", "textures/base_floor/metalbridge04dbroke.tga", True),
    ("blocks_a", "textures/gothic_block/blocks17bloody.tga", True),
    ("blocks_a", "textures/gothic_block/blocks17_ow.tga", True),
    ("blocks_b", "textures/gothic_block/blocks11bbroke.jpg", False),
    ("blocks_b", "textures/gothic_block/blocks11bbroke3.jpg", False),
    ("blocks_c", "textures/gothic_block/blocks18cblood.jpg", False),
)
# else it is where the largest difference of a channel, averaged over a window of so many pixels, exceeds so many levels
WINDOW, DIFFERENCE = 5, 16.0
HOLE = 10.0  # grey level of what shows through a transparent place
LEAST_DAMAGE = 0.002  # share of a crop's pixels
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


def make_samples(
    textures: Mapping[str, np.ndarray], sizes: Sizes, seed: int = 0, classes: Sequence[str] | None = None
) -> Iterator[Sample]:
    """All images of all classes, one after the other.

    Args:
        textures: class -> (512, 512, C) uint8, C of 1 or 3.
        sizes: how many.
        seed: the same gives the same images, class by class.
        classes: make those of these classes only.
    """
    names = list(textures)
    for c, name in enumerate(names):
        if classes is not None and name not in classes:
            continue
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


def damage_of(picture: Any, texture: np.ndarray, transparent: bool) -> tuple[np.ndarray, np.ndarray]:
    """The damaged picture (512, 512, 3) and where it is damaged (512, 512), see `DAMAGED`."""
    array = np.asarray(to_mode(picture, 3)).astype(np.float64)
    if transparent:
        where = np.asarray(picture.getchannel("A")) < 128
        return np.where(where[..., None], HOLE, array), where
    changed = np.pad(np.abs(array - texture).max(2), WINDOW // 2, mode="edge")
    total = np.pad(changed.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    k = WINDOW
    return array, (total[k:, k:] - total[:-k, k:] - total[k:, :-k] + total[:-k, :-k]) / k**2 > DIFFERENCE


def damaged_samples(sources: Path, textures: Mapping[str, np.ndarray], sizes: Sizes, seed: int = 0) -> Iterator[Sample]:
    """Crops of the right halves of `DAMAGED`, `sizes.defects` each, and `sizes.good` good ones of each class."""
    names = list(textures)
    for name in dict.fromkeys(name for name, _, _ in DAMAGED):
        random = np.random.RandomState([seed, names.index(name), 3])
        for i in range(sizes.good):
            image = crop(textures[name].astype(np.float64), REGIONS["test"], sizes.side, random)
            yield Sample("test", name, GOOD, i, _finish(image), None)
    for d, (name, path, transparent) in enumerate(DAMAGED):
        picture, where = damage_of(open_image(sources / path, path), textures[name], transparent)
        layers = np.concatenate([picture, where[..., None] * 255.0], 2)  # so that the mask turns with its picture
        random = np.random.RandomState([seed, 20 + d])
        for i in range(sizes.defects):
            while True:
                layer = crop(layers, REGIONS["test"], sizes.side, random)
                mask = layer[..., 3] > 127  # far from both of its levels, whatever the brightness and the noise
                if mask.mean() > LEAST_DAMAGE:
                    break
            yield Sample("test", name, Path(path).stem, i, _finish(layer[..., :3]), mask)


def embedded_textures() -> dict[str, np.ndarray]:
    """The three CC0 textures that ship with hybridzoo: class -> (512, 512, 1) uint8."""
    from hybridzoo.data.readers.embedded import embedded_file

    with np.load(io.BytesIO(lzma.decompress(embedded_file(MINI_FILE).read_bytes()))) as stored:
        return {name: stored[name][..., None] for name in stored.files}


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


def _build(sources: Path, out: Path, sizes: Sizes, seed: int, name: str | None) -> int:
    """Write the images of a class, or without one those of `real_damage`."""
    textures = embedded_textures() | load_textures(sources, OPENARENA)
    if name is None:
        return write_samples(damaged_samples(sources, textures, sizes, seed), out / "real_damage")
    return write_samples(make_samples(textures, sizes, seed, [name]), out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build TextureAD: ten textures with synthetic defects, in MVTec-AD's layout."""
    parser = argparse.ArgumentParser(
        prog="python -m hybridzoo.data.anomaly.textures",
        description=main.__doc__,
        epilog="SOURCES: see the head of hybridzoo/data/anomaly/textures.py for the commands that fetch it.",
    )
    parser.add_argument("sources", type=Path, help="folder with textures/ of the Debian package openarena-081-textures")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes; the files are the same")
    given = parser.parse_args(arguments)
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        raise DataError(f"{given.out} exists already; give a new or an empty folder")
    load_textures(given.sources, OPENARENA)  # what is missing is said before anything is written
    names = [*CC0, *OPENARENA, None]
    with ProcessPoolExecutor(max(1, given.jobs), mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(_build, given.sources, given.out, FULL, given.seed, name) for name in names]
        counts = [task.result() for task in tasks]
    print(f"{given.out}: {sum(counts[:-1])} images of {len(names) - 1} classes; real_damage: {counts[-1]} images")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
