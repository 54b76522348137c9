"""The sets of anomaly detection, as keywords of `catalog.DataSpec`, and the rules that their splits follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybridzoo.data.base import ANOMALY
from hybridzoo.errors import DataError

_READERS = "hybridzoo.data.anomaly.readers"
_OPTIONS = ("classes", "validation", "meta")
_MVTEC_LAYOUT = "<class>/train/good, <class>/test/<good or defect> and <class>/ground_truth/<defect>"
_META = "; a meta.json in it (as ADer writes it) is read instead of the layout"


def _set(name: str, title: str, reader: str, license: str, source: str, needs: str, *more: str) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "task": ANOMALY,
        "reader": f"{_READERS}:{reader}",
        "license": license,
        "source": source,
        "protocols": ("official",),
        "needs": needs,
        "options": (*_OPTIONS, *more),
    }


SPECS: tuple[dict[str, Any], ...] = (
    _set(
        "mvtec_ad",
        "MVTec-AD",
        "read_mvtec",
        "CC-BY-NC-SA-4.0",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
        f"root = the unpacked archive: {_MVTEC_LAYOUT}{_META}",
    ),
    _set(
        "mvtec_3d",
        "MVTec 3D-AD, its colour images",
        "read_mvtec_3d",
        "CC-BY-NC-SA-4.0",
        "https://www.mvtec.com/company/research/datasets/mvtec-3d-ad",
        f"root = the unpacked archive: <class>/<train, validation or test>/<good or defect>/rgb and /gt{_META}",
    ),
    _set(
        "visa",
        "VisA",
        "read_visa",
        "CC-BY-4.0",
        "https://github.com/amazon-science/spot-diff",
        f"root = the unpacked archive, with split_csv/1cls.csv{_META}",
    ),
    _set(
        "real_iad",
        "Real-IAD, all five views",
        "read_real_iad",
        "terms of the data's authors (research use, on request)",
        "https://realiad4ad.github.io/Real-IAD/",
        "root = a folder with <class>/ and <class>.json for each class (the lists of realiad_jsons)",
    ),
    _set(
        "uni_medical",
        "Uni-Medical (brain, liver, retina)",
        "read_mvtec",
        "terms of the three sources",
        "https://github.com/zhangzjn/ADer/tree/main/data",
        f"root = the unpacked archive: {_MVTEC_LAYOUT}{_META}",
    ),
    _set(
        "coco_ad",
        "COCO-AD",
        "read_coco_ad",
        "CC-BY-4.0 (annotations)",
        "https://cocodataset.org",
        "root = COCO 2017: annotations/instances_{train,val}2017.json, train2017/, val2017/; masks are drawn into it",
        "split",
    ),
    _set(
        "btad",
        "BTAD",
        "read_mvtec",
        "CC-BY-NC-SA-4.0",
        "https://github.com/pankajmishra000/VT-ADL",
        "root = BTech_Dataset_transformed: <class>/train/ok, <class>/test/<ok or ko>, <class>/ground_truth/ko",
    ),
    _set(
        "mpdd",
        "MPDD",
        "read_mvtec",
        "CC-BY-NC-SA-4.0",
        "https://github.com/stepanje/MPDD",
        f"root = the unpacked archive: {_MVTEC_LAYOUT}{_META}",
    ),
    _set(
        "texture_ad",
        "TextureAD: ten textures with synthetic defects",
        "read_mvtec",
        "CC0-1.0 (3 classes), GPL-2.0-or-later (7 classes)",
        "scikit-image 0.26 and the Debian package openarena-081-textures",
        "root = the folder that `python -m hybridzoo.data.anomaly.textures SOURCES root` makes (its --help says from "
        "what)",
    ),
    _set(
        "texture_ad_damage",
        "TextureAD's test of damage that was drawn by the textures' artists: four classes, no training images",
        "read_texture_ad_damage",
        "GPL-2.0-or-later",
        "the Debian package openarena-081-textures",
        "root = the folder that `python -m hybridzoo.data.anomaly.textures SOURCES root` makes",
    ),
    _set(
        "anomaly_folder",
        "Images in folders",
        "read_anomaly_folder",
        "of your data",
        "local folder",
        "root = a folder with normal/ and, where you have them, abnormal/ and masks/ (named like their images); or of "
        f"normal images only; or in MVTec's layout: {_MVTEC_LAYOUT}",
        "normal_dir",
        "abnormal_dir",
        "mask_dir",
    )
    | {"protocols": ("given", "80/20")},
    {
        "name": "texture_ad_mini",
        "title": "TextureAD, the three CC0 textures at 128 pixels",
        "task": ANOMALY,
        "reader": f"{_READERS}:read_texture_ad_mini",
        "license": "CC0-1.0",
        "source": "https://github.com/scikit-image/scikit-image (brick, grass, gravel of version 0.26)",
        "protocols": ("embedded",),
        "track": "mini",
    },
)


def check_splits(name: str, splits: Mapping[str, Any], label_names: Sequence[str]) -> None:
    """Raise DataError for a set without images, or with a class that has no normal training image."""
    from hybridzoo.data.anomaly.split import check_split

    if not splits:
        raise DataError(f"{name}: no split was found")
    check_split(name, splits.get("train"), splits.get("test"))


def draw(split: Any, limit: int, seed: int) -> Any:
    """At most `limit` images, a seeded draw over all classes and both labels, in the order of the split."""
    if limit >= len(split):
        return split
    groups: dict[tuple[str, int], list[int]] = {}
    for i in np.random.RandomState(seed).permutation(len(split)).tolist():
        entry = split.entries[i]
        groups.setdefault((entry.cls_name, int(entry.anomaly > 0)), []).append(i)
    chosen: list[int] = []
    while len(chosen) < limit:  # one of each group in turn
        for rows in groups.values():
            if rows and len(chosen) < limit:
                chosen.append(rows.pop())
    return split.select(sorted(chosen))
