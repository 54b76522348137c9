"""Readers of the Long Range Arena's images: Pathfinder with its metadata, and CIFAR-10 in grey."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.base import MAX_SKIPPED, ArrayImages, Raw, Skipped, Split, check_skipped, sha256_files
from hybridzoo.data.images import open_image
from hybridzoo.data.lra.pathfinder_files import read_metadata
from hybridzoo.data.lra.pathfinder_rules import LEVEL_FOLDERS, LEVEL_NAMES
from hybridzoo.data.lra.read_listops import made_notes
from hybridzoo.errors import DataError, unknown

PATH_LABELS = ("separate", "connected")
# Empty files of lra_release.
BLACKLIST = frozenset({"pathfinder32/curv_baseline/imgs/0/sample_172.png"})
FIELDS = ("folder", "file", "index", "label")
CIFAR_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
S4_SEED = 42  # of the random_split that S4, Mega and S5 draw; not the seed of the call


def random_split(total: int, sizes: Sequence[int], seed: int = S4_SEED) -> list[np.ndarray]:
    """Row numbers of torch.utils.data.random_split with a generator of that seed."""
    import torch

    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).numpy()
    return np.split(order, np.cumsum(sizes)[:-1])


# Pathfinder ----------------------------------------------------------------------------------------------------------


class GreyFiles(Sequence[Any]):
    """8-bit grey images of files, opened when asked for. They are many and small, so a split keeps them as one array
    (`array`) from the first time that all are needed.
    """

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size = list(paths), size
        self._array: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        from PIL import Image

        if self._array is not None:
            return Image.fromarray(self._array[index])
        return Image.fromarray(self._read(self.paths[index]))

    def _read(self, path: Path) -> np.ndarray:
        image = np.asarray(open_image(path).convert("L"))
        if image.shape != (self.size, self.size):
            raise DataError(
                f"{path} has {image.shape[1]} x {image.shape[0]} pixels, expected {self.size} x {self.size}"
            )
        return image

    @property
    def array(self) -> np.ndarray:
        """(N, size, size) uint8, read once."""
        if self._array is None:
            self._array = np.empty((len(self.paths), self.size, self.size), np.uint8)
            for i, path in enumerate(self.paths):
                self._array[i] = self._read(path)
        return self._array

    def select(self, indices: Sequence[int]) -> GreyFiles:
        """These images, in this order."""
        return GreyFiles([self.paths[i] for i in indices], self.size)


def read_pathfinder(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """Images of 32 x 32 pixels."""
    return _read_pathfinder(root, protocol, options, 32, "lra_pathfinder")


def read_pathfinder_intermediate(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """The same with shorter paths, contours of 9 dashes; not the benchmark's."""
    return _read_pathfinder(root, protocol, {"level": "intermediate", **options}, 32, "lra_pathfinder_intermediate")


