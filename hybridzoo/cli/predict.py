"""`hybridzoo predict`: texts or images to labels with scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command(name="predict")(predict_command)


def predict_command(
    model: Annotated[str, typer.Argument(help="Registered name, name.tag, folder or hub id.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Text: .txt (a text a line), .csv, .tsv or .jsonl; images: files and folders. None or -: stdin."
        ),
    ] = None,
    column: Annotated[str, typer.Option(help="Column or key that holds the text.")] = "text",
    format: Annotated[str, typer.Option(help="table, csv or jsonl; of detectors also coco.")] = "table",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here instead of printing.")] = None,
    top: Annotated[int, typer.Option(help="Classes whose scores are shown.", min=1)] = 3,
    batch_size: Annotated[int, typer.Option(help="Samples per forward.", min=1)] = 32,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; a GPU if there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    abstain: Annotated[float | None, typer.Option(help="Give no label when the best score is below this.")] = None,
    long_text: Annotated[str, typer.Option(help="truncate, head_tail or sliding_window.")] = "truncate",
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id, if not beside the model.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of text files; UTF-8 if left out.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Detectors: picture with the boxes, or a folder for those of several images. Anomaly detectors: "
            "folder for scores, heat maps and masks."
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Detectors: least score, 0.3 if left out; anomalies: the model's own.")
    ] = None,
    categories: Annotated[
        Path | None, typer.Option(help="Detectors, --format coco: annotation file whose ids are used.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Label texts or images, or detect objects or anomalies in images.

    Inputs that cannot be used (a broken image, an empty text, a row that is not UTF-8) are named on stderr, and stand
    in
    the output with their reason instead of a label.

    \b
    echo "What a lovely day" | hybridzoo predict roberta_bilstm_mini
    hybridzoo predict ./runs/airline tweets.csv --column tweet --format jsonl -o labels.jsonl
    hybridzoo predict iformer_mini photos/ shoe.png
    hybridzoo predict co_detr_mini photo.jpg --out boxes.png
    hybridzoo predict mambaad_mini photos/ --out maps
    """
    import sys

    from hybridzoo import build_model, registry
    from hybridzoo.cli._predict_io import FORMATS, check_output, read_images, read_texts, render, tell_unusable, write
    from hybridzoo.cli._warnings import plain_warnings
    from hybridzoo.errors import ConfigError, unknown
    from hybridzoo.inference import load_classifier

    plain_warnings()
    if format not in (*FORMATS, "coco"):
        raise ConfigError(unknown("format", format, (*FORMATS, "coco")))
    if output is not None:
        check_output(output)
    built = build_model(model, pretrained=True) if registry.is_model(model) else build_model(model)
    if built.task == "object-detection":
        from hybridzoo.cli._predict_detection import run

        return run(
            built,
            inputs or [],
            format=format,
            output=output,
            out=out,
            threshold=threshold,
            batch_size=min(batch_size, 8),
            device=device,
            dtype=dtype,
            categories=categories,
            progress=not quiet and sys.stderr.isatty(),
        )
    if built.task == "anomaly-detection" and categories is None and format != "coco":
        from hybridzoo.cli._predict_anomaly import run as judge

        return judge(
            built,
            inputs or [],
            format=format,
            output=output,
            out=out,
            threshold=threshold,
            batch_size=min(batch_size, 16),
            device=device,
            dtype=dtype,
            progress=not quiet and sys.stderr.isatty(),
        )
    own = {"--out": out, "--threshold": threshold, "--categories": categories}
    given = [name for name, value in own.items() if value is not None]
    if given or format == "coco":
        option = given[0] if given else "--format coco"
        raise ConfigError(f"{option} is for detectors, and {model} does {built.task}")
    options: dict[str, object] = {"device": device, "dtype": dtype, "abstain": abstain}
    is_pair = built.task == "text-pair-classification"
    is_text = is_pair or built.task == "text-classification"
    if is_text:
        options["long_text"] = long_text
        if tokenizer is not None:
            from transformers import AutoTokenizer

            try:
                options["tokenizer"] = AutoTokenizer.from_pretrained(tokenizer)
            except (OSError, ValueError) as error:
                raise ConfigError(f"no tokenizer in {tokenizer} ({str(error).splitlines()[0]})") from error
    classifier = load_classifier(built, **options)
    progress = not quiet and sys.stderr.isatty()
    if is_text:
        items = read_texts(inputs or ["-"], column, encoding)
        for item in items:
            if is_pair and item.error is None and item.content.count("\t") != 1:
                item.error = "this model compares two texts: give both, with one tab between them"
        usable = [item for item in items if item.error is None]
        if usable:
            contents = [item.content.split("\t") if is_pair else item.content for item in usable]
            found = classifier(contents, batch_size, progress=progress)
            for item, prediction in zip(usable, found):
                item.prediction = prediction
    else:
        items = read_images(inputs or [])
        _predict_images(classifier, items, batch_size, progress)
    bad = len(items) - tell_unusable(items)
    if bad:
        typer.echo(f"{bad} of {len(items)} inputs could not be used", err=True)
    text = render(items, format, top, classifier.label_names, show_text=is_text)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write(output, text)
        typer.echo(f"{len(items)} rows -> {output}", err=True)


def _predict_images(classifier, items, batch_size: int, progress: bool) -> None:
    """Open and label images a window at a time, so that a folder of any size fits into memory."""
    from tqdm import tqdm

    from hybridzoo.data.images import open_image
    from hybridzoo.errors import DataError

    window = 8 * batch_size
    with tqdm(total=len(items), unit="img", disable=not progress, leave=False) as bar:
        for start in range(0, len(items), window):
            opened = []
            for item in items[start : start + window]:
                try:
                    opened.append((item, open_image(item.content)))
                except DataError as error:
                    item.error = str(error).removeprefix(f"{item.where}: ").removeprefix(f"{item.where} ")
            if opened:
                for (item, _), prediction in zip(opened, classifier([image for _, image in opened], batch_size)):
                    item.prediction = prediction
            bar.update(len(items[start : start + window]))
