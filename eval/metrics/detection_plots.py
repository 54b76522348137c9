"""Pictures of a detector's result: precision-recall curves, AP by class and size, and the images with the most
errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

MOST_CLASSES = 30


def save_precision_recall(details: Mapping[str, Any], path: Path, *, title: str = "") -> bool:
    """Precision-recall curves (IoU 0.50, 0.75, mean of 0.50:0.95) and AP per class of a result's details.

    Args:
        details: of `hybridzoo.eval.detection.score_records`.
        path: PNG file to write.
        title: above the picture.

    Returns:
        False, and nothing is written, where matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sorted(details["per_class"].items(), key=lambda item: -item[1]["ap"])[:MOST_CLASSES]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, max(4.0, 0.24 * len(rows))), layout="constrained")
    recalls = np.linspace(0, 1, 101)
    for name, label in (("50", "IoU 0.50"), ("75", "IoU 0.75"), ("mean", "mean of 0.50:0.95")):
        values = np.array(details["precision_recall"][name])
        left.plot(recalls, values, label=f"{label}: AP {100 * values.mean():.1f}")
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="mean over classes")
    left.legend(loc="lower left")
    left.grid(alpha=0.3)
    names = [f"{name} ({row['objects']})" for name, row in rows]
    right.barh(names, [row["ap50"] for _, row in rows], color="#c9d8ea", label="AP50")
    right.barh(names, [row["ap"] for _, row in rows], color="#3b6ea5", label="AP")
    right.invert_yaxis()
    right.set(xlim=(0, 100), title="per class (objects)")
    right.legend(loc="lower right")
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def image_errors(row: Mapping[str, Any], *, threshold: float = 0.3, iou: float = 0.5) -> dict[str, np.ndarray]:
    """What is right, wrong and missed in one image at a score threshold.

    Args:
        row: a record of `hybridzoo.eval.detection`.
        threshold: least score of a detection that counts.
        iou: least overlap of a right detection.

    Returns:
        `shown` (indices of the detections), `right` (bool for each; those in crowd regions are not shown) and `missed`
        (n,) bool of the objects.
    """
    from hybridzoo.eval.detection import read_record

    target, found = read_record(row)
    order = np.argsort(-found.scores, kind="stable")
    shown, right = [], []
    taken = np.zeros(len(target), bool)
    for i in order[found.scores[order] >= threshold]:
        overlap, inside = _overlap(found.boxes[i], target.boxes)
        same = target.labels == found.labels[i]
        usable = same & ~target.crowd & ~taken & (overlap >= iou)
        if usable.any():
            taken[int(np.where(usable, overlap, -1).argmax())] = True
        elif (same & target.crowd & (inside >= iou)).any():
            continue
        shown.append(int(i))
        right.append(bool(usable.any()))
    return {
        "shown": np.array(shown, np.int64),
        "right": np.array(right, bool),
        "missed": ~taken & ~target.crowd,
    }


def _overlap(box: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU of a box with others (n, 4), and the share of it that lies in each."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    inner = sides.clip(0).prod(1)
    area = float((box[2:] - box[:2]).prod())
    union = area + (others[:, 2:] - others[:, :2]).prod(1) - inner
    return inner / np.maximum(union, 1e-12), inner / max(area, 1e-12)


def save_boxes(
    rows: Sequence[Mapping[str, Any]],
    split: Any,
    label_names: Sequence[str],
    path: Path,
    *,
    count: int = 4,
    threshold: float = 0.3,
) -> bool:
    """One picture of the first images with what was found in them, a colour per class; False if there is no image.

    Args:
        rows: records.
        split: the DetectionSplit that they are of.
        label_names: of its classes.
        path: PNG file to write.
        count: of images.
        threshold: least score of a detection that is drawn.
    """
    from hybridzoo.inference.image_generation import image_grid
    from hybridzoo.inference.pictures import class_colour, draw_boxes

    place = {name: i for i, name in enumerate(split.ids)}
    drawn = []
    for row in [r for r in rows if r["id"] in place][:count]:
        shown = [i for i, score in enumerate(row["scores"]) if score >= threshold]
        captions = [f"{label_names[row['labels'][i]]} {row['scores'][i]:.2f}" for i in shown]
        boxes = np.array(row["boxes"], np.float64).reshape(-1, 4)[shown]
        colours = [class_colour(row["labels"][i]) for i in shown]
        drawn.append(draw_boxes(split.content[place[row["id"]]], boxes, captions, colours))
    if not drawn:
        return False
    size = (max(p.width for p in drawn), max(p.height for p in drawn))
    image_grid([p if p.size == size else p.resize(size) for p in drawn], columns=2).save(path)
    return True


def save_error_pictures(
    rows: Sequence[Mapping[str, Any]],
    split: Any,
    label_names: Sequence[str],
    folder: Path,
    *,
    count: int = 8,
    threshold: float = 0.3,
) -> list[Path]:
    """Pictures of the images with the most errors: right detections green, wrong ones red, missed objects orange.

    Args:
        rows: records.
        split: the DetectionSplit that they are of.
        label_names: of its classes.
        folder: where the PNG files go.
        count: how many pictures.
        threshold: least score of a detection that counts.
    """
    from hybridzoo.inference.pictures import draw_errors

    place = {name: i for i, name in enumerate(split.ids)}
    judged = []
    for row in rows:
        errors = image_errors(row, threshold=threshold)
        judged.append((int((~errors["right"]).sum() + errors["missed"].sum()), row, errors))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, (wrong, row, errors) in enumerate(sorted(judged, key=lambda j: -j[0])[:count], 1):
        if not wrong:
            break
        truth, shown = row["truth"], errors["shown"]
        captions = [f"{label_names[row['labels'][i]]} {row['scores'][i]:.2f}" for i in shown]
        picture = draw_errors(
            split.content[place[row["id"]]],
            (np.array(truth["boxes"], np.float64).reshape(-1, 4), [str(label_names[k]) for k in truth["labels"]]),
            (np.array(row["boxes"], np.float64).reshape(-1, 4)[shown], captions),
            errors["right"],
            errors["missed"],
        )
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in str(row["id"]))
        written.append(folder / f"{number:02d}-{wrong}-errors-{name}.png")
        picture.save(written[-1])
    return written
