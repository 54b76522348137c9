"""Write beside the target, then rename: a reader never sees half a file or half a folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridzoo.errors import SourceError


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A temporary folder on the target's file system, removed at the end.

    Raises:
        SourceError: the folder that should hold the target cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise SourceError(f"cannot write {target}: {error.strerror or error}; choose a writable place") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_files(folder: Path, target_folder: Path, *, last: str) -> None:
    """Move every file of `folder` into `target_folder`; the file named `last` (the one readers open) comes last."""
    for path in sorted(folder.iterdir(), key=lambda p: (p.name == last, p.name)):
        os.replace(path, target_folder / path.name)


def move_folder(folder: Path, target: Path) -> None:
    """Put `folder` at `target`; what stands there is replaced as a whole."""
    if target.exists():
        old = folder.with_name(folder.name + ".old")
        os.replace(target, old)
        os.replace(folder, target)
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    else:
        os.replace(folder, target)
