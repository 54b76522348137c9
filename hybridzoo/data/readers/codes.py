"""Codes of images that were extracted beforehand: one small .npy file an image, read when it is asked for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.base import Raw, Split
from hybridzoo.errors import DataError

CLASS_FOLDERS = re.compile(r"(.*\d+)_codes")


class CodeFiles(Sequence[Any]):
    """Codes (versions, tokens) by index; with texts also their features.

    Args:
        codes: the files.
        texts: as many files with features, or None.
    """

    def __init__(self, codes: Sequence[Path], texts: Sequence[Path] | None = None):
        self.codes, self.texts = list(codes), None if texts is None else list(texts)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> np.ndarray:
        """(versions, tokens) integers."""
        path = self.codes[index]
        codes = _read(path)
        if codes.dtype.kind not in "iu" or codes.ndim not in (2, 3) or codes.shape[0] != 1 or not codes.size:
            raise DataError(
                f"{path}: expected (1, versions, tokens) or (1, tokens) integers, got {codes.dtype} {codes.shape}"
            )
        return codes.reshape(-1, codes.shape[-1])

    def text_features(self, index: int) -> np.ndarray:
        """(length, width) float32 features of a sample's text."""
        assert self.texts is not None
        path = self.texts[index]
        features = _read(path)
        if features.dtype.kind != "f" or features.ndim != 3 or features.shape[0] != 1:
            raise DataError(f"{path}: expected (1, length, width) floats, got {features.dtype} {features.shape}")
        return features[0].astype(np.float32)

    def select(self, indices: Sequence[int]) -> CodeFiles:
        """The samples of these indices."""
        texts = None if self.texts is None else [self.texts[i] for i in indices]
        return CodeFiles([self.codes[i] for i in indices], texts)

    def digests(self) -> None:
        """Equal images are not looked for."""
        return


def read_class_codes(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """LlamaGen's layout for classes; see `code_sets.SPECS`."""
    found = [m[1] for p in sorted(root.iterdir()) if p.is_dir() and (m := CLASS_FOLDERS.fullmatch(p.name))]
    if len(found) != 1 or not (root / f"{found[0]}_labels").is_dir():
        raise DataError(f"{root} must hold one folder SET256_codes and one SET256_labels, it has {found or 'none'}")
    files = _numbered(root / f"{found[0]}_codes")
    labels = []
    for path in files:
        label = _read(root / f"{found[0]}_labels" / path.name)
        if label.size != 1:
            raise DataError(f"{path.name}: one label per image, got {label.shape}")
        labels.append(int(label.reshape(())))
    classes = int(options.pop("num_classes", 1000))
    names = tuple(str(i) for i in range(classes))
    return _raw(root, files, labels, CodeFiles(files), names, seed, options)


def write_class_codes(root: str | Path, codes: Any, labels: Sequence[int], *, name: str = "images256") -> None:
    """Write codes in the layout that `read_class_codes` reads.

    Args:
        root: the folder; `NAME_codes` and `NAME_labels` are made in it.
        codes: (N, versions, tokens) integers, e.g. of `hybridzoo.training.generation.encode_split`.
        labels: (N,) classes.
        name: ends in a number, the image side.

    Raises:
        DataError: shapes or a name that do not fit.
    """
    codes = np.asarray(codes)
    if codes.ndim != 3 or len(codes) != len(labels) or not CLASS_FOLDERS.fullmatch(f"{name}_codes"):
        raise DataError(
            f"expected (N, versions, tokens) codes, N labels and a name that ends in a number; got {codes.shape}, "
            f"{len(labels)} and {name!r}"
        )
    folders = [Path(root) / f"{name}_codes", Path(root) / f"{name}_labels"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for i, (row, label) in enumerate(zip(codes, labels)):
        np.save(folders[0] / f"{i}.npy", row[None])
        np.save(folders[1] / f"{i}.npy", np.array([label]))


def read_text_codes(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """Codes beside features of texts; see `code_sets.SPECS`."""
    if not (root / "codes").is_dir() or not (root / "texts").is_dir():
        raise DataError(f"{root} must hold the folders codes and texts")
    files = _numbered(root / "codes")
    texts = [root / "texts" / p.name for p in files]
    missing = [t.name for t in texts if not t.is_file()]
    if missing:
        raise DataError(f"{root}/texts lacks {len(missing)} of {len(files)} files: {', '.join(missing[:5])}")
    return _raw(root, files, [0] * len(files), CodeFiles(files, texts), ("text",), seed, options)


def _numbered(folder: Path) -> list[Path]:
    """Its .npy files, numbers in their order."""
    files = sorted(folder.glob("*.npy"), key=lambda p: (0, int(p.stem), "") if p.stem.isdigit() else (1, 0, p.stem))
    if not files:
        raise DataError(f"{folder} holds no .npy files")
    return files


def _raw(
    root: Path,
    files: Sequence[Path],
    labels: Sequence[int],
    content: CodeFiles,
    names: tuple[str, ...],
    seed: int,
    options: dict[str, Any],
) -> Raw:
    hold_out = int(options.pop("hold_out", 0))
    if hold_out < 0 or hold_out >= len(files):
        raise DataError(f"hold_out={hold_out} images for validation of {len(files)}")
    whole = Split([p.stem for p in files], labels, content, "codes")
    order = np.random.default_rng(seed).permutation(len(files)).tolist()
    splits = {"train": whole}
    if hold_out:
        splits = {"train": whole.select(sorted(order[hold_out:])), "validation": whole.select(sorted(order[:hold_out]))}
    digest = hashlib.sha256("".join(f"{p.name} {p.stat().st_size}\n" for p in files).encode()).hexdigest()
    return Raw(splits=splits, label_names=names, sha256=digest, sha256_of="names and sizes of the files")


def _read(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is no readable .npy file ({error})") from error
