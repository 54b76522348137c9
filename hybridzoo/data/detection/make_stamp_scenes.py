"""Makes the stand-in set "stamp scenes": cut-out stamps pasted on textures, with exact boxes, as COCO files.

    apt-get download tuxpaint-stamps-default openarena-081-textures      # Debian packages, GPL; nothing of them is
    committed for f in *.deb; do dpkg-deb -x $f x; done
    python -m zipfile -e x/usr/share/games/openarena/baseoa/pak4-textures.pk3 textures
    python -m hybridzoo.data.detection.make_stamp_scenes pack x/usr/share/tuxpaint/stamps textures stamps.zip
    python -m hybridzoo.data.detection.make_stamp_scenes scenes stamps.zip data/stamp_scenes

`pack` keeps what is needed (the stamps of eight classes, at most 192 pixels wide or high, and textures) in a small
archive. `scenes` draws 320 x 320 scenes of 1 to 8 objects. Stamps and textures of the test scenes occur in no train or
validation scene. A box is the extent of the pixels of an object that no later object hides; objects of which less than
40 % is visible are drawn elsewhere. Every scene is a function of (seed, split, number); the annotations do not depend
on the machine, the JPEG bytes may depend on the version of libjpeg.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.errors import DataError

CLASSES = {
    "bird": "animals/birds",
    "mammal": "animals/mammals",
    "insect": "animals/insects",
    "fruit": "food/fruit",
    "flower": "plants/flowers",
    "house": "town/houses",
    "roadsign": "town/roadsigns",
    "vehicle": "vehicles",
}
PARTS = {"test": 0.25, "validation": 0.1}  # share of the stamps of each class; train has the rest
BACKGROUND_PARTS = {"test": 0.2, "validation": 0.1}
TEXTURE_FOLDERS = re.compile(
    r"textures/(base_(floor|wall2?|trim|door)|gothic_(block|floor|wall|trim|cath)|oquartz|cosmo_(block|trim)|stone|ice|organics|"
    r"pulchr_simple|evil[68]_\w+|acc_dm[35])/"
)
MAX_BACKGROUNDS = 200
STAMP_SIDE, BACKGROUND_SIDE = 192, 320
OBJECTS = (1, 8)
SIDES = (28, 200)  # longer side of a pasted stamp, drawn log-uniformly
VISIBLE = 0.4
JPEG_QUALITY = 92


def pack(stamps: Path, textures: Path, out: Path) -> Path:
    """Collect the stamps and textures that scenes are made of.

    Raises:
        DataError: a class folder or the textures are missing.
    """
    from PIL import Image

    members: list[tuple[str, bytes]] = []
    for name, folder in CLASSES.items():
        files = sorted(p for p in (stamps / folder).rglob("*.png") if "_mirror" not in p.stem)
        if len(files) < 8:
            raise DataError(f"{stamps / folder} holds {len(files)} stamps; expected those of tuxpaint-stamps-default")
        for file in files:
            with Image.open(file) as opened:
                image = opened.convert("RGBA")
            extent = image.getchannel("A").point([0] * 128 + [255] * 128).getbbox()
            if extent is None:
                continue
            image = image.crop(extent)
            image.thumbnail((STAMP_SIDE, STAMP_SIDE), Image.Resampling.LANCZOS)
            relative = file.relative_to(stamps / folder).with_suffix("").as_posix().replace("/", "__")
            members.append((f"stamps/{name}/{relative}.png", _encoded(image, "PNG", optimize=True)))
    found = 0
    names = set()
    for file in sorted(p for p in textures.rglob("*") if p.suffix.lower() in (".jpg", ".tga")):
        relative = file.relative_to(textures).as_posix()
        name = relative.rsplit(".", 1)[0].replace("/", "__")
        if name in names:  # the same texture as .jpg and .tga
            continue
        if found == MAX_BACKGROUNDS or not TEXTURE_FOLDERS.match(f"textures/{relative.removeprefix('textures/')}"):
            continue
        with Image.open(file) as opened:
            if min(opened.size) < 256 or (opened.mode == "RGBA" and np.asarray(opened)[..., 3].min() < 255):
                continue
            image = opened.convert("RGB")
        grey = np.asarray(image.convert("L"), np.float64)
        if not 25 < grey.mean() < 230 or grey.std() < 8:  # near black, near white or flat
            continue
        image = image.resize((BACKGROUND_SIDE, BACKGROUND_SIDE), Image.Resampling.LANCZOS)
        names.add(name)
        members.append((f"backgrounds/{name}.jpg", _encoded(image, "JPEG", quality=88)))
        found += 1
    if found < 20:
        raise DataError(f"{textures} holds {found} usable textures; expected those of openarena-081-textures")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(members):
            archive.writestr(zipfile.ZipInfo(name), data)
    return out


def _encoded(image: Any, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


class Parts:
    """Stamps and backgrounds of an archive, divided among the splits."""

    def __init__(self, archive: Path, seed: int):
        from PIL import Image

        try:
            with zipfile.ZipFile(archive) as file:
                data = {name: file.read(name) for name in sorted(file.namelist())}
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{archive} is no archive of stamps ({error}); make it with `… make_stamp_scenes pack`"
            ) from error
        self.stamps: dict[str, dict[str, list[Any]]] = {split: {} for split in ("train", "validation", "test")}
        for number, name in enumerate(CLASSES):
            names = [n for n in data if n.startswith(f"stamps/{name}/")]
            for split, chosen in divide(names, PARTS, [seed, number]).items():
                self.stamps[split][name] = [Image.open(io.BytesIO(data[n])).convert("RGBA") for n in chosen]
        names = [n for n in data if n.startswith("backgrounds/")]
        self.backgrounds = {
            split: [Image.open(io.BytesIO(data[n])).convert("RGB") for n in chosen]
            for split, chosen in divide(names, BACKGROUND_PARTS, [seed, len(CLASSES)]).items()
        }


def divide(names: Sequence[str], shares: Mapping[str, float], seed: Sequence[int]) -> dict[str, list[str]]:
    """Names among test, validation and train; variants of one picture (a number at the end aside) stay together."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        folder, separator, leaf = name.rsplit("/", 1)[-1].rsplit(".", 1)[0].rpartition("__")
        base = re.sub(r"([-_]?\d+|[-_](stand|sitting|eating|flying|baby.*))+$", "", leaf)
        groups.setdefault(folder + separator + (base or leaf), []).append(name)
    keys = list(groups)
    order = np.random.default_rng([*seed, 1]).permutation(len(keys))
    made: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for i in order:
        split = next((s for s, share in shares.items() if len(made[s]) < share * len(names)), "train")
        made[split] += groups[keys[int(i)]]
    return {split: sorted(chosen) for split, chosen in made.items()}


