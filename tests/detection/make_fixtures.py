"""Makes tests/fixtures/detection with the official scorers; run by hand where they are installed:

    pip install pycocotools==2.0.11 lvis==0.5.3 opencv-python-headless
    python tests/detection/make_fixtures.py

Each file holds annotations in COCO's (LVIS's) format, detections in the results format, and what the scorer made of
them.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "detection"


def case(seed: int, *, images: int, classes: int, dets: int, crowd: bool, integer: bool) -> tuple[dict, list[dict]]:
    """Random objects and detections near them, with tied scores and overlaps."""
    r = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    records = []
    for image in range(1, images + 1):
        n = int(r.integers(0, 9))
        corner, side = r.uniform(0, 300, (n, 2)), np.exp(r.uniform(1.5, 5.3, (n, 2)))
        if integer:
            corner, side = corner.round(), side.round()
        # The last class never occurs; some detections have it all the same.
        category = r.integers(1, classes, n)
        records.append({"id": image, "file_name": f"{image:06d}.jpg", "width": 640, "height": 640})
        for i in range(n):
            box = [round(float(v), 2) for v in (*corner[i], *side[i])]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(category[i]),
                    "bbox": box,
                    "area": round(float(box[2] * box[3] * r.uniform(0.5, 1)), 2),
                    "iscrowd": int(crowd and r.random() < 0.15),
                }
            )
        for _ in range(int(r.integers(0, dets))):
            if n:
                i = int(r.integers(n))
                box = np.array([*corner[i], *side[i]]) + r.normal(0, r.choice([1, 4, 15]), 4)
                label = int(category[i]) if r.random() < 0.8 else int(r.integers(1, classes + 1))
            else:
                box, label = r.uniform(1, 200, 4), int(r.integers(1, classes + 1))
            box = box.round() if integer else box.round(2)
            box[2:] = np.maximum(box[2:], 1)
            score = round(float(r.random()), 2)
            results.append({"image_id": image, "category_id": label, "bbox": box.tolist(), "score": score})
    document = {
        "info": {},
        "images": records,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": f"class {i + 1}"} for i in range(classes)],
    }
    return document, results


def make_coco(name: str, **options: Any) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    document, results = case(**options)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(document))
        truth.createIndex()
        scorer = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    precision = scorer.eval["precision"][..., -1]  # (T, R, K, A)
    made = {
        "stats": [float(v) for v in scorer.stats],
        "precision_sum": precision.sum(1).transpose(2, 0, 1).tolist(),  # (A, T, K), over recalls
        "recall": scorer.eval["recall"][..., -1].transpose(2, 0, 1).tolist(),  # (A, T, K)
    }
    write(name, "pycocotools 2.0.11", document, results, made)


def make_lvis(name: str, **options: Any) -> None:
    from lvis import LVIS, LVISEval, LVISResults

    logging.disable(logging.WARNING)
    np.float = float  # lvis 0.5.3 uses numpy's old name
    document, results = case(**options)
    r = np.random.default_rng(options["seed"] + 1)
    classes = len(document["categories"])
    for i, category in enumerate(document["categories"]):
        category["frequency"] = "rrcccffff"[i % 9]
    for record in document["images"]:
        there = {a["category_id"] for a in document["annotations"] if a["image_id"] == record["id"]}
        absent = [c for c in range(1, classes + 1) if c not in there]
        record["neg_category_ids"] = [c for c in absent if r.random() < 0.4]
        record["not_exhaustive_category_ids"] = [c for c in sorted(there) if r.random() < 0.3]
    for annotation in document["annotations"]:
        annotation["segmentation"] = []
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps(document))
        for limit in (20, 300):
            truth = LVIS(str(path))
            scorer = LVISEval(truth, LVISResults(truth, json.loads(json.dumps(results)), max_dets=limit), "bbox")
            scorer.params.max_dets = limit
            scorer.evaluate()
            scorer.accumulate()
            scorer.summarize()
            made[str(limit)] = {
                "results": {k: float(v) for k, v in scorer.results.items()},
                "precision_sum": scorer.eval["precision"].sum(1).transpose(2, 0, 1).tolist(),
            }
    write(name, "lvis 0.5.3", document, results, made)


def write(name: str, by: str, document: dict, results: list[dict], made: dict[str, Any]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    content = {"made_by": by, "annotations": document, "results": results, "expected": made}
    (FOLDER / f"{name}.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
    print(name, (FOLDER / f"{name}.json").stat().st_size)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    make_coco("coco_float", seed=1, images=40, classes=5, dets=30, crowd=True, integer=False)
    make_coco("coco_ties", seed=2, images=30, classes=3, dets=160, crowd=True, integer=True)
    make_lvis("lvis", seed=3, images=30, classes=9, dets=60, crowd=False, integer=True)
