"""`hybridzoo predict` of anomaly detectors: scores as a table, CSV or JSON lines, heat maps and masks as pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from hybridzoo.cli._predict_io import FORMATS, Item, check_output, read_images, tell_unusable, write
from hybridzoo.cli._table import text_table
from hybridzoo.errors import ConfigError, DataError, unknown

SCORES_FILE = "scores.csv"


def run(
    model: Any,
    inputs: Sequence[str],
    *,
    format: str = "table",
    output: Path | None = None,
    out: Path | None = None,
    threshold: float | None = None,
    batch_size: int = 16,
    device: str | None = None,
    dtype: str = "float32",
    progress: bool = False,
) -> None:
    """Judge images and folders.

    Args:
        model: an anomaly-detection model.
        inputs: image files and folders.
        format: table, csv or jsonl.
        output: file for the scores instead of printing them.
        out: folder for scores.csv, `<image>.heat.png` and, where the model has a pixel threshold, `<image>.mask.png`.
        threshold: image score from which an image is anomalous; the model's own if None.
        batch_size: images per forward.
        device, dtype: see `hybridzoo.inference.anomaly.AnomalyDetector`.
        progress: a bar on stderr.

    Raises:
        ConfigError, DataError: what was given and how to fix it.
    """
    from hybridzoo.inference.anomaly import AnomalyDetector

    if format not in FORMATS:
        raise ConfigError(unknown("format", format, FORMATS))
    if output is not None:
        check_output(output)
    items = read_images(inputs)
    stems = picture_stems(out, items)
    detector = AnomalyDetector(model, device=device, dtype=dtype, threshold=threshold)
    for item, image, one, stem in _judge(detector, items, stems, batch_size, progress):
        item.prediction = {"score": one["score"], "anomalous": one["anomalous"]}
        if stem is not None:
            _draw(detector, image, one["map"], stem)
    used = tell_unusable(items, "images")
    if out is not None:
        write(out / SCORES_FILE, render(items, "csv"))
        typer.echo(f"{used} images: scores, heat maps and masks in {out}", err=True)
    if output is not None:
        write(output, render(items, format))
        typer.echo(f"{used} images -> {output}", err=True)
    elif out is None or format != "table":
        typer.echo(render(items, format), nl=False)


def picture_stems(out: Path | None, items: Sequence[Item]) -> list[Path | None]:
    """Where each image's pictures go, without their last suffix; the folder is made.

    Raises:
        DataError: `out` is a file, or a file in it would be overwritten.
    """
    if out is None:
        return [None] * len(items)
    if out.is_file() or (out.suffix and not out.is_dir()):
        raise DataError(f"--out {out}: give a folder for scores, heat maps and masks")
    out.mkdir(parents=True, exist_ok=True)
    check_output(out / SCORES_FILE)
    used: set[Path] = set()
    stems: list[Path | None] = []
    for item in items:
        name, number = Path(item.where).stem, 1
        stem = out / name
        while stem in used:  # images of one name in several folders
            number += 1
            stem = out / f"{name}-{number}"
        for kind in ("heat", "mask"):
            check_output(Path(f"{stem}.{kind}.png"))
        used.add(stem)
        stems.append(stem)
    return stems


def _judge(
    detector: Any, items: Sequence[Item], stems: Sequence[Path | None], batch_size: int, progress: bool
) -> Iterator[tuple[Item, Any, Any, Path | None]]:
    """Open and judge a batch at a time, so that a folder of any size fits into memory."""
    from tqdm import tqdm

    from hybridzoo.data.images import open_image

    with tqdm(total=len(items), unit="img", disable=not progress, leave=False) as bar:
        for start in range(0, len(items), batch_size):
            opened = []
            part = items[start : start + batch_size]
            for item, stem in zip(part, stems[start : start + batch_size]):
                try:
                    opened.append((item, open_image(item.content), stem))
                except DataError as error:
                    item.error = str(error).removeprefix(f"{item.where}: ").removeprefix(f"{item.where} ")
            found = detector([image for _, image, _ in opened], batch_size) if opened else []
            for (item, image, stem), one in zip(opened, found):
                yield item, image, one, stem
            bar.update(len(part))


def _draw(detector: Any, image: Any, one: Any, stem: Path) -> None:
    """The overlay, on one scale for all images where there is a pixel threshold (red: twice that), and the mask."""
    from hybridzoo.inference.anomaly import found_mask, overlay

    limit = detector.pixel_threshold
    overlay(image, one, high=None if limit is None else 2 * limit).save(f"{stem}.heat.png")
    if limit is not None:
        found_mask(image, one, limit).save(f"{stem}.mask.png")


def render(items: Sequence[Item], format: str) -> str:
    """The scores in one of `FORMATS`, newline at the end."""
    if format == "jsonl":
        return "".join(
            json.dumps({"image": i.where, **({"error": i.error} if i.prediction is None else i.prediction)}) + "\n"
            for i in items
        )
    rows = []
    for item in items:
        if item.prediction is None:
            rows.append((item.where, "", "", item.error))
        else:
            word = {None: "", True: "yes", False: "no"}[item.prediction["anomalous"]]
            rows.append((item.where, f"{item.prediction['score']:.6f}", word, ""))
    if format == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["image", "score", "anomalous", "error"])
        writer.writerows(rows)
        return buffer.getvalue()
    return text_table(("image", "score", "anomalous", "error"), rows) + "\n"
