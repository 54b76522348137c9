"""Sets for object detection, as keywords of `catalog.DataSpec`: trees, stamp scenes, COCO, LVIS, files of your own."""

from __future__ import annotations

from typing import Any

from hybridzoo.data.base import DETECTION

_BOX_OPTIONS = ("outside", "max_skipped", "images")
SPECS: tuple[dict[str, Any], ...] = (
    {
        "name": "trees_mini",
        "title": "DeepForest trees, embedded tiles",
        "task": DETECTION,
        "reader": "hybridzoo.data.detection.trees:read_trees_mini",
        "license": "MIT",
        "source": "https://github.com/weecology/DeepForest",
        "protocols": ("embedded",),
        "track": "mini",
    },
    {
        "name": "trees",
        "title": "DeepForest trees, tiles of three aerial photographs",
        "task": DETECTION,
        "reader": "hybridzoo.data.detection.trees:read_trees",
        "license": "MIT",
        "source": "https://github.com/weecology/DeepForest",
        "protocols": ("tiles",),
        "needs": "root = the folder deepforest/data of the PyPI wheel deepforest==2.1.0 (`pip download --no-deps "
        "deepforest==2.1.0`, then unzip)",
        "options": ("tile",),
    },
    {
        "name": "stamp_scenes",
        "title": "Scenes of Tux Paint stamps on OpenArena textures",
        "task": DETECTION,
        "reader": "hybridzoo.data.detection.readers:read_stamp_scenes",
        "license": "GPL-2+ (stamps and textures)",
        "source": "Debian packages tuxpaint-stamps-default and openarena-081-textures",
        "protocols": ("made",),
        "needs": "root = a folder made by `python -m hybridzoo.data.detection.make_stamp_scenes` (its text says how to "
        "fetch the sources)",
    },
    {
        "name": "coco",
        "title": "COCO 2017",
        "task": DETECTION,
        "reader": "hybridzoo.data.detection.readers:read_coco2017",
        "license": "CC BY 4.0 (annotations); Flickr's terms (images)",
        "source": "https://cocodataset.org",
        "protocols": ("official",),
        "needs": "root = a folder with annotations/instances_train2017.json and instances_val2017.json, train2017/ and "
        "val2017/, as the archives of https://cocodataset.org/#download unpack",
        "options": ("verify", "outlines"),
    },
    {
        "name": "lvis",
        "title": "LVIS v1",
        "task": DETECTION,
        "reader": "hybridzoo.data.detection.readers:read_lvis",
        "license": "CC BY 4.0 (annotations); Flickr's terms (images)",
        "source": "https://www.lvisdataset.org",
        "protocols": ("official",),
        "needs": "root = a folder with lvis_v1_train.json and lvis_v1_val.json (of "
        "https://www.lvisdataset.org/dataset) and COCO's train2017/ and val2017/",
        "options": ("verify", "outlines"),
    },
    {
        "name": "coco_json",
        "title": "Boxes in COCO files",
        "task": DETECTION,
        "reader": "hybridzoo.data.detection.readers:read_coco_json",
        "license": "of your data",
        "source": "local folder",
        "protocols": ("given",),
        "needs": "root = a folder with train.json, val.json and test.json (or annotations/instances_*.json) in COCO's "
        "format and their images, or one .json file, whose images are split 80/10/10; images= names another folder",
        "options": (*_BOX_OPTIONS, "outlines"),
    },
    {
        "name": "voc_xml",
        "title": "Boxes in Pascal-VOC XML files",
        "task": DETECTION,
        "reader": "hybridzoo.data.detection.readers:read_voc_xml",
        "license": "of your data",
        "source": "local folder",
        "protocols": ("given",),
        "needs": "root = a folder with Annotations/, JPEGImages/ and ImageSets/Main/{train,val,test}.txt, or with XML "
        "files beside their images, which are split 80/10/10",
        "options": ("outside", "max_skipped", "one_based", "label_names"),
    },
    {
        "name": "detection_csv",
        "title": "Boxes in CSV files",
        "task": DETECTION,
        "reader": "hybridzoo.data.detection.readers:read_detection_csv",
        "license": "of your data",
        "source": "local file",
        "protocols": ("given",),
        "needs": "root = a .csv file with the columns image_path, xmin, ymin, xmax, ymax, label, whose images are "
        "split 80/10/10, or a folder with train.csv, val.csv and test.csv; images= names the image folder",
        "options": (*_BOX_OPTIONS, "columns", "delimiter", "label_names"),
    },
)
