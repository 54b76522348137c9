"""Draws the picture of each model's page, docs/models/pictures/FAMILY.*, from the trained minis and the embedded data.

    python docs/model_pictures.py [FAMILY …]

Offline, on the CPU, some minutes for all. Equal versions of the packages give equal files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
FOLDER = Path(__file__).resolve().parent / "models" / "pictures"


def figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def save_figure(drawn: Any, name: str) -> None:
    drawn.savefig(FOLDER / f"{name}.png", metadata={"Software": None})


def trained(name: str) -> Any:
    from hybridzoo import build_model

    return build_model(name, pretrained=True).eval()


def test_images(count: int) -> list[Any]:
    from hybridzoo.data import load_data

    samples = load_data("fashion_mnist_mini")["test"]
    return [samples[i]["image"] for i in range(count)]


def ring_amplitudes(maps: Any) -> Any:
    """(B, H, W, C) -> mean amplitude of its Fourier transform over rings of frequency 0, 1, ... H / 2."""
    import torch

    height, width = maps.shape[1:3]
    amplitude = torch.fft.fft2(maps.float(), dim=(1, 2)).abs().mean((0, 3))
    fy, fx = torch.fft.fftfreq(height) * height, torch.fft.fftfreq(width) * width
    ring = (fy[:, None] ** 2 + fx[None] ** 2).sqrt().round().long()
    total, count = torch.zeros(int(ring.max()) + 1), torch.zeros(int(ring.max()) + 1)
    total.index_add_(0, ring.flatten(), amplitude.flatten())
    count.index_add_(0, ring.flatten(), torch.ones(ring.numel()))
    return (total / count)[: height // 2 + 1]


def iformer() -> None:
    """What the two sides of a mixer give, by spatial frequency, in the first block of each stage."""
    import torch
    import torch.nn.functional as F

    from hybridzoo.data.image_processor import image_processor

    model = trained("iformer_mini")
    pixels = image_processor(model.config)(test_images(64), return_tensors="pt")["pixel_values"]
    found: dict[tuple[int, str], Any] = {}

    def keep(stage: int, side: str) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: tuple[Any, ...]) -> None:
            found[stage, side] = output

        return hook

    for stage in (1, 2, 3):
        mixer = getattr(model.iformer, f"blocks{stage}")[0].attn
        mixer.high_mixer.register_forward_hook(keep(stage, "high"))
        mixer.low_mixer.register_forward_hook(keep(stage, "low"))
    with torch.no_grad():
        model(pixels)
    drawn = figure(9, 2.6)
    for axes, stage in zip(drawn.subplots(1, 3), (1, 2, 3)):
        convolved, pooled = found[stage, "high"]
        size = convolved.shape[1:3]
        (low,) = found[stage, "low"]
        if low.shape[1:3] != size:  # pooled before the attention; the fusion reads it upsampled
            low = F.interpolate(low.permute(0, 3, 1, 2), size=size, mode="nearest").permute(0, 2, 3, 1)
        for maps, label in ((convolved, "convolution"), (pooled, "max-pooling"), (low, "attention")):
            rings = ring_amplitudes(maps)
            axes.semilogy(rings / rings[0], label=label)
        axes.set(title=f"stage {stage}, {size[0]} x {size[1]}", xlabel="cycles an image")
    drawn.axes[0].set_ylabel("amplitude / mean")
    drawn.axes[0].legend(fontsize=8)
    save_figure(drawn, "iformer")


def roberta_bilstm() -> None:
    """The classes' probabilities as a text is read word by word."""
    from hybridzoo.inference import TextClassifier

    model = trained("roberta_bilstm_mini")
    text = "The plot is thin and the first hour is dull , but the ending is wonderful and I loved it"
    words = text.split()
    scores = [found["scores"] for found in TextClassifier(model)([" ".join(words[: i + 1]) for i in range(len(words))])]
    drawn = figure(9, 2.6)
    axes = drawn.subplots()
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    colours = {"negative": "#c0504d", "neutral": "#bfbfbf", "positive": "#4f9153"}
    values = [[row[name] for row in scores] for name in names]
    axes.stackplot(range(len(words)), values, labels=names, colors=[colours.get(n.lower(), "#888888") for n in names])
    axes.set(xlim=(0, len(words) - 1), ylim=(0, 1), ylabel="probability")
    axes.set_xticks(range(len(words)), words, rotation=45, ha="right")
    axes.legend(loc="upper left", fontsize=8)
    save_figure(drawn, "roberta_bilstm")


def co_detr() -> None:
    """Two photographs of the test set with what was found."""
    from PIL import Image

    from hybridzoo.data import load_data
    from hybridzoo.inference.detection import Detector
    from hybridzoo.inference.pictures import draw_objects

    detector = Detector(trained("co_detr_mini"))
    photographs = [load_data("trees_mini")["test"][i]["image"].convert("RGB") for i in range(2)]
    found = detector(photographs, threshold=0.3)
    pictures = [draw_objects(p, o, detector.label_names).resize((400, 400)) for p, o in zip(photographs, found)]
    sheet = Image.new("RGB", (808, 400), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (408 * i, 0))
    sheet.save(FOLDER / "co_detr.jpg", quality=80)


