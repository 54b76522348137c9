"""Image generation in the harness: samples of every class, measured against the real images of a split.

Protocol: `count` images, every class alike, from seeds that follow from one; the reference is the task's split (its
test images). The Fréchet distance carries the name of its network: `fid` with the official Inception weights,
`fd_efflite` with EfficientNet-Lite0. `class_accuracy` is the share of samples that a separately trained classifier
gives the class they were made for; `class_accuracy_real` is how often it is right about the real images, every class
alike, which says what the former is worth.

A record holds one sample, `{"id", "label", "predicted", "codes"}`: the classifier's class, and of the first thousand
samples the codes, from which the tokenizer makes the very image again (the others follow from the seed).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo._atomic_file import whole_file
from hybridzoo.errors import ConfigError
from hybridzoo.eval.metrics.generation import (
    FeatureStatistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    save_images_npz,
)
from hybridzoo.eval.metrics.generation_features import EfficientNetLite0, FeatureNetwork, FidInception
from hybridzoo.eval.schema import Metric

NETWORKS = ("efflite", "inception")
NEIGHBOURS = 3
KEPT_CODES = 1000  # samples whose codes stand in the records


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How samples are made and measured.

    Attributes:
        count: samples; a multiple of the number of classes.
        steps, cfg_scale, temperature: of the model's `generate`; None: what the model's config recommends.
        cfg_schedule, order: of the model's `generate`.
        samples_at_once: images of one call of `generate`.
        efflite_weights: `efficientnet-lite0-57934424.pth`; None leaves FD-EffLite out.
        inception_weights: torch-fidelity's Inception weights; "download" lets torch-fidelity fetch them; None leaves
            FID out.
        classifier: a model of the task "image-classification" with the data's classes; None leaves the accuracy out.
        tokenizer: None: the one that the model names.
        seed: of the samples.
        save_npz: also write the samples there, for ADM's evaluator.
    """

    count: int = 10_000
    steps: int | None = None
    cfg_scale: float | None = None
    cfg_schedule: str = "linear"
    temperature: float | None = None
    order: str = "confidence"
    samples_at_once: int = 250
    efflite_weights: str | None = None
    inception_weights: str | None = None
    classifier: str | None = None
    tokenizer: str | None = None
    seed: int = 0
    save_npz: str | None = None

    def sampling(self, config: Any) -> dict[str, Any]:
        """Options of `generate`, those left out as a model's config has them (`sampling_steps`, …)."""
        chosen = {key: getattr(self, key) for key in ("steps", "cfg_scale", "temperature")}
        chosen = {k: getattr(config, f"sampling_{k}") if v is None else v for k, v in chosen.items()}
        return {**chosen, "cfg_schedule": self.cfg_schedule, "order": self.order}


@dataclass
class Samples:
    """Images (N, H, W, C) uint8, their classes (N,) and codes (N, T)."""

    images: np.ndarray
    labels: np.ndarray
    codes: np.ndarray


@dataclass
class GenerationScores:
    """What `evaluate_generation` returns.

    Attributes:
        metrics: by name.
        records: one per sample.
        samples: the images.
        details: accuracy per class, the references' own distances.
    """

    metrics: dict[str, Metric]
    records: list[dict[str, Any]]
    samples: Samples
    details: dict[str, Any] = field(default_factory=dict)


