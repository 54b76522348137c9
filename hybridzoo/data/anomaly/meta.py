"""ADer's meta.json: one file that lists a data set's images, masks and classes. Read, and written from any layout.

python -m hybridzoo.data.anomaly.meta mvtec /data/mvtec
python -m hybridzoo.data.anomaly.meta visa /data/visa --out /tmp/meta.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hybridzoo.data.anomaly import layouts
from hybridzoo.data.anomaly.coco import coco_ad
from hybridzoo.data.anomaly.split import Entry
from hybridzoo.errors import DataError, unknown

LAYOUTS: dict[str, Callable[..., layouts.Parts]] = {
    "mvtec": layouts.mvtec,
    "mvtec3d": layouts.mvtec_3d,
    "visa": layouts.visa,
    "realiad": layouts.real_iad,
    "coco": coco_ad,
}
FIELDS = tuple(f.name for f in fields(Entry))


def read_meta(path: Path, classes: Sequence[str] | None = None) -> layouts.Parts:
    """The entries of a meta.json; a `validation` part (MVTec-3D, LOCO) is added to train.

    Raises:
        DataError: not such a file, or a class that it does not have.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        parts: layouts.Parts = {
            split: {cls: [_entry(row, cls) for row in rows] for cls, rows in loaded.get(split, {}).items()}
            for split in ("train", "test", "validation")
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no meta.json ({type(error).__name__}: {error}); expected "
            '{"train": {class: [{"img_path", "mask_path", "cls_name", "specie_name", "anomaly"}, …]}, "test": {…}}'
        ) from error
    for cls, entries in parts.pop("validation").items():
        parts["train"].setdefault(cls, []).extend(entries)
    missing = [c for c in classes or () if c not in parts["train"] and c not in parts["test"]]
    if missing:
        raise DataError(f"{path} has no class {', '.join(missing)}; it has {', '.join(parts['train'])}")
    if classes is not None:
        parts = {split: {c: e for c, e in of.items() if c in classes} for split, of in parts.items()}
    return parts


def _entry(row: dict[str, Any], cls: str) -> Entry:
    return Entry(
        img_path=row["img_path"],
        mask_path=row.get("mask_path") or "",
        cls_name=row.get("cls_name") or cls,
        specie_name=row.get("specie_name") or "",
        anomaly=int(row["anomaly"]),
    )


def write_meta(parts: layouts.Parts, path: Path) -> None:
    """Write entries as ADer's meta.json (indent 4)."""
    rows = {split: {cls: [asdict(e) for e in entries] for cls, entries in of.items()} for split, of in parts.items()}
    path.write_text(json.dumps(rows, indent=4) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the meta.json of a data set."""
    parser = argparse.ArgumentParser(prog="python -m hybridzoo.data.anomaly.meta", description=main.__doc__)
    parser.add_argument("layout", help=", ".join(LAYOUTS))
    parser.add_argument("root", type=Path, help="folder of the data set")
    parser.add_argument("--out", type=Path, help="where to write (default: meta.json in the folder)")
    parser.add_argument("--split", type=int, default=0, help="of COCO-AD: 0 to 3")
    given = parser.parse_args(arguments)
    if given.layout not in LAYOUTS:
        raise DataError(unknown("layout", given.layout, LAYOUTS))
    parts = (
        coco_ad(given.root, split=given.split) if given.layout == "coco" else LAYOUTS[given.layout](given.root, None)
    )
    default = f"meta_20_{given.split}.json" if given.layout == "coco" else "meta.json"
    out = given.out or given.root / default
    write_meta(parts, out)
    counts = {split: sum(map(len, of.values())) for split, of in parts.items()}
    print(f"{out}: {counts['train']} train and {counts['test']} test images of {len(parts['train'])} classes")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
