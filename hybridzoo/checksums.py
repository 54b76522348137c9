"""Checksums of saved weights: safetensors files have none, and a flipped bit would load as another value.

`SHA256SUMS` lies beside the weights, in the format that `sha256sum --check SHA256SUMS` reads. `save_pretrained` writes
it; `python -m hybridzoo.checksums FOLDER …` writes it for weights that came there in another way.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from hybridzoo.checkpoint_io import sha256_file
from hybridzoo.errors import CheckpointError

SUMS = "SHA256SUMS"
_WEIGHTS = (".safetensors", ".bin")
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\]+)")


def write_sums(folder: Path) -> None:
    """List the weight files of `folder` in its `SHA256SUMS`.

    Raises:
        OSError: a file cannot be read or written.
    """
    files = sorted(p for p in folder.iterdir() if p.suffix in _WEIGHTS)
    text = "".join(f"{sha256_file(path)}  {path.name}\n" for path in files)
    (folder / SUMS).write_text(text, encoding="utf-8", newline="\n")


def check_sums(folder: Path, shown: str | None = None) -> None:
    """Compare the weight files of `folder` with its `SHA256SUMS`; a folder without one passes.

    Args:
        folder: of a model.
        shown: its name in the error.

    Raises:
        CheckpointError: names the file that is not the one that was saved.
    """
    if not (folder / SUMS).is_file():
        return
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        entry = _LINE.fullmatch(line)
        if entry is None or not (folder / entry[2]).is_file():
            continue  # not of ours, or missing: the loader names it
        found = sha256_file(folder / entry[2])
        if found != entry[1]:
            raise CheckpointError(
                f"{shown or folder}/{entry[2]} is not the file that was saved: its sha256 is {found[:12]}…, {SUMS} "
                f"says {entry[1][:12]}…. It is damaged: fetch it again, or save it anew. (If you changed it on "
                f"purpose, delete {SUMS}.)"
            )


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        write_sums(Path(argument))
