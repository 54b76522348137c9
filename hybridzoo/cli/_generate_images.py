"""`hybridzoo generate` for image models: a PNG grid, a folder of PNG files, or an .npz for ADM's evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import typer

from hybridzoo.cli.generate import Request
from hybridzoo.errors import ConfigError

BATCH = 64


def generate(model: Any, request: Request) -> None:
    """Make `count` images of each label or prompt and write them.

    `--out NAME.png` is a grid with one row per label or prompt, `NAME.npz` holds `arr_0` (N, H, W, 3) uint8 and, of
    classes, their numbers in `arr_1`; a folder gets one file per image.

    Raises:
        ConfigError: options of text models, or a place that cannot be written.
    """
    from hybridzoo.inference.image_generation import ImageGenerator, image_grid

    request.refuse("image-generation", "max_new_tokens", "top_k", "top_p", "num_beams", "repetition_penalty")
    generator = ImageGenerator(model, request.tokenizer, device=request.device, dtype=request.dtype or "float32")
    count = request.count or 1
    conditions: list[Any] = list(request.prompts or request.labels)
    if request.prompts and request.labels:
        raise ConfigError("give --label or --prompt, not both")
    if not conditions:
        if getattr(model.config, "condition", "class") != "class":
            raise ConfigError('nothing to make an image of: give --prompt "a text"')
        conditions = list(range(min(model.config.num_labels, 10)))
    options = {"guidance": "cfg_scale"} | {k: k for k in ("temperature", "steps", "height", "width")}
    sampling = {options[k]: v for k, v in request.sampling.items() if k in options}
    rows = [c for c in conditions for _ in range(count)]
    kind = "prompts" if request.prompts else "labels"
    images: list[Any] = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        seeds = [request.seed * 1_000_003 + start + i for i in range(len(part))]  # an image's own, whatever the batch
        images += generator(**{kind: part}, generator=seeds, progress=not request.quiet, **sampling)
    out = request.out or Path(f"{Path(request.name).name}.png")
    try:
        if out.suffix.lower() == ".npz":
            from hybridzoo.eval.metrics.generation import save_images_npz

            pixels = np.stack([np.asarray(image) for image in images])
            out.parent.mkdir(parents=True, exist_ok=True)
            numbers = generator.classes(rows).numpy() if kind == "labels" else None
            save_images_npz(pixels if pixels.ndim == 4 else pixels[..., None], out, numbers)
        elif out.suffix.lower() == ".png":
            out.parent.mkdir(parents=True, exist_ok=True)
            image_grid(images, columns=count if count > 1 else None).save(out)
        else:
            out.mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(images):
                image.save(out / f"{i:05d}.png")
    except OSError as error:
        raise ConfigError(f"cannot write {out} ({error.strerror or error}); give another --out") from error
    if not request.quiet:
        typer.echo(f"wrote {len(images)} images to {out}")