def evaluate_generation(
    model: Any,
    reference: Any,
    options: GenerationOptions,
    *,
    data_sha256: str = "",
    device: Any = None,
    dtype: str = "float32",
    log: Callable[[str], None] = lambda line: None,
) -> GenerationScores:
    """Make samples of a model and measure them.

    Args:
        model: of the task "image-generation": in memory, a folder, or a registered name.
        reference: split of a DataBundle with the real images.
        options: see GenerationOptions.
        data_sha256: of the data, under which features of the reference are cached; empty caches nothing.
        device: left out: a GPU if there is one.
        dtype: of the model, "float32" or "bfloat16".
        log: is told what happens.

    Raises:
        ConfigError: nothing to measure with, or a count that the classes do not divide.
        CheckpointError, InputError, DataError: each names what was given and the fix.
    """
    from hybridzoo.inference.image_generation import ImageGenerator

    networks = load_networks(options, device)
    if not networks and options.classifier is None:
        raise ConfigError(
            "nothing to measure the samples with: give efflite_weights= (FD-EffLite), inception_weights= (FID) or "
            "classifier="
        )
    generator = ImageGenerator(model, options.tokenizer, device=device, dtype=dtype)
    samples = make_samples(generator, options, log)
    if options.save_npz is not None:
        save_images_npz(samples.images, options.save_npz, samples.labels)
    metrics: dict[str, Metric] = {}
    details: dict[str, Any] = {}
    real = split_images(reference, samples.images.shape[1:3])
    for network in networks:
        log(f"features of {network.name}")
        truth = reference_features(network, real, data_sha256)
        fake, probabilities = network(samples.images)
        metrics |= feature_metrics(network, truth, fake, probabilities)
    predicted: np.ndarray | None = None
    if options.classifier is not None:
        log(f"classes by {options.classifier}")
        predicted = classify(options.classifier, samples.images, generator, device)
        right = predicted == samples.labels
        share = float(right.mean())
        metrics["class_accuracy"] = Metric(value=100 * share, stderr=100 * (share * (1 - share) / len(right)) ** 0.5)
        metrics["class_accuracy_real"] = mean_over_classes(
            classify(options.classifier, real, generator, device), np.asarray(reference.labels)
        )
        details["class_accuracy"] = {
            str(generator.model.config.id2label[int(c)]): round(100 * float(right[samples.labels == c].mean()), 2)
            for c in np.unique(samples.labels)
        }
    return GenerationScores(metrics, records_of(samples, predicted), samples, details)


def make_samples(generator: Any, options: GenerationOptions, log: Callable[[str], None]) -> Samples:
    """Samples of all classes in turn: 0, 1, …, 0, 1, …

    Raises:
        ConfigError: a text-conditional model, or a count that the classes do not divide.
    """
    import torch

    from hybridzoo.inference.image_generation import to_uint8

    config = generator.model.config
    if getattr(config, "condition", "class") != "class":
        raise ConfigError("this protocol makes images of classes, and the model is text-conditional")
    classes = config.num_labels
    if options.count < 1 or options.count % classes:
        raise ConfigError(f"count={options.count} must be a multiple of the model's {classes} classes")
    labels, sampling = np.arange(options.count) % classes, options.sampling(config)
    images, codes = [], []
    for number, start in enumerate(range(0, options.count, options.samples_at_once)):
        part = torch.from_numpy(labels[start : start + options.samples_at_once])
        seed = options.seed * 1_000_003 + number
        with torch.inference_mode(), generator.autocast():
            found = generator.model.generate(part, generator=seed, **sampling)
        with torch.inference_mode():
            pixels = generator.tokenizer.decode_code(found)
        images.append(to_uint8(pixels))
        codes.append(found.flatten(1).cpu().numpy())
        log(f"{start + len(part)} of {options.count} samples")
    return Samples(np.concatenate(images), labels, np.concatenate(codes))


def load_networks(options: GenerationOptions, device: Any) -> list[FeatureNetwork]:
    """The feature networks whose weights are given."""
    from hybridzoo.inference.classifier import pick_device

    place, found = pick_device(device), []
    if options.efflite_weights is not None:
        found.append(EfficientNetLite0(options.efflite_weights, place))
    if options.inception_weights is not None:
        given = options.inception_weights
        found.append(FidInception(None if given == "download" else given, place))
    return found


def feature_metrics(
    network: FeatureNetwork, real: np.ndarray, fake: np.ndarray, probabilities: np.ndarray
) -> dict[str, Metric]:
    """Distances, precision and recall in one network's features; the Inception score only with FID's own network."""
    name = network.distance
    official = isinstance(network, FidInception)
    suffix = "" if official else f"_{name.removeprefix('fd_')}"
    distance = frechet_distance(FeatureStatistics.of(real), FeatureStatistics.of(fake))
    kernel, deviation = kernel_distance(real, fake, device=network.device)
    precision, recall = precision_recall(real, fake, neighbours=NEIGHBOURS, device=network.device)
    made = {
        name: Metric(value=distance, unit=""),
        "kid" if official else f"kd{suffix}": Metric(value=kernel, stderr=deviation, unit=""),
        f"precision{suffix}": Metric(value=100 * precision),
        f"recall{suffix}": Metric(value=100 * recall),
    }
    if official:
        score, spread = inception_score(probabilities)
        made["inception_score"] = Metric(value=score, stderr=spread, unit="")
    return made