def mambaad() -> None:
    """Abnormal test images, the heat maps, and the true masks."""
    from hybridzoo.data import load_data
    from hybridzoo.inference.anomaly import AnomalyDetector, heat_sheet

    samples = load_data("texture_ad_mini")["test"]
    chosen = [samples[i] for i in range(len(samples)) if samples[i]["label"]]
    chosen = chosen[:: max(len(chosen) // 6, 1)][:6]
    maps = [one["map"] for one in AnomalyDetector(trained("mambaad_mini"))([s["image"] for s in chosen])]
    low, high = min(m.min() for m in maps), max(m.max() for m in maps)
    shown = [(sample, (m - low) / (high - low)) for sample, m in zip(chosen, maps)]
    heat_sheet(shown, side=128, columns=6).save(FOLDER / "mambaad.jpg", quality=80)


def maskmamba() -> None:
    """Three images of each class."""
    from PIL import Image

    from hybridzoo.inference.image_generation import ImageGenerator, image_grid

    model = trained("maskmamba_mini")
    names = [model.config.id2label[i] for i in range(10)]
    grid = image_grid(ImageGenerator(model)(names * 3, cfg_scale=2.0, generator=0), columns=10)
    grid.resize((2 * grid.width, 2 * grid.height), Image.Resampling.NEAREST).save(FOLDER / "maskmamba.png")


def llamagen_vq() -> None:
    """Test images above, what the tokenizer makes of their codes below."""
    import numpy as np
    import torch
    from PIL import Image

    from hybridzoo.inference.image_generation import image_grid, to_pil, to_uint8

    model = trained("llamagen_vq_mini")
    images = [image.convert("L") for image in test_images(10)]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).unsqueeze(1) / 127.5 - 1
    with torch.no_grad():
        again = model.decode(model.encode(pixels).quant)
    grid = image_grid([*images, *(p.convert("L") for p in to_pil(to_uint8(again)))], columns=10)
    grid.resize((2 * grid.width, 2 * grid.height), Image.Resampling.NEAREST).save(FOLDER / "llamagen_vq.png")


def context(name: str, file: str) -> None:
    """Bits a token by its place: what the text before it brings."""
    import math

    import torch
    import torch.nn.functional as F

    from hybridzoo.data import load_data
    from hybridzoo.inference.generation import TextGenerator

    model, length = trained(name), 512
    tokenizer = TextGenerator(model).tokenizer
    rows = []
    for i in range(13):
        ids = tokenizer(load_data("austen_mini")["test"][i]["text"])["input_ids"]
        rows += [ids[k : k + length] for k in range(0, len(ids) - length + 1, length)]
    ids = torch.tensor(rows[:24])
    with torch.no_grad():
        logits = torch.cat([model(part).logits for part in ids.split(8)])
    nats = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    bits = nats.view(len(ids), -1).mean(0) / math.log(2)
    edges = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, length - 1]
    means = [bits[a:b].mean().item() for a, b in pairwise(edges)]
    drawn = figure(6, 2.6)
    axes = drawn.subplots()
    axes.plot(range(len(means)), means, marker="o")
    axes.set_xticks(range(len(means)), [str(a + 1) for a in edges[:-1]])
    axes.set(xlabel="tokens before it (from)", ylabel="bits a token", title=f"{name}, unseen Austen")
    save_figure(drawn, file)


def chela() -> None:
    """What the long convolutions of the first and the last layer look at."""
    import torch

    model = trained("chela_mini")
    layers = model.encoder.layers
    drawn = figure(9, 2.6)
    for axes, number in zip(drawn.subplots(1, 2), (0, len(layers) - 1)):
        with torch.no_grad():
            back, ahead = layers[number].mix.long.kernels(256)
        axes.plot(-torch.arange(back.shape[1]), back.float().abs().mean(0), label="before")
        if ahead is not None:
            axes.plot(torch.arange(1, ahead.shape[1] + 1), ahead.float().abs().mean(0), label="after")
        axes.set(title=f"layer {number + 1} of {len(layers)}", xlabel="places from the position", yscale="log")
        axes.legend(fontsize=8)
    drawn.axes[0].set_ylabel("mean |tap|")
    save_figure(drawn, "chela")


def hybrid_lm() -> None:
    """The layers of some registered models, by kind."""
    from matplotlib.patches import Patch

    from hybridzoo.layers.mixer import parse_pattern
    from hybridzoo.registry import models

    chosen = {n: m.config for n, m in models().items() if m.family == "hybrid_lm" and not n.endswith("_mqar")}
    rows = {name: parse_pattern(values["pattern"], values.get("num_hidden_layers")) for name, values in chosen.items()}
    kinds = sorted({kind for row in rows.values() for kind in row})
    drawn = figure(9, 0.35 * len(rows) + 1)
    axes = drawn.subplots()
    for y, row in enumerate(rows.values()):
        for x, kind in enumerate(row):
            axes.barh(y, 0.9, left=x, color=f"C{kinds.index(kind)}")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set(xlabel="layer", frame_on=False)
    axes.legend(
        [Patch(color=f"C{i}") for i in range(len(kinds))],
        kinds,
        fontsize=8,
        ncols=5,
        loc="lower right",
        bbox_to_anchor=(1, 1),
    )
    save_figure(drawn, "hybrid_lm")


PICTURES: dict[str, Callable[[], None]] = {
    "chela": chela,
    "co_detr": co_detr,
    "deltanet": lambda: context("deltanet_mini", "deltanet"),
    "hybrid_lm": hybrid_lm,
    "hymba": lambda: context("hymba_mini", "hymba"),
    "iformer": iformer,
    "llamagen_vq": llamagen_vq,
    "mambaad": mambaad,
    "maskmamba": maskmamba,
    "roberta_bilstm": roberta_bilstm,
}


def main(arguments: Sequence[str]) -> int:
    unknown = sorted(set(arguments) - set(PICTURES))
    if unknown:
        print(f"no picture {unknown[0]!r}; known are {', '.join(PICTURES)}", file=sys.stderr)
        return 2
    import torch

    FOLDER.mkdir(exist_ok=True)
    for name in arguments or PICTURES:
        torch.manual_seed(0)
        PICTURES[name]()
        print(name, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
