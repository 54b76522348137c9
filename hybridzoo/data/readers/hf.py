"""Data sets of the Hugging Face Hub (or local folders in its layouts) through the optional package `datasets`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridzoo.data.base import Raw, Skipped, Split, check_skipped
from hybridzoo.data.images import open_image
from hybridzoo.errors import DataError, unknown

SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


class HubImages(Sequence[Any]):
    """Images of one column of a `datasets.Dataset`, decoded when asked for."""

    def __init__(self, dataset: Any, column: str, rows: Sequence[int] | None = None):
        self.dataset, self.column = dataset, column
        self.rows = list(rows) if rows is not None else list(range(len(dataset)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row = self.rows[index]
        cell = self.dataset[row][self.column]
        source = cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell
        return open_image(source, f"row {row}")

    def select(self, indices: Sequence[int]) -> HubImages:
        return HubImages(self.dataset, self.column, [self.rows[i] for i in indices])


def load_hub(root: str | Path, revision: str | None = None, config_name: str | None = None) -> tuple[Any, str]:
    """(DatasetDict, what was read) of `hf:org/name@revision`, `org/name`, or a local folder.

    Raises:
        DataError: `datasets` is not installed, or it cannot load the set (the message holds its reason).
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError("reading from the hub needs the package `datasets`: pip install 'hybridzoo[eval]'") from error
    name = str(root).removeprefix("hf:")
    if not Path(name).exists() and "@" in name:
        name, _, revision = name.partition("@")
    try:
        loaded = datasets.load_dataset(name, config_name, revision=revision)
    except Exception as error:  # datasets raises its own, the hub's and the network's exceptions
        first = str(error).strip().splitlines()
        raise DataError(
            f"`datasets` cannot load {name!r}: {type(error).__name__}: {first[0] if first else ''}"
        ) from error
    return loaded, f"{name}@{revision or 'main'}" if not Path(name).exists() else name


def read_splits(
    root: str | Path,
    kind: str,
    *,
    text_column: str,
    label_column: str,
    label_names: Sequence[str] | None = None,
    revision: str | None = None,
    config_name: str | None = None,
    test_split: str | None = None,
) -> Raw:
    """Splits of a hub set. Labels are class indices (`ClassLabel`, integers) or names.

    Args:
        root: see `load_hub`.
        kind: `"text"` or `"image"`.
        text_column: the column with the texts, or with the images.
        label_column: the column with the classes.
        label_names: class names in order; left out, they come from the set's features.
        revision, config_name: of the hub.
        test_split: take this split of the set as `test`.
    """
    loaded, read = load_hub(root, revision, config_name)
    if not hasattr(loaded, "items"):
        loaded = {"train": loaded}
    parts = {}
    for split, names in SPLITS.items():
        found = next((n for n in names if n in loaded), None)
        if found is not None and found != test_split:
            parts[split] = loaded[found]
    if test_split is not None:
        if test_split not in loaded:
            raise DataError(unknown(f"split of {read}", test_split, list(loaded)))
        parts["test"] = loaded[test_split]
    if not parts:
        raise DataError(f"{read} has none of the splits train, validation, test; it has {', '.join(loaded)}")
    first = next(iter(parts.values()))
    for column in (text_column, label_column):
        if column not in first.column_names:
            raise DataError(
                unknown(f"column of {read}", column, first.column_names, f"(columns: {', '.join(first.column_names)})")
            )
    names = label_names or getattr(first.features[label_column], "names", None)
    if names is None:
        values = sorted({v for p in parts.values() for v in p.unique(label_column) if v is not None})
        names = [str(v) for v in values]
    names = tuple(names)
    index = {name: i for i, name in enumerate(names)}
    digest, skipped, splits = hashlib.sha256(), [], {}
    for split, part in parts.items():
        made, broken = _split(part, split, kind, text_column, label_column, names, index)
        check_skipped(broken, len(made), f"{read} {split}")
        splits[split] = made
        skipped += broken
        for i, label in enumerate(made.labels):
            content = made.content[i] if kind == "text" else ""
            digest.update(f"{made.ids[i]}\t{label}\t{content}\n".encode("utf-8", "surrogatepass"))
    return Raw(
        splits=splits,
        label_names=names,
        sha256=digest.hexdigest(),
        sha256_of="rows: id, label and text" if kind == "text" else "rows: id and label",
        revision=read,
        skipped=tuple(skipped),
        protocol=None,
    )


def _split(
    part: Any, split: str, kind: str, content: str, label: str, names: Sequence[str], index: dict[str, int]
) -> tuple[Split, list[Skipped]]:
    rows, labels, texts, skipped = [], [], [], []
    values = part[label][:] if kind == "text" else part.select_columns([label])[label][:]
    column = part[content][:] if kind == "text" else [None] * len(part)
    for row, (value, text) in enumerate(zip(values, column)):
        where = f"{split}:{row}"
        if isinstance(value, int) and not isinstance(value, bool) and str(value) not in index:
            number = value if 0 <= value < len(names) else None
        else:
            number = index.get(str(value))
        if number is None:
            skipped.append(Skipped(where, f"label {value!r} is not one of {', '.join(names[:8])}"))
        elif kind == "text" and (not isinstance(text, str) or not text.strip()):
            skipped.append(Skipped(where, "empty text"))
        else:
            rows.append(row)
            labels.append(number)
            texts.append(text)
    ids = [f"{split}:{row}" for row in rows]
    if kind == "text":
        return Split(ids, labels, texts, "text"), skipped
    import datasets  # pyright: ignore[reportMissingImports]

    undecoded = part.cast_column(content, datasets.Image(decode=False))
    return Split(ids, labels, HubImages(undecoded, content, rows), "image"), skipped


def read_hf_text(root: str | Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """Any text-classification set with a text and a label column."""
    options.setdefault("text_column", "text")
    options.setdefault("label_column", "label")
    return read_splits(root, "text", **options)


def read_hf_images(root: str | Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """Any image-classification set with an image and a label column. A broken image raises when it is opened, and is
    named.
    """
    column = options.pop("image_column", "image")
    options.setdefault("label_column", "label")
    return read_splits(root, "image", text_column=column, **options)
