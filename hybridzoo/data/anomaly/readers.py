"""Readers of anomaly sets for `load_data`: by layout, by meta.json, of a folder of one's own, and the embedded set.

Options of all: `classes` (names; others are left out), `validation` (share of the normal training images, drawn with
the seed, that is kept for choosing a threshold; 0 as in the papers).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.anomaly import layouts
from hybridzoo.data.anomaly.coco import coco_ad
from hybridzoo.data.anomaly.meta import read_meta
from hybridzoo.data.anomaly.split import GOOD, LABEL_NAMES, AnomalySplit, Entry, check_split, manifest
from hybridzoo.data.base import Raw
from hybridzoo.errors import DataError

TEST_SHARE = 0.2  # of the normal images of a folder without splits
NORMAL_NAMES, ABNORMAL_NAMES = ("normal", "good", "ok"), ("abnormal", "anomalous", "defect", "bad", "ng", "ko")
MASK_NAMES = ("masks", "mask", "ground_truth")


def _classes(options: dict[str, Any]) -> list[str] | None:
    given = options.get("classes")
    return [given] if isinstance(given, str) else None if given is None else list(given)


def make_raw(
    name: str,
    parts: layouts.Parts,
    root: Path,
    options: dict[str, Any],
    seed: int,
    revision: str,
    protocol: str | None = None,
) -> Raw:
    """Splits of entries, checked; the classes follow each other."""
    given = {split: [e for entries in of.values() for e in entries] for split, of in parts.items()}
    # an empty train part is an error; a set to test on has none at all
    splits = {split: AnomalySplit(e, root) for split, e in given.items() if e or (split == "train" and parts[split])}
    missing = [e.img_path for s in splits.values() for e in s.entries if not (root / e.img_path).is_file()]
    missing += [
        e.mask_path for s in splits.values() for e in s.entries if e.mask_path and not (root / e.mask_path).is_file()
    ]
    if missing:
        raise DataError(f"{name}: {len(missing)} listed files are missing below {root}, the first is {missing[0]}")
    check_split(name, splits.get("train"), splits.get("test"))
    share = float(options.get("validation", 0.0))
    if not 0 <= share < 1:
        raise DataError(f"validation={share} must be a share of the normal training images, 0 or more and below 1")
    if share and "train" in splits:
        splits = {**hold_out(splits["train"], share, seed), **{k: v for k, v in splits.items() if k != "train"}}
    notes = () if all(s.has_masks for s in splits.values()) else ("anomalous images without masks: image metrics only",)
    return Raw(
        splits=splits,  # type: ignore[arg-type]
        label_names=LABEL_NAMES,
        sha256=manifest(splits),
        sha256_of="list of image and mask names, image sizes and labels",
        revision=revision,
        protocol=protocol,
        notes=notes,
        subset=_classes(options) is not None,
    )


def hold_out(train: AnomalySplit, share: float, seed: int) -> dict[str, AnomalySplit]:
    """train and validation: a seeded share of each class's normal images, at least one, becomes validation."""
    random = np.random.default_rng(seed)
    held: set[int] = set()
    for name in train.class_names:
        rows = [i for i, e in enumerate(train.entries) if e.cls_name == name and not e.anomaly]
        if len(rows) > 1:
            held.update(random.permutation(rows)[: max(1, round(share * len(rows)))].tolist())
    rest = [i for i in range(len(train)) if i not in held]
    return {"train": train.select(rest), "validation": train.select(sorted(held))}


def _read(layout: Any, name: str, root: Path, options: dict[str, Any], seed: int) -> Raw:
    """By meta.json where there is one (or `meta=`), else by the layout."""
    if not root.is_dir():
        raise DataError(f"{root} is a file; {name} needs the folder of the data set")
    meta = options.get("meta")
    path = (root / meta if not Path(str(meta)).is_absolute() else Path(meta)) if meta else root / "meta.json"
    if meta is not None or path.is_file():
        return make_raw(name, read_meta(path, _classes(options)), root, options, seed, f"by {path.name}")
    return make_raw(name, layout(root, _classes(options)), root, options, seed, "by folder layout")


