"""IDX files, the format of MNIST and Fashion-MNIST: a big-endian header, then unsigned bytes; gzip or plain."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.base import ArrayImages, Raw, Split, sha256_files
from hybridzoo.data.splits import train_test_indices
from hybridzoo.errors import DataError

FASHION_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_idx(path: Path) -> np.ndarray:
    """The array of one IDX file.

    Args:
        path: `.gz` or plain; element type unsigned byte (magic 0x08), any number of dimensions.

    Raises:
        DataError: not an IDX file, of another element type, or truncated.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error}); it is damaged or not fully downloaded: fetch it again"
        ) from error
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DataError(
            f"{path} is not an IDX file: it starts with {data[:4].hex() or 'nothing'}, expected 0000 08 and a rank"
        )
    kind, rank = data[2], data[3]
    if kind != 8:
        raise DataError(f"{path}: IDX element type 0x{kind:02x} is not supported, only unsigned bytes (0x08)")
    start = 4 + 4 * rank
    if len(data) < start:
        raise DataError(f"{path} is truncated in its header")
    shape = struct.unpack(f">{rank}I", data[4:start])
    if len(data) - start != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path}: the header says {shape}, but {len(data) - start} bytes follow; fetch it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _find(root: Path, stem: str) -> Path:
    for name in (f"{stem}.gz", stem, stem.replace("-idx", ".idx")):
        if (root / name).is_file():
            return root / name
    inside = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "not a folder"
    raise DataError(f"{root} has no {stem}[.gz] (it holds: {inside or 'nothing'})")


def _pair(root: Path, prefix: str) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    paths = [_find(root, f"{prefix}-images-idx3-ubyte"), _find(root, f"{prefix}-labels-idx1-ubyte")]
    images, labels = (read_idx(p) for p in paths)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(f"{paths[0].name} {images.shape} and {paths[1].name} {labels.shape} do not belong together")
    return images, labels, paths


def _read(root: Path, seed: int, names: tuple[str, ...] | None, n_validation: int | float) -> Raw:
    images, labels, files = _pair(root, "train")
    test_images, test_labels, test_files = _pair(root, "t10k")
    if names is None:
        names = tuple(str(i) for i in range(int(max(labels.max(initial=0), test_labels.max(initial=0))) + 1))
    train, validation = train_test_indices(labels, n_validation, seed)
    ids = np.array([f"train-{i}" for i in range(len(labels))])
    splits = {
        name: Split(list(ids[rows]), labels[rows].tolist(), ArrayImages(images[rows]), "image")
        for name, rows in (("train", np.sort(train)), ("validation", np.sort(validation)))
    }
    test_ids = [f"test-{i}" for i in range(len(test_labels))]
    splits["test"] = Split(test_ids, test_labels.tolist(), ArrayImages(test_images), "image")
    return Raw(
        splits=splits,
        label_names=names,
        sha256=sha256_files([*files, *test_files]),
        sha256_of="the four files: lines '<sha256>  <name>'",
        revision="IDX files",
    )


def read_fashion_mnist(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """Fashion-MNIST: 55,000 / 5,000 (seeded, stratified, from the train part) / 10,000 grey images of 28 x 28."""
    sizes = [len(read_idx(_find(root, f"{prefix}-labels-idx1-ubyte"))) for prefix in ("train", "t10k")]
    if sizes != [60000, 10000]:
        raise DataError(
            f"{root} is not Fashion-MNIST: 60,000 + 10,000 images expected, got {sizes[0]:,} + {sizes[1]:,}; "
            f"load_data('idx') reads any set"
        )
    return _read(root, seed, FASHION_LABELS, 5000)


def read_idx_folder(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """Any four IDX files with MNIST's names; one twelfth of the train part, stratified, becomes validation."""
    names = options.get("label_names")
    return _read(root, seed, tuple(names) if names else None, 1 / 12)
