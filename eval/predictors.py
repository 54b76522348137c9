"""What the harness asks for logits: a model of the zoo in a classifier, or a baseline fitted on the spot."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo import registry
from hybridzoo._paths import asset_root
from hybridzoo.data import DataBundle, Split
from hybridzoo.errors import ConfigError
from hybridzoo.eval import record
from hybridzoo.eval.schema import ModelRef
from hybridzoo.eval.tasks import Task


def load_predictor(
    model: Any, spec: Task, device: Any, dtype: str, name: str | None, options: dict[str, Any]
) -> ZooPredictor:
    """A model in memory, or of a name, folder or hub id, ready to predict; `hybridzoo.eval.harness.run_task` says
    what it takes.
    """
    from hybridzoo.inference.classifier import pick_device

    place = pick_device(device)
    recipe: dict[str, Any] = {}
    uri: str | None = "in memory"
    shown, note = name, ""
    if isinstance(model, (str, Path)):
        from hybridzoo.loading import build_model

        text = str(model)
        folder = Path(text.removeprefix("local-dir:")).expanduser()
        if folder.is_dir() and (isinstance(model, Path) or "/" in text or not registry.is_model(text)):
            recipe = record.read_recipe(folder)
            shown = (
                shown or f"{recipe['name'].partition('.')[0]}.{folder.resolve().name}" if recipe.get("name") else shown
            )
            shown = shown or folder.resolve().name
            uri = f"local-dir:{folder.resolve().name}"
            built = build_model(folder)
        elif registry.is_model(text):
            entry, tag = registry.get_model(text)
            tag = tag or entry.default_tag
            uri = entry.tags[tag].uri if tag else None
            if uri is not None and uri.startswith("checkpoints:"):
                recipe = record.read_recipe(asset_root("checkpoints") / uri.removeprefix("checkpoints:"))
            shown = shown or (f"{entry.name}.{tag}" if tag else entry.name)
            built = build_model(f"{entry.name}.{tag}" if tag else entry.name, pretrained=tag is not None)
        else:
            uri, built = text, build_model(text)
            shown = shown or text.removeprefix("hf-hub:").replace("/", "__").partition("@")[0]
    else:
        built = model
        source = getattr(model, "name_or_path", "")
        shown = shown or (Path(source).name if source else type(model).__name__)
    if uri is None:
        note = "random weights: this model has no published ones"
        warnings.warn(f"{shown} has no published weights; random ones are evaluated", UserWarning, stacklevel=4)
    return ZooPredictor(built, spec, place, dtype, shown or "model", uri, recipe, note, options)


class ZooPredictor:
    """A classifier with what the result says about it."""

    def __init__(
        self,
        model: Any,
        spec: Task,
        device: Any,
        dtype: str,
        name: str,
        uri: str | None,
        recipe: dict[str, Any],
        note: str,
        options: dict[str, Any],
    ):
        from hybridzoo.eval.kinds import record_kind
        from hybridzoo.inference import ImageClassifier, TextClassifier, TextPairClassifier

        task = getattr(model, "task", None)
        if task is not None and task != spec.kind:
            raise ConfigError(f"{name} does {task}, but task {spec.name!r} needs a model for {spec.kind}")
        self.spec, self.recipe, self.note = spec, recipe, note
        kind = record_kind(spec.kind)
        if kind is not None:
            self.classifier: Any = kind.predictor(model, spec, device, dtype, options)
        else:
            classifiers = {"text-classification": TextClassifier, "text-pair-classification": TextPairClassifier}
            self.classifier = classifiers.get(spec.kind, ImageClassifier)(model, device=device, dtype=dtype, **options)
        self.device_name = record.device_name(self.classifier.device)
        config = model.config
        if kind is not None:
            settings = dict(self.classifier.settings)
        elif isinstance(self.classifier, TextClassifier):
            settings = {
                "max_length": self.classifier.max_length,
                "long_text": self.classifier.long_text,
                "preprocess": self.classifier.collator.preprocess,
                "temperature": float(getattr(config, "temperature", 1.0)),
            }
        else:
            keys = ("image_size", "num_channels", "crop_pct", "interpolation")
            settings = {k: getattr(config, k) for k in keys if hasattr(config, k)}
        base, _, tag = name.partition(".")
        self.reference: ModelRef = record.describe_model(model, name=base, tag=tag or None, uri=uri, settings=settings)

    def logits(self, bundle: DataBundle, split: Split, batch_size: int, num_workers: int, progress: bool) -> np.ndarray:
        """(N, K) logits in the order of the data's classes."""
        order = match_labels(self.classifier.label_names, bundle.info.label_names, self.reference.full_name)
        if split.kind in ("text", "text_pair"):
            logits = self.classifier.logits(split.content, batch_size, progress=progress)
        else:
            logits = self.classifier.logits(split, batch_size, num_workers=num_workers, progress=progress)
        return logits if order is None else logits[:, order]

    def records(
        self, bundle: DataBundle, split: Any, batch_size: int, num_workers: int, progress: bool
    ) -> list[dict[str, Any]]:
        """One record per sample, of tasks that score records."""
        return self.classifier.records(bundle, split, batch_size=batch_size, num_workers=num_workers, progress=progress)

    def peak_memory_mb(self) -> float | None:
        """Of the GPU, since the process began."""
        import torch

        if self.classifier.device.type != "cuda":
            return None
        return round(torch.cuda.max_memory_allocated(self.classifier.device) / 2**20, 1)


class BaselinePredictor:
    """A baseline of `eval/baselines`, fitted on the train split of the task's data."""

    def __init__(self, name: str, bundle: DataBundle, seed: int):
        from hybridzoo.eval.baselines import load_baseline

        self.model = load_baseline(name, task=bundle.info.task)
        self.recipe: dict[str, Any] = {"seed": seed}
        self.note = "fitted on the train split in this run"
        self.device_name = "CPU"
        self.model.fit(bundle["train"], seed=seed)
        self.reference = ModelRef(
            name=f"baseline_{record.safe_name(name)}", family="baseline", settings=dict(self.model.settings)
        )

    def logits(self, bundle: DataBundle, split: Split, batch_size: int, num_workers: int, progress: bool) -> np.ndarray:
        return np.asarray(self.model.logits(split))

    def peak_memory_mb(self) -> None:
        return None


def match_labels(model: Sequence[str], data: Sequence[str], name: str) -> list[int] | None:
    """Positions of the data's classes among the model's, None for the same order.

    Names are compared without case. A model with generic names (LABEL_0 …), or any 1,000-class model on ImageNet's
    wnids, is taken to
    have the data's order.

    Raises:
        ConfigError: another number of classes, or other names.
    """
    if len(model) != len(data):
        raise ConfigError(
            f"{name} has {len(model)} classes ({', '.join(model[:4])} …), the data {len(data)} "
            f"({', '.join(data[:4])} …)"
        )
    left, right = [n.strip().lower() for n in model], [n.strip().lower() for n in data]
    generic = all(n == f"label_{i}" or n == str(i) for i, n in enumerate(left))
    wnids = len(right) == 1000 and all(n[:1] == "n" and n[1:].isdigit() for n in right)
    if left == right or generic or (wnids and set(left) != set(right)):
        return None
    if sorted(left) != sorted(right) or len(set(left)) != len(left):
        raise ConfigError(
            f"{name} predicts {', '.join(model[:6])}, the data has {', '.join(data[:6])}; set id2label in the "
            f"model's config"
        )
    return [left.index(n) for n in right]
