"""Pathfinder on disk, in the layout of the official generator and of `lra_release`.

    pathfinder32/curv_contour_length_14/imgs/<batch>/sample_<i>.png    8-bit grey
    pathfinder32/curv_contour_length_14/metadata/<batch>.npy           one row per image

The files of `lra_release` named `.npy` are text; a fresh run of the official program writes true `.npy` arrays of
strings. Both can be written here, and both are read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from hybridzoo._atomic_file import whole_file
from hybridzoo.data.lra.listops import MADE_FILE
from hybridzoo.data.lra.pathfinder import PathfinderStream
from hybridzoo.data.lra.pathfinder_rules import LEVEL_FOLDERS, PathfinderRules, rules_of
from hybridzoo.data.lra.words import block_seed
from hybridzoo.errors import DataError, unknown

BATCH = 1_000
METADATA_STYLES = ("text", "binary")


def write_pathfinder(
    out: str | Path,
    count: int,
    *,
    size: int = 32,
    contour_length: int = 14,
    seed: int = 0,
    workers: int = 1,
    batch: int = BATCH,
    metadata: str = "text",
    progress: bool = False,
) -> Path:
    """Make images in batches, each from a seed of its own, so the files do not depend on the number of workers.

    Batch 0 is the official program's output for `seed`. A batch whose metadata exists is left as it is, so a run that
    was stopped goes on where it was.

    Args:
        out: folder; `pathfinder<size>/<level>` is made in it.
        count: images.
        size: 32, 64, 128 (Path-X) or 256.
        contour_length: 14 (hard, the benchmark), 9 or 6.
        seed: of the set.
        workers: processes.
        batch: images of a batch; another size is another data set.
        metadata: "text" as in `lra_release`, or "binary" as the official program writes it.
        progress: show a bar on stderr.

    Returns:
        The folder with `imgs` and `metadata`.

    Raises:
        DataError: an unknown size, length or style, or a folder that cannot be written.
    """
    rules = rules_of(size, contour_length)
    if metadata not in METADATA_STYLES:
        raise DataError(unknown("style of metadata", metadata, METADATA_STYLES))
    if count < 1 or workers < 1 or batch < 1:
        raise DataError(f"count, workers and batch must be at least 1, got {count}, {workers} and {batch}")
    folder = Path(out) / f"pathfinder{size}" / LEVEL_FOLDERS[contour_length]
    try:
        for part in ("imgs", "metadata"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}") from error
    facts = {"made_by": "hybridzoo data lra-pathfinder", "seed": seed, "images": count, "batch": batch}
    (folder / MADE_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    sizes = [min(batch, count - start) for start in range(0, count, batch)]
    missing = [n for n in range(len(sizes)) if not _complete(folder, n, sizes[n])]
    with tqdm(total=count, initial=count - sum(sizes[n] for n in missing), unit="image", disable=not progress) as bar:
        bar.set_description(folder.parent.name)
        if workers == 1 or len(missing) < 2:
            for number in missing:
                write_batch(folder, rules, seed, number, sizes[number], metadata)
                bar.update(sizes[number])
            return folder
        with ProcessPoolExecutor(min(workers, len(missing)), mp_context=get_context("spawn")) as pool:
            running: deque[tuple[int, Future[None]]] = deque()
            for number in missing:
                job = pool.submit(write_batch, folder, rules, seed, number, sizes[number], metadata)
                running.append((sizes[number], job))
            while running:
                made, job = running.popleft()
                job.result()
                bar.update(made)
    return folder


def _complete(folder: Path, number: int, count: int) -> bool:
    path = folder / "metadata" / f"{number}.npy"
    if not path.exists():
        return False
    found = len(read_metadata(path))
    if found != count:
        raise DataError(
            f"{path} lists {found} images where this call makes {count}: the folder holds another data set; give "
            "another folder, or the count and batch that it was made with"
        )
    return True


def write_batch(folder: Path, rules: PathfinderRules, seed: int, number: int, count: int, metadata: str) -> None:
    """Images of one batch, then its metadata; what is there is complete."""
    images, staging = folder / "imgs" / str(number), folder / "imgs" / f".writing-{number}"
    stream = PathfinderStream(rules, block_seed(seed, number))
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        rows = []
        for index in range(count):
            made = stream.draw()
            Image.fromarray(made.pixels).save(staging / f"sample_{index}.png", compress_level=1)
            rows.append(rules.metadata_row(number, index, made.label, made.margin))
        shutil.rmtree(images, ignore_errors=True)  # of a run that was stopped before its metadata
        os.rename(staging, images)
    except OSError as error:
        raise DataError(f"{images} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    path = folder / "metadata" / f"{number}.npy"
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        if metadata == "binary":
            np.save(file, np.array(rows), allow_pickle=False)
        else:
            file.write("".join(" ".join(row) + "\n" for row in rows).encode())


def read_metadata(path: Path) -> list[list[str]]:
    """Rows of fields of a metadata file, text or binary.

    Raises:
        DataError: neither.
    """
    data = path.read_bytes()
    if data[:6] == b"\x93NUMPY":
        try:
            with open(path, "rb") as file:
                array = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise DataError(
                f"{path} is a .npy array that cannot be read ({error}); an array of strings (rows, fields) is expected"
            ) from error
        if array.ndim != 2 or array.dtype.kind not in "US":
            raise DataError(f"{path} holds {array.dtype} {array.shape}; an array of strings (rows, fields) is expected")
        return [[str(v, "utf-8") if isinstance(v, bytes) else str(v) for v in row] for row in array.tolist()]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is neither text (as in lra_release) nor a .npy array (as the generator writes): it starts with "
            f"{data[:8]!r}"
        ) from error
    return [line.split() for line in text.splitlines() if line.strip()]
