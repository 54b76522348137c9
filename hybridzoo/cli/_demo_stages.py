"""The stages of `hybridzoo demo`: which trained model is shown on which embedded task, and what is drawn of it."""

from __future__ import annotations

import fnmatch
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybridzoo.errors import HybridzooError

# Samples that are made, where as many as the test set has would take minutes on two cores.
LIMITS = {"image-generation": 200}
PROMPT = "It is a truth universally acknowledged, that"
TEXTS = ("VERY funny, smart and surprising!!", "The plot makes no sense.", "It is ok :)")


@dataclass(frozen=True)
class Stage:
    """One model: `folder` in checkpoints/, its task of the registry, and the evaluation task (None: pictures only)."""

    name: str
    folder: Path
    kind: str
    task: str | None


@dataclass
class Done:
    """What a stage gave."""

    result: Any
    seconds: float
    pictures: list[Path] = field(default_factory=list)
    text: str = ""


# Which models ------------------------------------------------------------------------------------------------------


def find_stages(root: Path, patterns: Sequence[str] = ()) -> tuple[list[Stage], list[tuple[str, str]]]:
    """Stages for the folders below `root`, cheapest kind first; and (name, reason) of those that cannot be shown."""
    stages, left_out = [], []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []:
        name = folder.name
        if name.startswith(("_", ".")) or (patterns and not any(fnmatch.fnmatch(name, p) for p in patterns)):
            continue
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            left_out.append((name, "there are no weights in its folder"))
            continue
        try:
            stages.append(_stage(folder))
        except HybridzooError as error:
            left_out.append((name, str(error)))
    order = list(_SHOW)
    return sorted(stages, key=lambda s: (order.index(s.kind) if s.kind in order else len(order), s.name)), left_out


def _stage(folder: Path) -> Stage:
    from hybridzoo import registry
    from hybridzoo.errors import CheckpointError, ConfigError

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} is not JSON ({error})") from error
    classes = config.get("architectures") or [""]
    kind = next(
        (
            task
            for family in registry.families().values()
            for task, target in family.model_classes.items()
            if target.rpartition(":")[2] == classes[0]
        ),
        None,
    )
    if kind is None:
        raise ConfigError(f"{classes[0]!r} is no model class of the zoo")
    if kind == "image-tokenization":
        return Stage(folder.name, folder, kind, None)
    labels = [str(v) for _, v in sorted((config.get("id2label") or {}).items(), key=lambda item: int(item[0]))]
    task = _embedded_task(folder, kind, labels)
    if task is None:
        raise ConfigError(f"no embedded task fits a model for {kind} with the classes {', '.join(labels[:4]) or '-'}")
    return Stage(folder.name, folder, kind, task)


def _embedded_task(folder: Path, kind: str, labels: list[str]) -> str | None:
    """The task that the recipe names, or that is on its data, or any of the kind with the same classes."""
    from hybridzoo.data import data_spec, load_data
    from hybridzoo.eval.predictors import match_labels
    from hybridzoo.eval.tasks import TASKS

    recipe = _recipe(folder)
    named = (recipe.get("evaluation") or {}).get("tasks") or []
    data = (recipe.get("data") or {}).get("name")
    embedded = [t for t in TASKS.values() if t.kind == kind and not data_spec(t.data).needs]
    embedded.sort(key=lambda t: (t.name not in named, t.data not in (data, f"{data}_mini")))
    for task in embedded:
        if kind == "text-generation":
            known = task.name in named or task.data == data
            if known or (task.data != "mqar" and (folder / "tokenizer.json").is_file()):
                return task.name
            continue
        if kind == "anomaly-detection":
            return task.name
        try:
            match_labels(labels, load_data(task.data).info.label_names, folder.name)
        except HybridzooError:
            continue
        return task.name
    return None


def _recipe(folder: Path) -> dict[str, Any]:
    import yaml

    try:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


# One stage ---------------------------------------------------------------------------------------------------------


def run_stage(stage: Stage, out: Path, say: Callable[[str], None]) -> Done:
    """Build the model, evaluate it, draw what it does; `say` is told each step.

    Raises:
        HybridzooError: the model cannot be built, run or scored.
    """
    from hybridzoo import build_model
    from hybridzoo.eval.harness import run_task

    begin = time.perf_counter()
    model = build_model(stage.folder).eval()
    parameters = sum(p.numel() for p in model.parameters())
    say(f"built: {type(model).__name__}, {parameters:,} parameters, from {stage.folder.name}/")
    show = _SHOW.get(stage.kind)
    if stage.task is None:
        assert show is not None
        made = Done(None, 0.0)
        made.pictures = list(show(model, stage, None, out / "pictures" / stage.name, say))
        made.text = "image and reconstruction"
        return replace(made, seconds=time.perf_counter() - begin)
    say(f"evaluating on {stage.task} …")
    more: dict[str, Any] = {"count": LIMITS[stage.kind]} if stage.kind == "image-generation" else {}
    if stage.kind == "image-generation" and not getattr(model.config, "tokenizer", None):
        more["tokenizer"] = str(stage.folder.parent / "llamagen_vq_mini")
    done = run_task(
        stage.folder,
        stage.task,
        name=stage.name,
        out=out / "results",
        progress=sys.stderr.isatty(),
        **more,
    )
    metric = done.result.metrics[done.result.task.primary]
    speed = done.result.efficiency.throughput if done.result.efficiency else None
    say(f"{done.result.task.primary} = {metric.value:.4g}" + (f", {speed:,.0f} samples/s" if speed else ""))
    assert done.path is not None
    pictures = list(show(model, stage, done, done.path.with_suffix(""), say)) if show else []
    return Done(done.result, time.perf_counter() - begin, pictures)