def read_pathfinder_easy(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """The same with the shortest paths, contours of 6 dashes; not the benchmark's."""
    return _read_pathfinder(root, protocol, {"level": "easy", **options}, 32, "lra_pathfinder_easy")


def read_pathx(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """Images of 128 x 128 pixels."""
    return _read_pathfinder(root, protocol, options, 128, "lra_pathx")


def _read_pathfinder(root: Path, protocol: str, options: dict[str, Any], size: int, name: str) -> Raw:
    level = options.get("level", "hard")
    if level not in LEVEL_NAMES:
        raise DataError(unknown("level of Pathfinder", str(level), LEVEL_NAMES))
    folder = _level_folder(root, size, LEVEL_FOLDERS[LEVEL_NAMES[level]], name)
    rows, skipped, files = _rows(folder, size)
    check_skipped(skipped, len(rows), str(folder), limit=options.get("max_skipped", MAX_SKIPPED))
    everything = Split(
        [f"{folder.name}/{where}" for where, _ in rows],
        [label for _, label in rows],
        GreyFiles([folder / where for where, _ in rows], size),
        "image",
    )
    total, tenth = len(rows), int(0.1 * len(rows))
    if total < 10:
        raise DataError(f"{folder} lists {total} images; a tenth of them is the test split, so at least 10 are needed")
    sizes = (total - 2 * tenth, tenth, tenth)
    if protocol == "free-for-all":
        parts = random_split(total, sizes)
    else:  # tensorflow_datasets' [:80%], [80%:90%], [90%:], which rounds its borders
        borders = [round(total * share) for share in (0.8, 0.9)]
        parts = np.split(np.arange(total), borders)
    return Raw(
        splits={n: everything.select(p.tolist()) for n, p in zip(("train", "validation", "test"), parts)},
        label_names=PATH_LABELS,
        sha256=sha256_files(files),
        sha256_of="the metadata files: lines '<sha256>  <name>'",
        revision=f"{folder.parent.name}/{folder.name}, {total} images",
        skipped=tuple(skipped),
        notes=made_notes(folder),
        subset=total < 199_000,  # the release has 200,000, or one less at some levels
    )


def _level_folder(root: Path, size: int, level: str, name: str) -> Path:
    from hybridzoo.data.catalog import data_spec

    if root.name == level and (root / "metadata").is_dir():
        return root
    for part in ("", f"pathfinder{size}", f"lra_release/pathfinder{size}", f"lra_release/lra_release/pathfinder{size}"):
        folder = root / part / level
        if (folder / "metadata").is_dir():
            return folder
    held = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "not a folder"
    raise DataError(f"{root} has no {level}/metadata (it holds: {held or 'nothing'}). Needed: {data_spec(name).needs}")


def _rows(folder: Path, size: int) -> tuple[list[tuple[str, int]], list[Skipped], list[Path]]:
    """(image, label) in the order of S4's and Mega's loaders: files by number, rows as they stand."""
    files = [p for p in (folder / "metadata").iterdir() if p.suffix == ".npy" and p.stem.isdigit()]
    files.sort(key=lambda p: int(p.stem))
    if not files:
        raise DataError(f"{folder}/metadata has no <number>.npy; each holds one row per image of imgs/<number>")
    rows, skipped = [], []
    present: dict[str, set[str]] = {}
    for path in files:
        for number, fields in enumerate(read_metadata(path)):
            where = f"metadata/{path.name}:{number}"
            if len(fields) < len(FIELDS):
                skipped.append(Skipped(where, f"{len(fields)} fields, expected at least {', '.join(FIELDS)}"))
                continue
            image = f"{fields[0]}/{fields[1]}"
            if fields[3] not in ("0", "1"):
                skipped.append(Skipped(where, f"label {fields[3][:20]!r} is neither 0 nor 1"))
                continue
            if fields[0] not in present:
                inside = folder / fields[0]
                present[fields[0]] = {p.name for p in inside.iterdir()} if inside.is_dir() else set()
            if f"pathfinder{size}/{folder.name}/{image}" in BLACKLIST:
                skipped.append(Skipped(image, "an empty file of lra_release"))
            elif fields[1] not in present[fields[0]]:
                skipped.append(Skipped(image, "there is no such image"))
            elif not (folder / image).stat().st_size:
                skipped.append(Skipped(image, "the file is empty"))
            else:
                rows.append((image, int(fields[3])))
    return rows, skipped, files


# CIFAR-10 in grey ----------------------------------------------------------------------------------------------------


def read_grey_cifar(root: Path | str, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """CIFAR-10, binary files or through `datasets`, as 32 x 32 grey images.

    `free-for-all`: Pillow's grey and S4's random_split; `apples-to-apples`: TensorFlow's grey, train[:90%] and [90%:].
    """
    (images, labels), (test_images, test_labels), digest, read = _cifar(root)
    if protocol == "free-for-all":
        grey, parts = (
            pillow_grey,
            random_split(len(labels), (int(0.9 * len(labels)), len(labels) - int(0.9 * len(labels)))),
        )
    else:
        grey, parts = tensorflow_grey, np.split(np.arange(len(labels)), [round(0.9 * len(labels))])
    splits = {
        name: Split([f"train-{i}" for i in rows], labels[rows].tolist(), ArrayImages(grey(images[rows])), "image")
        for name, rows in zip(("train", "validation"), parts)
    }
    ids = [f"test-{i}" for i in range(len(test_labels))]
    splits["test"] = Split(ids, test_labels.tolist(), ArrayImages(grey(test_images)), "image")
    return Raw(
        splits=splits,
        label_names=CIFAR_LABELS,
        sha256=digest,
        sha256_of="the files: lines '<sha256>  <name>'" if isinstance(root, Path) else "pixels and labels",
        revision=read,
        subset=(len(labels), len(test_labels)) != (50_000, 10_000),
    )


def pillow_grey(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) to (N, H, W) uint8 as Pillow and torchvision do: 16.16 fixed point."""
    red, green, blue = (images[..., i].astype(np.uint32) for i in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)


def tensorflow_grey(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) to (N, H, W) uint8 as tf.image.rgb_to_grayscale does: floats in 0 to 1, and back by 255.5."""
    scaled = images.astype(np.float32) * np.float32(1 / 255)
    mixed = scaled @ np.array([0.2989, 0.587, 0.114], np.float32)
    return np.clip(mixed * np.float32(255.5), 0, 255).astype(np.uint8)


def _cifar(root: Path | str) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], str, str]:
    if isinstance(root, str):
        return _hub_cifar(root)
    from hybridzoo.data.catalog import data_spec

    needs = data_spec("lra_image").needs
    folder = root / "cifar-10-batches-bin" if (root / "cifar-10-batches-bin").is_dir() else root
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    if (folder / "test_batch").is_file() or (folder / "cifar-10-batches-py").is_dir():
        raise DataError(
            f"{folder} holds the Python version of CIFAR-10, whose pickles are not opened here. Needed: {needs}"
        )
    paths = [folder / n for n in names if (folder / n).is_file()]
    if not paths or paths[-1].name != names[-1] or len(paths) < 2:
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "not a folder"
        raise DataError(f"{folder} has no {names[0]} and {names[-1]} (it holds: {held or 'nothing'}). Needed: {needs}")
    parts = [_cifar_file(p) for p in paths]
    train = tuple(np.concatenate(v) for v in zip(*parts[:-1]))
    return (train[0], train[1]), parts[-1], sha256_files(paths), "cifar-10-batches-bin"


def _cifar_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    record = 1 + 3 * 32 * 32
    data = np.frombuffer(path.read_bytes(), np.uint8)
    if not len(data) or len(data) % record:
        raise DataError(f"{path} has {len(data):,} bytes, no multiple of {record} (label and pixels); fetch it again")
    rows = data.reshape(-1, record)
    if rows[:, 0].max() > 9:
        raise DataError(f"{path} holds the label {rows[:, 0].max()}; CIFAR-10 has 0 to 9 (is it CIFAR-100?)")
    return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0].astype(np.int64)


def _hub_cifar(root: str) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], str, str]:
    from hybridzoo.data.readers.hf import load_hub

    loaded, read = load_hub(root)
    if "train" not in loaded or "test" not in loaded:
        raise DataError(f"{read} needs the splits train and test, it has {', '.join(loaded)}")
    digest, parts = hashlib.sha256(), []
    for name in ("train", "test"):
        part = loaded[name]
        image = next((c for c in ("img", "image") if c in part.column_names), None)
        label = next((c for c in ("label", "fine_label") if c in part.column_names), None)
        if image is None or label is None:
            raise DataError(f"{read} needs the columns img and label, it has {', '.join(part.column_names)}")
        pixels = np.stack([np.asarray(_opened(cell).convert("RGB")) for cell in part[image]])
        labels = np.asarray(part[label], np.int64)
        digest.update(pixels.tobytes() + labels.tobytes())
        parts.append((pixels, labels))
    return parts[0], parts[1], digest.hexdigest(), read


def _opened(cell: Any) -> Any:
    from PIL import Image

    if isinstance(cell, dict):
        return Image.open(io.BytesIO(cell["bytes"])) if cell.get("bytes") else Image.open(cell["path"])
    return cell
