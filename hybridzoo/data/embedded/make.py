"""Makes the embedded data files from the originals. Deterministic: the same input gives the same bytes.

python -m hybridzoo.data.embedded.make vader DIR_WITH_THE_FOUR_GROUND_TRUTH_FILES
python -m hybridzoo.data.embedded.make fashion_mnist DIR_WITH_THE_FOUR_IDX_FILES
python -m hybridzoo.data.embedded.make austen DIR_WITH_RDATA.RDB_OF_JANEAUSTENR
python -m hybridzoo.data.embedded.make trees DIR_WITH_DEEPFOREST_DATA
python -m hybridzoo.data.embedded.make textures DIR_WITH_BRICK_GRASS_AND_GRAVEL_PNG_OF_SCIKIT_IMAGE
python -m hybridzoo.data.embedded.make listops ANY_DIR
"""

from __future__ import annotations

import bz2
import io
import lzma
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
VADER_FILES = {
    "tweets": "tweets_GroundTruth.txt",
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
}
FASHION_PER_CLASS = {"train": 100, "validation": 20, "test": 50}
FASHION_SEED = 42


def make_vader(source: Path) -> Path:
    """All rows of the four files in one table: source, id, mean rating, text; rows and texts as they are."""
    lines = []
    for name, file in VADER_FILES.items():
        for row in (source / file).read_text(encoding="utf-8").splitlines():
            number, rating, text = row.split("\t", 2)
            lines.append(f"{name}\t{number}\t{rating}\t{text.strip()}\n")
    target = HERE / "vader.tsv.bz2"
    target.write_bytes(bz2.compress("".join(lines).encode("utf-8"), 9))
    return target


def make_fashion_mnist(source: Path) -> Path:
    """A seeded, class-balanced draw: train and validation from the train part, test from the test part."""
    from hybridzoo.data.readers.idx import read_idx

    random = np.random.RandomState(FASHION_SEED)
    arrays: dict[str, np.ndarray] = {}
    for prefix, parts in (("train", ("train", "validation")), ("t10k", ("test",))):
        images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
        chosen: dict[str, list[int]] = {part: [] for part in parts}
        for label in range(10):
            rows = random.permutation(np.flatnonzero(labels == label))
            for part in parts:
                chosen[part] += rows[: FASHION_PER_CLASS[part]].tolist()
                rows = rows[FASHION_PER_CLASS[part] :]
        for part, rows in chosen.items():
            rows = np.sort(rows)
            arrays |= {
                f"{part}_images": images[rows],
                f"{part}_labels": labels[rows],
                f"{part}_rows": rows.astype(np.int32),
            }
    buffer = io.BytesIO()
    np.savez(
        buffer, allow_pickle=False, **arrays
    )  # numpy writes a fixed date into the archive, so the bytes are reproducible
    target = HERE / "fashion_mnist_mini.npz.xz"
    target.write_bytes(lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    return target


def make_austen(source: Path) -> Path:
    """The chapters of the six novels: a form feed and the chapter's name, a line break, the text."""
    from hybridzoo.data.readers.austen import chapters, read_rdb

    texts = [f"\f{name}\n{text}" for novel in read_rdb(source / "Rdata.rdb") for name, text in chapters(novel)]
    target = HERE / "austen.txt.bz2"
    target.write_bytes(bz2.compress("".join(texts).encode("utf-8"), 9))
    return target


def make_trees(source: Path) -> Path:
    """Every fourth tile with trees of the photographs of `hybridzoo.data.detection.trees`, as JPEG, and COCO files."""
    from hybridzoo.data.detection.trees import pack_mini

    return pack_mini(source)


def make_textures(source: Path) -> Path:
    """The three CC0 textures, grey, 512 x 512, as they are."""
    from hybridzoo.data.anomaly.textures import CC0, load_textures

    arrays: dict[str, np.ndarray] = {name: array[..., 0] for name, array in load_textures(source, CC0).items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    target = HERE / "textures_cc0.npz.xz"
    target.write_bytes(lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    return target


def make_listops(source: Path) -> Path:
    """Validation and test of the short ListOps set, from fixed seeds; no source is read."""
    from hybridzoo.data.lra.read_listops import MINI_FILE, make_mini

    target = HERE / MINI_FILE
    target.write_bytes(make_mini())
    return target


if __name__ == "__main__":
    makers = {
        "vader": make_vader,
        "fashion_mnist": make_fashion_mnist,
        "austen": make_austen,
        "trees": make_trees,
        "textures": make_textures,
        "listops": make_listops,
    }
    if len(sys.argv) != 3 or sys.argv[1] not in makers:
        sys.exit(__doc__)
    made = makers[sys.argv[1]](Path(sys.argv[2]))
    print(f"{made}: {made.stat().st_size:,} bytes")