def split_images(split: Any, size: tuple[int, int]) -> np.ndarray:
    """(N, H, W, C) uint8 images of a split at the size (H, W) of the samples, cut as ADM does (`centre_crop`)."""
    made = [np.asarray(centre_crop(split[i]["image"], size)) for i in range(len(split))]
    if len({image.ndim for image in made}) != 1:  # some grey, some coloured
        made = [image if image.ndim == 3 else np.repeat(image[..., None], 3, -1) for image in made]
    images = np.stack(made)
    return images[..., None] if images.ndim == 3 else images


def centre_crop(image: Any, size: tuple[int, int]) -> Any:
    """A PIL image halved (box) while twice too large, resized (bicubic) to cover (H, W), and cut in the middle."""
    from PIL import Image

    height, width = size
    image = image if image.mode in ("L", "RGB") else image.convert("RGB")
    if image.size == (width, height):
        return image
    while min(image.width / width, image.height / height) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def reference_features(network: FeatureNetwork, images: np.ndarray, data_sha256: str) -> np.ndarray:
    """(N, F) features of the real images; kept in the cache under the data's digest, and read from there."""
    if not data_sha256:
        return network(images)[0]
    digest = hashlib.sha256(f"{data_sha256} {images.shape}".encode() + images[:: max(1, len(images) // 64)].tobytes())
    path = cache_folder() / f"{network.name}-{digest.hexdigest()[:24]}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                return file["features"]
        except (OSError, KeyError, ValueError):
            path.unlink(missing_ok=True)  # half-written by a killed process
    features = network(images)[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as staged, staged.open("wb") as file:
        np.savez(file, features=features)
    return features


def cache_folder() -> Path:
    """Where features of reference images are kept: `$HYBRIDZOO_CACHE/features`, or below `~/.cache/hybridzoo`."""
    return Path(os.environ.get("HYBRIDZOO_CACHE", Path.home() / ".cache" / "hybridzoo")) / "features"


def classify(classifier: str, images: np.ndarray, generator: Any, device: Any) -> np.ndarray:
    """(N,) classes in the order of the generator's.

    Raises:
        ConfigError: a classifier of other classes.
    """
    from hybridzoo.inference import ImageClassifier
    from hybridzoo.inference.image_generation import load_part

    judge = ImageClassifier(load_part(classifier, "classifier"), device=device)
    names = [str(generator.model.config.id2label[i]) for i in range(generator.model.config.num_labels)]
    if set(judge.label_names) != set(names):
        raise ConfigError(
            f"classifier {classifier} knows {', '.join(judge.label_names[:6])}, … and the samples are of "
            f"{', '.join(names[:6])}, …: give a classifier of the same classes"
        )
    flat = [image[..., 0] if image.shape[-1] == 1 else image for image in images]
    order = [names.index(name) for name in judge.label_names]
    return np.asarray(order)[judge.logits(flat, 250).argmax(1)]


def mean_over_classes(predicted: np.ndarray, labels: np.ndarray) -> Metric:
    """Share of right predictions in per cent, the mean over the classes that `labels` has."""
    shares = [(float((predicted[labels == c] == c).mean()), int((labels == c).sum())) for c in np.unique(labels)]
    error = sum(p * (1 - p) / n for p, n in shares) ** 0.5 / len(shares)
    return Metric(value=100 * sum(p for p, _ in shares) / len(shares), stderr=100 * error)


def records_of(samples: Samples, predicted: np.ndarray | None) -> list[dict[str, Any]]:
    """One plain dictionary per sample."""
    rows: list[dict[str, Any]] = []
    for i, label in enumerate(samples.labels.tolist()):
        row: dict[str, Any] = {"id": f"sample-{i:06d}", "label": label}
        if predicted is not None:
            row["predicted"] = int(predicted[i])
        if i < KEPT_CODES:
            row["codes"] = samples.codes[i].tolist()
        rows.append(row)
    return rows


def accuracy_of(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of records whose predicted class is the one asked for; None without predictions."""
    if not records or "predicted" not in records[0]:
        return None
    return sum(r["predicted"] == r["label"] for r in records) / len(records)
