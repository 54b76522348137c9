"""`hybridzoo predict` of detectors: boxes as a table, CSV, JSON lines or COCO results, and drawn on the images."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from hybridzoo.cli._predict_io import Item, check_output, read_images, tell_unusable, write
from hybridzoo.cli._table import text_table
from hybridzoo.errors import ConfigError, DataError, unknown

FORMATS = ("table", "csv", "jsonl", "coco")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SHOWN_OBJECTS = 20  # rows of an image in the table; the other formats hold all


def run(
    model: Any,
    inputs: Sequence[str],
    *,
    format: str = "table",
    output: Path | None = None,
    out: Path | None = None,
    threshold: float | None = None,
    batch_size: int = 8,
    device: str | None = None,
    dtype: str = "float32",
    categories: Path | None = None,
    progress: bool = False,
) -> None:
    """Detect objects in images and folders.

    Args:
        model: an object-detection model.
        inputs: image files and folders.
        format: table, csv, jsonl or coco.
        output: file for the result instead of printing it.
        out: picture with the boxes (one image), or a folder for pictures of all.
        threshold: least score; 0.3 if None, and 0 for COCO results, whose scorers want all.
        batch_size: images per forward.
        device, dtype: see `hybridzoo.inference.Detector`.
        categories: COCO annotation file whose category ids (by name) and image ids (by file name) the coco format uses.
        progress: a bar on stderr.

    Raises:
        ConfigError, DataError: what was given and how to fix it.
    """
    from hybridzoo.inference.detection import THRESHOLD, Detector

    if format not in FORMATS:
        raise ConfigError(unknown("format", format, FORMATS))
    if output is not None:
        check_output(output)
    items = read_images(inputs)
    targets = picture_paths(out, items)
    least = (0.0 if format == "coco" else THRESHOLD) if threshold is None else threshold
    detector = Detector(model, device=device, dtype=dtype, threshold=least)
    ids = _Ids(categories, detector.label_names) if format == "coco" else None
    _detect(detector, items, batch_size, progress, targets)
    used = tell_unusable(items, "images")
    text = ids.render(items) if ids is not None else render(items, format)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write(output, text)
        typer.echo(f"{used} images -> {output}", err=True)
    drawn = [p for item, p in zip(items, targets) if p is not None and item.error is None]
    if drawn:
        typer.echo(f"boxes: {drawn[0] if len(drawn) == 1 else f'{len(drawn)} pictures in {out}'}", err=True)


def picture_paths(out: Path | None, items: Sequence[Item]) -> list[Path | None]:
    """Where each image's picture goes; a folder is made.

    Raises:
        DataError: a picture exists, its folder does not, or one file is given for several images.
    """
    if out is None:
        return [None] * len(items)
    if out.suffix.lower() in PICTURE_SUFFIXES:
        if len(items) > 1:
            raise DataError(f"--out {out} is one picture, but there are {len(items)} images; give a folder")
        check_output(out)
        return [out]
    if out.is_file():
        raise DataError(f"--out {out}: pictures end in {', '.join(PICTURE_SUFFIXES)}; or give a folder")
    out.mkdir(parents=True, exist_ok=True)
    used: set[Path] = set()
    paths: list[Path | None] = []
    for item in items:
        stem, number = Path(item.where).stem, 1
        path = out / f"{stem}.boxes.png"
        while path in used:  # images of one name in several folders
            number += 1
            path = out / f"{stem}-{number}.boxes.png"
        check_output(path)
        used.add(path)
        paths.append(path)
    return paths


def _detect(
    detector: Any, items: Sequence[Item], batch_size: int, progress: bool, targets: Sequence[Path | None]
) -> None:
    """Fill in predictions a batch at a time, so that a folder of any size fits into memory; draw at once."""
    from tqdm import tqdm

    from hybridzoo.data.detection.images import open_upright
    from hybridzoo.inference.pictures import draw_objects

    with tqdm(total=len(items), unit="img", disable=not progress, leave=False) as bar:
        for start in range(0, len(items), batch_size):
            opened = []
            for item, path in zip(items[start : start + batch_size], targets[start : start + batch_size]):
                try:
                    opened.append((item, open_upright(item.content), path))
                except DataError as error:
                    item.error = str(error).removeprefix(f"{item.where}: ").removeprefix(f"{item.where} ")
            found = detector([image for _, image, _ in opened], batch_size) if opened else []
            for (item, image, path), objects in zip(opened, found):
                item.prediction = {"size": [image.height, image.width], "objects": objects}
                if path is not None:
                    draw_objects(image, objects, detector.label_names).save(path)
            bar.update(len(items[start : start + batch_size]))


def render(items: Sequence[Item], format: str) -> str:
    """The output as a table, CSV or JSON lines, newline at the end."""
    if format == "jsonl":
        return "".join(json.dumps(_line(item), ensure_ascii=False) + "\n" for item in items)
    if format == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["image", "label", "score", "xmin", "ymin", "xmax", "ymax", "error"])
        for item in items:
            if item.prediction is None:
                writer.writerow([item.where, "", "", "", "", "", "", item.error])
                continue
            for one in item.prediction["objects"]:
                corners = [f"{v:.2f}" for v in one["box"]]
                writer.writerow([item.where, one["label"], f"{one['score']:.6f}", *corners, ""])
        return buffer.getvalue()
    rows: list[tuple[Any, ...]] = []
    for item in items:
        if item.prediction is None:
            rows.append((item.where, "(unusable)", None, item.error))
            continue
        objects = item.prediction["objects"]
        for one in objects[:SHOWN_OBJECTS]:
            rows.append((item.where, one["label"], f"{one['score']:.3f}", ", ".join(f"{v:.0f}" for v in one["box"])))
        if not objects:
            rows.append((item.where, "(nothing)", None, ""))
        elif len(objects) > SHOWN_OBJECTS:
            rows.append((item.where, f"({len(objects) - SHOWN_OBJECTS} more)", None, "csv and jsonl hold all"))
    return text_table(("image", "label", "score", "xmin, ymin, xmax, ymax"), rows, right=(2,)) + "\n"


def _line(item: Item) -> dict[str, Any]:
    if item.prediction is None:
        return {"id": item.where, "objects": None, "error": item.error}
    objects = [
        {"label": o["label"], "score": round(o["score"], 6), "box": [round(v, 2) for v in o["box"]]}
        for o in item.prediction["objects"]
    ]
    return {"id": item.where, "size": item.prediction["size"], "objects": objects}


class _Ids:
    """Ids of a COCO results file: of an annotation file, or numbers in file names and classes from 1 on."""

    def __init__(self, path: Path | None, label_names: Sequence[str]):
        self.category: Mapping[str, int] = {name: i for i, name in enumerate(label_names, 1)}
        self.image: Mapping[str, Any] | None = None
        if path is None:
            return
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            self.category = {row["name"]: row["id"] for row in document["categories"]}
            self.image = {Path(row["file_name"]).name: row["id"] for row in document["images"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"--categories {path} is no COCO annotation file ({error})") from error
        for name in label_names:
            if name not in self.category:
                raise DataError(unknown(f"class of the model in {path}", name, self.category))

    def render(self, items: Sequence[Item]) -> str:
        """A results file: a JSON list of {image_id, category_id, bbox, score}."""
        rows = []
        for item in items:
            if item.prediction is None:
                continue
            name = Path(item.where).name
            if self.image is not None and name not in self.image:
                raise DataError(f"{name} is not among the images of the --categories file")
            stem = Path(name).stem
            key = self.image[name] if self.image is not None else int(stem) if stem.isdecimal() else name
            for one in item.prediction["objects"]:
                x1, y1, x2, y2 = one["box"]
                box = [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
                rows.append({"image_id": key, "category_id": self.category[one["label"]], "bbox": box})
                rows[-1]["score"] = round(one["score"], 6)
        return json.dumps(rows) + "\n"