def read_mvtec(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """MVTec-AD and the sets that share its layout."""
    return _read(layouts.mvtec, "this data set", root, options, seed)


def read_texture_ad_damage(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """The part of TextureAD that was drawn damaged."""
    return _read(layouts.mvtec, "texture_ad_damage", root / "real_damage", options, seed)


def read_mvtec_3d(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """MVTec-3D AD, its RGB images."""
    return _read(layouts.mvtec_3d, "mvtec_3d", root, options, seed)


def read_visa(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """VisA by its own table of splits."""
    return _read(layouts.visa, "visa", root, options, seed)


def read_real_iad(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """Real-IAD by its JSON lists, all five views."""
    return _read(layouts.real_iad, "real_iad", root, options, seed)


def read_coco_ad(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """COCO-AD, one of four splits (`split` 0 to 3), by `meta_20_<split>.json` or from COCO's annotations."""
    split = int(options.get("split", 0))
    meta = options.get("meta") or f"meta_20_{split}.json"
    if (root / meta).is_file():
        return _read(coco_ad, "coco_ad", root, {**options, "meta": meta}, seed)
    parts = coco_ad(root, split=split)
    return make_raw("coco_ad", parts, root, options, seed, f"split {split} from COCO's annotations")


def read_anomaly_folder(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """Images of one's own.

    MVTec's layout, with one class folder per product; or, for a single product, `train/` and `test/` right here; or
    `normal/`, and where they exist `abnormal/` and `masks/` (a mask has its image's name); or a folder that holds
    nothing but normal images. The last two are split 80/20 (normal images, seeded); every abnormal image is a test
    image.
    """
    if not root.is_dir():
        raise DataError(f"{root} is a file; anomaly_folder needs a folder of images")
    if (root / "meta.json").is_file() or options.get("meta"):
        return _read(layouts.mvtec, "anomaly_folder", root, options, seed)
    if (root / "train").is_dir():
        name = root.name or "images"
        parts = layouts.mvtec(root.parent, [root.name])
        moved = {s: {name: [_below(e, root.name) for e in of[name]]} for s, of in parts.items()}
        return make_raw("anomaly_folder", moved, root, options, seed, "train and test folders", "given")
    if any((p / "train").is_dir() for p in root.iterdir() if p.is_dir()):
        parts = layouts.mvtec(root, _classes(options))
        return make_raw("anomaly_folder", parts, root, options, seed, "class folders", "given")
    return make_raw("anomaly_folder", _plain(root, seed, options), root, options, seed, "normal images", "80/20")


def _below(entry: Entry, folder: str) -> Entry:
    return Entry(
        entry.img_path.removeprefix(f"{folder}/"),
        entry.mask_path.removeprefix(f"{folder}/"),
        entry.cls_name,
        entry.specie_name,
        entry.anomaly,
    )


def _plain(root: Path, seed: int, options: dict[str, Any]) -> layouts.Parts:
    def folder(option: str, names: Sequence[str]) -> Path | None:
        if options.get(option):
            given = root / options[option]
            if not given.is_dir():
                raise DataError(f"{option}={options[option]}: {given} is no folder")
            return given
        return next((root / n for n in names if (root / n).is_dir()), None)

    normal, abnormal = folder("normal_dir", NORMAL_NAMES), folder("abnormal_dir", ABNORMAL_NAMES)
    masks = folder("mask_dir", MASK_NAMES)
    if normal is None and (abnormal is not None or masks is not None):
        raise DataError(f"{root} has no folder of normal images ({', '.join(NORMAL_NAMES)}); name it with normal_dir=")
    good = layouts.images_in(normal or root)
    if not good:
        raise DataError(f"{normal or root} holds no image; put normal images there (.png, .jpg, …)")
    bad = layouts.images_in(abnormal) if abnormal else []
    paired = layouts.pair_masks(bad, layouts.images_in(masks), str(root)) if masks and bad else None
    name = root.name or "images"
    rows = np.random.default_rng(seed).permutation(len(good))
    cut = round(TEST_SHARE * len(good)) if bad else 0  # without a defect there is nothing to test

    def entry(path: Path, mask: Path | None, anomaly: int) -> Entry:
        specie = GOOD if not anomaly else path.parent.name
        at = mask.relative_to(root).as_posix() if mask else ""
        return Entry(path.relative_to(root).as_posix(), at, name, specie, anomaly)

    test = [entry(good[i], None, 0) for i in sorted(rows[:cut])]
    test += [entry(p, paired[i] if paired else None, 1) for i, p in enumerate(bad)]
    return {"train": {name: [entry(good[i], None, 0) for i in sorted(rows[cut:])]}, "test": {name: test}}


def read_texture_ad_mini(root: None, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """Crops and synthetic defects of the three embedded CC0 textures, made here; see `textures`."""
    from hybridzoo.data.anomaly.textures import MINI, MINI_FILE, embedded_textures, make_samples
    from hybridzoo.data.base import sha256_files
    from hybridzoo.data.readers.embedded import embedded_file

    path = embedded_file(MINI_FILE)
    arrays: dict[str, np.ndarray] = {}
    entries: dict[str, list[Entry]] = {"train": [], "validation": [], "test": []}
    for sample in make_samples(embedded_textures(), MINI):
        entry = sample.entry
        entries[sample.split].append(entry)
        arrays[entry.img_path] = sample.image
        if sample.mask is not None:
            arrays[entry.mask_path] = sample.mask.astype(np.uint8) * 255
    splits = {name: AnomalySplit(rows, arrays=arrays) for name, rows in entries.items()}
    return Raw(
        splits=splits,  # type: ignore[arg-type]
        label_names=LABEL_NAMES,
        sha256=sha256_files([path]),
        sha256_of="the textures that the images are made from",
        revision="seed 0",
        notes=("synthetic defects; not comparable with results on MVTec-AD",),
    )
