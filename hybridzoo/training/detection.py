"""Training of detectors: datasets that hand out whole batches, and validation by average precision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hybridzoo.data.detection.collate import DetectionCollator
from hybridzoo.data.detection.processing import processor_for
from hybridzoo.data.detection.split import DetectionSplit
from hybridzoo.data.detection.transforms import DetectionAugment, TrainTransform
from hybridzoo.errors import ConfigError
from hybridzoo.training.objectives import Objective
from hybridzoo.training.sampling import Key, global_rng_kept, sample_seeds, seed_globals

MODEL_INPUTS = ("pixel_values", "pixel_mask")


class Detection(Objective):
    """Images with boxes; trained with the detector's own losses, validated by average precision."""

    def __init__(self, recipe: Any):
        super().__init__(recipe)
        default = type(recipe.training.augment)()
        for key, value in vars(recipe.training.augment).items():
            if value != getattr(default, key):
                raise ConfigError(
                    f"training.augment.{key} is for classifiers, and {recipe.model.name} detects objects; "
                    "training.box_augment holds the augmentation of images with boxes"
                )

    def model(self, bundle: Any) -> Any:
        """The detector, with the names of the data's classes."""
        from hybridzoo.training.build import build_recipe_model

        return build_recipe_model(self.recipe, bundle.info.label_names)

    def datasets(self, bundle: Any, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """The train split with the recipe's augmentation, and the validation split as evaluation sees it."""
        if bundle.info.task != "object-detection":
            raise ConfigError(
                f"{self.recipe.model.name} detects objects, but {bundle.info.name} is data for {bundle.info.task}"
            )
        section = dict(vars(self.recipe.training.box_augment))
        oversample = section.pop("oversample")
        seed = self.recipe.training.seed
        train = train_dataset(bundle["train"], model.config, section, seed=seed, oversample=oversample)
        validation = bundle.splits.get("validation")
        return train, None if validation is None else eval_dataset(validation, model.config)

    def evaluate(self, trainer: Any, dataset: Any) -> dict[str, float]:
        """Average precision and loss of a dataset, on all processes."""
        batch_size = self.recipe.evaluation.batch_size
        was_training = trainer.model.training
        values = validate(trainer.model, dataset, batch_size, autocast=trainer.autocast_smart_context_manager)
        trainer.model.train(was_training)
        return values

    def final_metrics(self, run: Any, trainer: Any) -> dict[str, float]:
        """Of the final model, on one process."""
        return validate(
            trainer.model,
            trainer.eval_dataset,
            self.recipe.evaluation.batch_size,
            autocast=trainer.autocast_smart_context_manager,
            alone=True,
        )


class DetectionDataset(Dataset):
    """One split through a collator.

    Args:
        split: of a DataBundle.
        collator: with a TrainTransform in training, without one in evaluation.
        seed: None for evaluation (nothing is drawn); else each drawing is seeded with its key.
        indices: images of the split in the order of this dataset, possibly repeated; None: all of them.
    """

    def __init__(
        self,
        split: DetectionSplit,
        collator: DetectionCollator,
        seed: int | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
    ):
        self.split, self.collator, self.seed = split, collator, seed
        self.indices = np.arange(len(split)) if indices is None else np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, Any]:
        """Batch of keys or plain indices; see `DetectionCollator`."""
        places = [int(self.indices[k.index if isinstance(k, Key) else int(k)]) for k in keys]
        if self.seed is None:
            return self.collator([self.split[i] for i in places])
        assert self.collator.transform is not None
        scenes = []
        with global_rng_kept():  # in the main process, dropout draws from the same generators
            for place, seed in zip(places, sample_seeds(self.seed, keys).tolist()):
                seed_globals(seed)
                scenes.append(self.collator.scene(self.split[place]))
        return self.collator.batch(scenes)


class RandomSample:
    """Calls draw a sample of a split from torch's global generator, for copy-paste.

    Args:
        split: drawn from.
    """

    def __init__(self, split: DetectionSplit):
        self.split = split

    def __call__(self) -> Mapping[str, Any]:
        return self.split[int(torch.randint(len(self.split), ()))]


