"""Replace the model files of a folder in one step: a reader, or a kill at any moment, sees the old set or the new one.

Renaming file by file is not enough: between two renames lie the new weights beside the old configuration, or shards
of two different models. So the complete new folder is built beside the old one (other files are hard-linked into it, at
no cost) and the two folders change places in one system call where the platform has it.
"""

from __future__ import annotations

import ctypes
import filecmp
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_WEIGHTS = re.compile(r"(model|pytorch_model)(\.\w+)?(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index(\.\w+)?\.json)?")


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target`; what is written there replaces the files of that name when the block ends.

    Weight files of an earlier save that the new one does not have (stale shards) disappear with the change; all other
    files and subfolders of `target` stay. An exception in the block leaves `target` as it was.

    Raises:
        OSError: read-only or full disk; `target` is then as it was.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.saving-", dir=target.parent))
    try:
        yield staging
        _replace(target, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(target: Path, staging: Path) -> None:
    new = {p.name for p in staging.iterdir()}
    if not new:
        return
    for path in staging.iterdir():
        _flush(path)
    if not target.exists():
        staging.chmod(0o777 & ~_umask())  # mkdtemp makes it 0700
        os.rename(staging, target)
        return
    stale = _stale(target, new)
    changed = [n for n in new if not _same(staging / n, target / n)]
    if not stale and len([n for n in changed if n != "README.md"]) <= 1:
        for name in sorted(changed, key=lambda n: n == "README.md"):  # at most one file matters: one rename is atomic
            os.replace(staging / name, target / name)
        return
    _link_tree(target, staging, skip=new | stale)
    shutil.copymode(target, staging)
    if target != Path.cwd() and _exchange(staging, target):
        for left in staging.iterdir():  # what another process added to the old folder meanwhile
            if left.name not in new | stale and not (target / left.name).exists():
                os.rename(left, target / left.name)
        return
    for name in sorted(new, key=lambda n: (n == "README.md", n.endswith(".json"))):  # no exchange on this platform
        os.replace(staging / name, target / name)
    for name in stale:
        (target / name).unlink(missing_ok=True)


def _stale(target: Path, new: set[str]) -> set[str]:
    """Weight files at the target that the new save does not have, if it brings weights of the same variant."""
    variants = {m.group(2) for n in new if (m := _WEIGHTS.fullmatch(n))}
    old = {p.name: m for p in target.iterdir() if p.is_file() and (m := _WEIGHTS.fullmatch(p.name))}
    return {name for name, match in old.items() if name not in new and match.group(2) in variants}


def _same(a: Path, b: Path) -> bool:
    return a.is_file() and b.is_file() and filecmp.cmp(a, b, shallow=False)


def _link_tree(source: Path, target: Path, *, skip: set[str]) -> None:
    for path in source.iterdir():
        if path.name in skip:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target / path.name, symlinks=True, copy_function=_link)
        else:
            _link(str(path), str(target / path.name))


def _link(source: str, target: str, *, follow_symlinks: bool = False) -> None:
    try:
        os.link(source, target, follow_symlinks=follow_symlinks)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=follow_symlinks)


def _exchange(a: Path, b: Path) -> bool:
    """Let two folders change places atomically (Linux' renameat2); False where that does not exist."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), ctypes.c_uint(_RENAME_EXCHANGE)) == 0


def _flush(path: Path) -> None:
    """The bytes must be on the disk before the name points to them, or a power cut leaves an empty file."""
    if path.is_file():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
