"""Checkpoint folders that are either complete or not there.

A checkpoint is written as `checkpoints/.writing-N`, every file flushed to the disk, a list of sizes and hashes last,
and then renamed to `checkpoint-N`: a kill at any moment leaves the earlier ones as they were and no half of a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from hybridzoo.checkpoint_io import sha256_file
from hybridzoo.errors import CheckpointError

MANIFEST = "files.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if p.is_dir() and (m := _NAME.fullmatch(p.name))]
    return [p for _, p in sorted(found)]


def step_of(checkpoint: Path) -> int:
    """The number of updates that a checkpoint folder's name states."""
    found = _NAME.fullmatch(checkpoint.name)
    if not found:
        raise CheckpointError(f"{checkpoint} is not a checkpoint folder; expected a name such as checkpoint-100")
    return int(found[1])


def verify(checkpoint: Path) -> None:
    """Compare every file with the list that was written with it.

    Raises:
        CheckpointError: a file is missing or changed; the newest intact earlier checkpoint is named.
    """
    problem = _problem(checkpoint)
    if problem is None:
        return
    step = step_of(checkpoint) if _NAME.fullmatch(checkpoint.name) else None
    text = f"checkpoint {checkpoint} is damaged: {problem}. "
    for earlier in reversed(list_checkpoints(checkpoint.parent)):
        if step is not None and step_of(earlier) < step and _problem(earlier) is None:
            raise CheckpointError(f"{text}The one before it is intact: go on from there with --resume {earlier}")
    raise CheckpointError(f"{text}There is no intact earlier one; start again in a new run folder (--run-dir)")


def _problem(checkpoint: Path) -> str | None:
    try:
        listed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        entries = [(str(e["name"]), int(e["size"]), str(e["sha256"])) for e in listed["files"]]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, size, digest in entries:
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if sha256_file(path) != digest:
            return f"the content of {name} has changed"
    return None


def staging_folder(folder: Path, step: int) -> Path:
    """Where checkpoint `step` is written before it gets its name."""
    return folder / f".writing-{step}"


def publish(staging: Path, final: Path) -> None:
    """List and flush the files of `staging` and rename it to `final`; a folder that stood there is replaced.

    Raises:
        OSError: the disk is full or read-only; `final` is as it was.
    """
    files = sorted(p for p in staging.rglob("*") if p.is_file())
    listed = []
    for path in files:
        name = path.relative_to(staging).as_posix()
        listed.append({"name": name, "size": path.stat().st_size, "sha256": sha256_file(path)})
    (staging / MANIFEST).write_text(json.dumps({"files": listed}, indent=1), encoding="utf-8")
    for path in [*files, staging / MANIFEST]:
        _flush(path)
    _flush(staging)
    aside = final.parent / f".replaced-{final.name}"
    if final.exists():
        os.rename(final, aside)
    os.rename(staging, final)
    _flush(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a folder; it loses its name first, so that a kill in between leaves no half of it under that name."""
    aside = folder.parent / f".deleting-{folder.name}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove what a killed run left half-done, and finish what it was renaming. Call it before a run writes."""
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if path.name.startswith(".replaced-") and not (folder / path.name.removeprefix(".replaced-")).exists():
            os.rename(path, folder / path.name.removeprefix(".replaced-"))
        elif path.name.startswith((".writing-", ".replaced-", ".deleting-")):
            shutil.rmtree(path, ignore_errors=True)


def rotate(folder: Path, keep: int | None) -> None:
    """Delete all but the newest `keep` checkpoints (None keeps all)."""
    if keep is not None:
        for old in list_checkpoints(folder)[:-keep]:
            remove(old)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
