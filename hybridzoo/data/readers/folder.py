"""Class folders: images (ImageFolder, ImageNet) and texts (aclImdb)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridzoo.data.base import MAX_SKIPPED, Raw, Skipped, Split, check_skipped
from hybridzoo.data.images import IMAGE_SUFFIXES, ImageFiles, check_image
from hybridzoo.data.readers.tables import SPLIT_NAMES, decode, not_utf8
from hybridzoo.data.splits import split_90_5_5, train_test_indices
from hybridzoo.errors import DataError, unknown

DECODE_LIMIT = (
    10_000  # up to so many images are decoded while the set is read, to find broken ones; above, only their headers
)
VERIFY = ("auto", "decode", "header", "none")


def class_folders(root: Path) -> list[Path]:
    """Sub-folders in name order, hidden ones aside."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _images(root: Path, classes: Sequence[str], verify: str) -> tuple[list[str], list[int], ImageFiles, list[Skipped]]:
    ids, labels, paths, hashes, skipped = [], [], [], [], []
    for label, name in enumerate(classes):
        folder = root / name
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            where = path.relative_to(root).as_posix()
            if path.is_dir() or path.name.startswith("."):
                continue
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                skipped.append(Skipped(where, f"{path.suffix or 'no suffix'} is not an image suffix"))
                continue
            reason, digest = (None, None) if verify == "none" else check_image(path, verify)
            if reason is not None:
                skipped.append(Skipped(where, reason))
                continue
            ids.append(where)
            labels.append(label)
            paths.append(path)
            hashes.append(digest)
    return ids, labels, ImageFiles(paths, hashes if verify == "decode" else None), skipped


def _manifest(splits: dict[str, Split]) -> str:
    """sha256 over the lines `<split>/<id> <bytes>[ <hash of content>]`."""
    total = hashlib.sha256()
    for name, split in splits.items():
        files: ImageFiles = split.content  # type: ignore[assignment]
        for i, (sample, path) in enumerate(zip(split.ids, files.paths)):
            content = f" {files.hashes[i].hex()}" if files.hashes else ""
            total.update(f"{name}/{sample} {path.stat().st_size}{content}\n".encode())
    return total.hexdigest()


def _read_images(parts: dict[str, Path], options: dict[str, Any], default: str, classes: Sequence[str] | None) -> Raw:
    verify = options.get("verify", default)
    if verify not in VERIFY:
        raise DataError(unknown("value of verify", str(verify), VERIFY))
    folders = {name: [p.name for p in class_folders(path)] for name, path in parts.items()}
    found = sorted({c for names in folders.values() for c in names})
    classes = list(classes) if classes is not None else found
    strange = [c for c in found if c not in classes]
    if strange:
        raise DataError(
            f"the class folders {', '.join(strange[:5])} are not among the {len(classes)} classes "
            f"({', '.join(classes[:5])} …)"
        )
    if verify == "auto":
        count = sum(1 for p in parts.values() for f in p.rglob("*") if f.is_file())
        verify = "decode" if count <= DECODE_LIMIT else "header"
    splits, skipped = {}, []
    for name, path in parts.items():
        ids, labels, files, broken = _images(path, classes, verify)
        check_skipped(broken, len(ids), str(path), limit=options.get("max_skipped", MAX_SKIPPED))
        splits[name] = Split(ids, labels, files, "image")
        skipped += [Skipped(f"{path.name}/{s.where}", s.reason) for s in broken]
    what = "names, sizes and contents" if verify == "decode" else "names and sizes"
    return Raw(
        splits=splits,
        label_names=tuple(classes),
        sha256=_manifest(splits),
        sha256_of=f"list of image {what}",
        revision=f"folder, images verified: {verify}",
        skipped=tuple(skipped),
    )


def _split_folders(root: Path) -> dict[str, Path]:
    found = {}
    for split, names in SPLIT_NAMES.items():
        folder = next((root / n for n in names if (root / n).is_dir()), None)
        if folder is not None:
            found[split] = folder
    return found