def make_scene(parts: Parts, split: str, number: int, size: int, seed: int) -> tuple[Any, list[dict[str, Any]]]:
    """One scene: a PIL image, and per object `label` (class index), `box` (x, y, w, h) and `area` (visible pixels)."""
    from PIL import Image, ImageEnhance

    random = np.random.default_rng([seed, ("train", "validation", "test").index(split), number])
    backgrounds = parts.backgrounds[split]
    scene = backgrounds[int(random.integers(len(backgrounds)))].resize((size, size))
    if random.random() < 0.5:
        scene = scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scene = ImageEnhance.Brightness(scene).enhance(float(random.uniform(0.6, 1.3)))
    owner = np.full((size, size), -1, np.int32)
    labels: list[int] = []
    pixels: list[int] = []  # of each object before others hid some
    wanted = int(random.integers(OBJECTS[0], OBJECTS[1] + 1))
    for _ in range(4 * wanted):
        if len(labels) == wanted:
            break
        label = int(random.integers(len(CLASSES)))
        stamps = parts.stamps[split][list(CLASSES)[label]]
        stamp = _varied(stamps[int(random.integers(len(stamps)))], random, size)
        width, height = stamp.size
        left = int(random.integers(-width // 5, size - width + width // 5 + 1))
        top = int(random.integers(-height // 5, size - height + height // 5 + 1))
        mask = np.zeros((size, size), bool)
        y, x = max(top, 0), max(left, 0)
        inside = np.asarray(stamp.getchannel("A"))[y - top : size - top, x - left : size - left] >= 128
        mask[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
        after = np.where(mask, len(labels), owner)
        left_over = np.bincount(after[after >= 0], minlength=len(labels) + 1)
        whole = int((np.asarray(stamp.getchannel("A")) >= 128).sum())
        if not len(left_over) or (left_over < VISIBLE * np.array([*pixels, whole])).any() or left_over[-1] < 64:
            continue  # too little of it, or of an earlier object, would be seen
        owner = after
        scene.paste(stamp, (left, top), stamp)
        labels.append(label)
        pixels.append(whole)
    objects = []
    for i, label in enumerate(labels):
        rows, columns = np.nonzero(owner == i)
        x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        objects.append({"label": label, "box": [int(x1), int(y1), int(x2 - x1), int(y2 - y1)], "area": len(rows)})
    return scene, objects


def _varied(stamp: Any, random: np.random.Generator, size: int) -> Any:
    """A stamp flipped, scaled, turned by up to 20 degrees, with other brightness and colour."""
    from PIL import Image, ImageEnhance

    if random.random() < 0.5:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = float(np.exp(random.uniform(np.log(SIDES[0]), np.log(min(SIDES[1], 0.75 * size)))))
    scale = side / max(stamp.size)
    stamp = stamp.resize([max(round(s * scale), 4) for s in stamp.size], Image.Resampling.BILINEAR)
    alpha = stamp.getchannel("A")
    colour = ImageEnhance.Brightness(stamp.convert("RGB")).enhance(float(random.uniform(0.6, 1.3)))
    colour = ImageEnhance.Color(colour).enhance(float(random.uniform(0.5, 1.3)))
    colour.putalpha(alpha)
    turned = colour.rotate(float(random.uniform(-20, 20)), Image.Resampling.BILINEAR, expand=True)
    return turned


@functools.lru_cache(maxsize=2)
def _parts(archive: str, seed: int) -> Parts:
    return Parts(Path(archive), seed)


def _write_scene(archive: str, out: str, split: str, size: int, seed: int, number: int) -> list[dict[str, Any]]:
    scene, objects = make_scene(_parts(archive, seed), split, number, size, seed)
    scene.save(Path(out) / split / f"{number:06d}.jpg", quality=JPEG_QUALITY)
    return objects


def make_scenes(
    archive: Path, out: Path, counts: Mapping[str, int], *, size: int = 320, seed: int = 0, workers: int = 1
) -> Path:
    """Write `<split>/*.jpg`, `<split>.json` and `provenance.json`; the folder must not hold other splits already.

    Args:
        archive: from `pack`.
        out: the folder.
        counts: scenes of each split.
        size: side of the scenes in pixels.
        seed: of everything that is drawn.
        workers: processes.
    """
    for split in counts:
        if (out / f"{split}.json").exists():
            raise DataError(f"{out / split}.json exists; give another folder")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    for split, count in counts.items():
        (out / split).mkdir(parents=True, exist_ok=True)
        work = functools.partial(_write_scene, str(archive), str(out), split, size, seed)
        if workers > 1:
            with ProcessPoolExecutor(workers) as pool:
                found = list(pool.map(work, range(count), chunksize=64))
        else:
            found = [work(number) for number in range(count)]
        document = _document(found, size)
        (out / f"{split}.json").write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
    facts = {
        "made_by": "hybridzoo.data.detection.make_stamp_scenes",
        "archive_sha256": digest,
        "seed": seed,
        "size": size,
        "counts": dict(counts),
        "sources": [
            "Debian tuxpaint-stamps-default 2022.06.04 (GPL-2)",
            "Debian openarena-081-textures 0.8.5 (GPL-2+)",
        ],
    }
    (out / "provenance.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return out


def _document(scenes: Sequence[Sequence[Mapping[str, Any]]], size: int) -> dict[str, Any]:
    annotations = []
    for number, objects in enumerate(scenes):
        for one in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": one["label"] + 1,
                    "bbox": one["box"],
                    "area": one["area"],
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": i + 1, "file_name": f"{i:06d}.jpg", "width": size, "height": size} for i in range(len(scenes))
        ],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line that the module's text shows."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    for name in ("stamps", "textures", "out"):
        packing.add_argument(name, type=Path)
    making = commands.add_parser("scenes")
    making.add_argument("archive", type=Path)
    making.add_argument("out", type=Path)
    for name, default in (
        ("train", 5000),
        ("validation", 500),
        ("test", 1000),
        ("size", 320),
        ("seed", 0),
        ("workers", 1),
    ):
        making.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(arguments)
    if given.command == "pack":
        made = pack(given.stamps, given.textures, given.out)
        print(f"{made}: {made.stat().st_size:,} bytes")
        return
    counts = {split: getattr(given, split) for split in ("train", "validation", "test") if getattr(given, split) > 0}
    print(make_scenes(given.archive, given.out, counts, size=given.size, seed=given.seed, workers=given.workers))


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"error: {error}")