def _beside(stem: Path, kind: str) -> Path:
    stem.parent.mkdir(parents=True, exist_ok=True)
    return stem.with_name(f"{stem.name}.{kind}")


def _show_texts(model: Any, stage: Stage, done: Any, stem: Path, say: Callable[[str], None]) -> Iterable[Path]:
    from hybridzoo.inference import TextClassifier

    if stage.task == "vader":
        for text, found in zip(TEXTS, TextClassifier(model, device="cpu")(list(TEXTS))):
            say(f"{found['label']:>9} {found['score']:.2f}  {text}")
    return _confusion(done, stem)


def _show_images(model: Any, stage: Stage, done: Any, stem: Path, say: Callable[[str], None]) -> Iterable[Path]:
    from hybridzoo.inference import ImageClassifier

    split = done.bundle[done.result.task.dataset.split]
    names = done.bundle.info.label_names
    samples = [split[i] for i in range(min(4, len(split)))]
    for sample, found in zip(samples, ImageClassifier(model, device="cpu")([s["image"] for s in samples])):
        say(f"{found['label']:>12} {found['score']:.2f}  (is: {names[sample['label']]})")
    return _confusion(done, stem)


def _confusion(done: Any, stem: Path) -> Iterable[Path]:
    """The matrix as a picture too; the page draws its own."""
    from hybridzoo.eval.metrics.plots import save_confusion_matrix

    matrix = done.result.details.get("confusion_matrix")
    path = _beside(stem, "confusion.png")
    title = f"{done.result.model.full_name} on {done.result.task.name}"
    if matrix and save_confusion_matrix(matrix["counts"], matrix["labels"], path, title=title):
        yield path


def _show_kind(model: Any, stage: Stage, done: Any, stem: Path, say: Callable[[str], None]) -> Iterable[Path]:
    """What the task's kind draws of its records: heat maps, grids of samples, curves."""
    from hybridzoo.eval.kinds import record_kind

    kind = record_kind(stage.kind)
    assert kind is not None
    return kind.pictures(done.predictions, done.result, stem, done.bundle, 0)


def _show_text_generation(
    model: Any, stage: Stage, done: Any, stem: Path, say: Callable[[str], None]
) -> Iterable[Path]:
    import textwrap

    from hybridzoo.inference.generation import Sampling, TextGenerator

    if not (stage.folder / "tokenizer.json").is_file():
        return
    say("writing …")
    (text,) = TextGenerator(model, device="cpu")([PROMPT], Sampling(max_new_tokens=80, temperature=0.7))
    for line in textwrap.wrap(f"{PROMPT}{text}", 90)[:8]:
        say(f"  {line}")
    path = _beside(stem, "text.txt")
    path.write_text(f"[{PROMPT}]{text}\n", encoding="utf-8")
    yield path


def _show_reconstructions(
    model: Any, stage: Stage, done: Any, stem: Path, say: Callable[[str], None]
) -> Iterable[Path]:
    """Ten embedded images above what the tokenizer makes of their codes."""
    import numpy as np
    import torch

    from hybridzoo.data import load_data
    from hybridzoo.inference.image_generation import image_grid, to_pil, to_uint8

    split = load_data("fashion_mnist_mini")["test"]
    images = np.stack([np.asarray(split[i]["image"].convert("L")) for i in range(10)])
    channels = int(getattr(model.config, "num_channels", 1))
    pixels = torch.from_numpy(images).float()[:, None].repeat(1, channels, 1, 1) / 127.5 - 1
    with torch.inference_mode():
        again = to_uint8(model.decode_code(model.encode(pixels).indices))
    error = float(((again.astype(float) - to_uint8(pixels).astype(float)) ** 2).mean())
    say(f"10 images to codes and back: PSNR {10 * np.log10(255**2 / max(error, 1e-9)):.1f} dB")
    path = _beside(stem, "reconstructions.png")
    image_grid([*to_pil(to_uint8(pixels)), *to_pil(again)], columns=10).save(path)
    yield path


_SHOW: dict[str, Callable[..., Iterable[Path]]] = {
    "text-classification": _show_texts,
    "image-classification": _show_images,
    "object-detection": _show_kind,
    "anomaly-detection": _show_kind,
    "text-generation": _show_text_generation,
    "image-tokenization": _show_reconstructions,
    "image-generation": _show_kind,
}