def read_image_folder(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """`<split>/<class>/image`, or `<class>/image` alone, which is split 90/5/5 (stratified, seeded)."""
    if not root.is_dir():
        raise DataError(f"{root} is a file; image_folder needs a folder of class folders")
    parts = _split_folders(root)
    classes = options.get("label_names")
    if parts:
        raw = _read_images(parts, options, "auto", classes)
        return Raw(**{**raw.__dict__, "protocol": "given"})
    if not class_folders(root):
        inside = ", ".join(sorted(p.name for p in root.iterdir())[:5])
        raise DataError(f"{root} has no class folders (it holds: {inside or 'nothing'}); expected <class>/*.jpg")
    raw = _read_images({"all": root}, options, "auto", classes)
    everything = raw.splits["all"]
    splits = {name: everything.select(rows) for name, rows in split_90_5_5(everything.labels, seed).items()}
    return Raw(**{**raw.__dict__, "splits": splits, "protocol": "90/5/5"})


def read_imagenet1k(root: Path | str, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """ImageNet-1k: the 50,000 validation images are the split `test`. 1,000 wnid folders in name order are the
    classes.
    """
    if isinstance(root, str):
        from hybridzoo.data.readers.hf import read_splits

        raw = read_splits(root, "image", text_column="image", label_column="label", test_split="validation")
        return Raw(**{**raw.__dict__, "subset": len(raw.splits["test"]) != 50_000})
    found = _split_folders(root)
    parts = {}
    if "train" in found:
        parts["train"] = found["train"]
    if "validation" in found:
        parts["test"] = found["validation"]
    if not parts and len(class_folders(root)) == 1000:
        parts["test"] = root
    if not parts:
        raise DataError(
            f"{root} holds neither train/ nor val/. Needed: a folder with val/<wnid>/*.JPEG (and train/ likewise)"
        )
    for path in parts.values():
        count = len(class_folders(path))
        if count != 1000:
            flat = any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.iterdir())
            hint = " The images lie flat: sort them into class folders first." if flat else ""
            raise DataError(
                f"{path} has {count} class folders, ImageNet-1k has 1,000.{hint} load_data('image_folder') reads "
                f"any set"
            )
    raw = _read_images(parts, options, "none", None)
    test = raw.splits.get("test")
    return Raw(**{**raw.__dict__, "subset": test is not None and len(test) != 50_000})


def read_acl_imdb(root: Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """`<split>/<class>/*.txt`, one text a file. Classes are the folder names in order (`unsup` aside)."""
    parts = _split_folders(root)
    if "train" not in parts:
        raise DataError(f"{root} has no folder train/; expected train/<class>/*.txt and test/<class>/*.txt")
    classes = options.get("classes") or sorted(
        {p.name for path in parts.values() for p in class_folders(path) if p.name != "unsup"}
    )
    total = hashlib.sha256()
    splits: dict[str, Split] = {}
    skipped: list[Skipped] = []
    for name, path in parts.items():
        ids, labels, texts, broken = [], [], [], []
        for label, class_name in enumerate(classes):
            if not (path / class_name).is_dir():
                raise DataError(
                    f"{path} has no folder {class_name}/ (it holds: {', '.join(p.name for p in class_folders(path))})"
                )
            for file in sorted((path / class_name).glob("*.txt")):
                where = file.relative_to(root).as_posix()
                data = file.read_bytes()
                total.update(f"{where} {hashlib.sha256(data).hexdigest()}\n".encode())
                text = decode(data, where, options.get("encoding"))
                if not_utf8(text) or not text.strip():
                    broken.append(Skipped(where, "not UTF-8" if text.strip() else "empty text"))
                    continue
                ids.append(where)
                labels.append(label)
                texts.append(text)
        check_skipped(broken, len(ids), str(path), limit=options.get("max_skipped", MAX_SKIPPED))
        skipped += broken
        splits[name] = Split(ids, labels, texts, "text")
    if options.get("validation", True) and "validation" not in splits:
        everything = splits["train"]
        train, validation = train_test_indices(everything.labels, 0.1, seed)
        splits = {
            "train": everything.select(train),
            "validation": everything.select(validation),
            **{k: v for k, v in splits.items() if k != "train"},
        }
    return Raw(
        splits=splits,
        label_names=tuple(options.get("label_names") or classes),
        sha256=total.hexdigest(),
        sha256_of="the files: lines '<path> <sha256>'",
        revision="aclImdb layout",
        skipped=tuple(skipped),
    )