def oversampled(split: DetectionSplit, share: float) -> np.ndarray:
    """Indices of a split in which images of rare classes are repeated, as LVIS recipes do.

    A class in a share f of the images asks for sqrt(share / f) repetitions, at least 1; an image is repeated as often
    as its rarest class asks, rounded up (Gupta et al. 2019, https://arxiv.org/abs/1908.03195, with mmdet's rounding).

    Args:
        split: the train split.
        share: below which classes are rare, e.g. 0.001.
    """
    present = [np.unique(t.labels[~t.crowd]) for t in split.targets]
    counts = np.bincount(np.concatenate([*present, np.zeros(0, np.int64)]).astype(np.int64))
    wanted = np.maximum(1.0, np.sqrt(share * len(split) / np.maximum(counts, 1)))
    times = [math.ceil(wanted[labels].max()) if len(labels) else 1 for labels in present]
    return np.repeat(np.arange(len(split)), times)


def train_dataset(
    split: DetectionSplit, config: Any, augment: Mapping[str, Any], *, seed: int, oversample: float | None = None
) -> DetectionDataset:
    """The train split with a recipe's augmentation.

    Args:
        split: images and boxes; images without objects are kept.
        config: of the model.
        augment: keys of `DetectionAugment`.
        seed: of what is drawn.
        oversample: see `oversampled`; None: every image once.

    Raises:
        ConfigError: an unknown augmentation, or one that the model cannot take.
    """
    chosen = DetectionAugment.from_options(augment)
    processor = processor_for(config)

    transform = TrainTransform(processor, chosen, RandomSample(split))
    if oversample is not None and oversample <= 0:
        raise ConfigError(f"oversample={oversample}: give a share of images above 0, e.g. 0.001, or null")
    indices = None if oversample is None else oversampled(split, oversample)
    return DetectionDataset(split, DetectionCollator(processor, transform), seed, indices)


def eval_dataset(split: DetectionSplit, config: Any) -> DetectionDataset:
    """A split as evaluation sees it."""
    return DetectionDataset(split, DetectionCollator(processor_for(config)))


def validate(
    model: Any, dataset: DetectionDataset, batch_size: int, *, autocast: Any = None, alone: bool = False
) -> dict[str, float]:
    """Average precision (COCO's, as shares) and mean loss of a split, of the model as it is.

    Under `torchrun` every process takes its share of the images, and all return the same numbers.

    Args:
        model: on its device; put into eval mode.
        dataset: of `eval_dataset`.
        batch_size: images per forward.
        autocast: a context manager factory for mixed precision; None computes as the weights are.
        alone: only this process calls.
    """
    from contextlib import nullcontext

    from hybridzoo.eval.metrics.detection import score_detections
    from hybridzoo.eval.metrics.detection_matching import Detections

    rank, world = 0, 1
    if not alone and torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    processor = dataset.collator.processor
    model.eval()
    mine: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
    loss = 0.0
    places = list(range(rank, len(dataset), world))
    with torch.no_grad():
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            batch = dataset.__getitems__(part)
            inputs = {name: batch[name].to(model.device) for name in MODEL_INPUTS}
            labels = [{k: v.to(model.device) for k, v in one.items()} for one in batch["labels"]]
            with nullcontext() if autocast is None else autocast():
                outputs = model(**inputs, labels=labels)
            loss += float(outputs["loss"]) * len(part)
            sizes = torch.stack([one["orig_size"] for one in batch["labels"]])
            found = processor.post_process_object_detection(outputs, 0.0, sizes)
            for place, one in zip(part, found):
                boxes, scores, classes = (one[k].float().cpu().numpy() for k in ("boxes", "scores", "labels"))
                mine.append((place, boxes, scores, classes.astype(np.int64)))
    gathered: list[Any] = [(mine, loss)]
    if world > 1:
        gathered = [None] * world
        torch.distributed.all_gather_object(gathered, (mine, loss))
    rows = sorted((row for part, _ in gathered for row in part), key=lambda row: row[0])
    targets = [dataset.split.targets[int(dataset.indices[row[0]])] for row in rows]
    classes = int(model.config.num_labels)
    scores = score_detections(targets, [Detections(b, s, c) for _, b, s, c in rows], classes)
    values = {name: float(np.nan_to_num(scores.values[name])) for name in ("ap", "ap50", "ap75")}
    return {**values, "loss": sum(part for _, part in gathered) / max(len(dataset), 1)}
