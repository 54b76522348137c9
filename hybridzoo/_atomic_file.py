"""Write beside a file, then rename: a reader, or a kill at any moment, sees the old file or the new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a hidden name beside `path` to write to; when the block ends, that file replaces `path`.

    An exception in the block leaves `path` as it was and nothing beside it. Processes that write the same file do not
    meet; the last one stays. `path.parent` must exist.

    Raises:
        OSError: read-only or full disk; `path` is then as it was.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield staged
        os.replace(staged, path)
    finally:
        with contextlib.suppress(OSError):  # gone already, or a folder that is none: the block's own error counts
            staged.unlink(missing_ok=True)
