"""One training a folder: a lock that the operating system gives back when its process ends, however it ends."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hybridzoo.errors import TrainingError

# A file system without locks (some network shares): the training goes on, as it would without this module.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: set[int] = set()


def _let_go() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


# A lock lives as long as any copy of its handle: workers that load data, forked and perhaps outliving a killed
# training, must not have one.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for the time of the block; nothing is left in it.

    Raises:
        TrainingError: another process trains in it, or it cannot be made.
    """
    if folder.is_file():
        raise TrainingError(f"the run folder {folder} is a file; give another --run-dir")
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder if os.name == "posix" else _stand_in(folder), _flags())
    except OSError as error:
        what = error.strerror or error
        raise TrainingError(f"the run folder {folder} cannot be written: {what}; give another --run-dir") from error
    _held.add(handle)
    try:
        try:
            _lock(handle)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise TrainingError(
                    f"another process trains in {folder} right now; wait for it, or give another --run-dir"
                ) from error
        yield
    finally:
        _held.discard(handle)
        os.close(_unlocked(handle))
        if new:
            with suppress(OSError):  # a training that could not even begin leaves no empty folder
                folder.rmdir()


def _flags() -> int:
    return os.O_RDONLY if os.name == "posix" else os.O_RDWR | os.O_CREAT


def _stand_in(folder: Path) -> Path:
    """Windows cannot open a folder: a file of the temporary folder stands for it."""
    name = hashlib.sha256(str(folder.resolve()).lower().encode()).hexdigest()[:32]
    return Path(tempfile.gettempdir()) / f"hybridzoo-run-{name}.lock"


def _unlocked(handle: int) -> int:
    """The handle, without its lock even while a worker that was forked a moment ago still has a copy."""
    if os.name == "posix":
        import fcntl

        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
    return handle


def _lock(handle: int) -> None:
    if os.name == "posix":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
