"""Training of anomaly detectors: normal images of all classes, the model's own loss, thresholds at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hybridzoo.data.anomaly.transforms import normalise, stack_images
from hybridzoo.errors import ConfigError
from hybridzoo.training.generation import validation_loss
from hybridzoo.training.objectives import Objective
from hybridzoo.training.sampling import Key

CACHE_BYTES = 2 << 30  # prepared images are kept up to so many bytes; larger sets are read again in every epoch


class AnomalyDataset(Dataset):
    """Images of a split without augmentation; hands out whole batches.

    Args:
        split: an AnomalySplit.
        config: of the model, says how images are prepared.
    """

    def __init__(self, split: Any, config: Any) -> None:
        self.split, self.config = split, config
        self.labels = torch.tensor(split.labels, dtype=torch.long)
        self.images: Tensor | None = None
        if len(split) * config.num_channels * config.image_size**2 <= CACHE_BYTES:
            # one at a time: the originals may be many times larger
            self.images = torch.cat([stack_images([split[i]], config) for i in range(len(split))])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Any) -> dict[str, Tensor]:
        return {k: v[0] for k, v in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, Tensor]:
        """Batch of keys or plain indices: pixel_values (B, C, S, S) float32, labels (B,) int64."""
        indices = torch.tensor([k.index if isinstance(k, Key) else int(k) for k in keys])
        if self.images is not None:
            images = self.images[indices]
        else:
            images = stack_images([self.split[i] for i in indices.tolist()], self.config)
        return {"pixel_values": normalise(images, self.config), "labels": self.labels[indices]}


class AnomalyDetection(Objective):
    """A model of what is normal; images that are labelled anomalous do not count in the loss."""

    def __init__(self, recipe: Any):
        super().__init__(recipe)
        default = type(recipe.training.augment)()
        for key, value in vars(recipe.training.augment).items():
            if value != getattr(default, key):
                raise ConfigError(
                    f"training.augment.{key}: anomaly detectors are trained without augmentation, which would make "
                    "strange images normal; vary the images of your data set instead"
                )

    def datasets(self, bundle: Any, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """Train and validation images."""
        if bundle.info.task != "anomaly-detection":
            raise ConfigError(
                f"{self.recipe.model.name} detects anomalies, but {bundle.info.name} is data for {bundle.info.task}"
            )
        if not self.recipe.model.backbone and not self.recipe.model.weights and not self.recipe.model.pretrained:
            raise ConfigError(
                "the teacher of an anomaly detector must be trained: give model.backbone=FILE with ImageNet weights of "
                f"{model.config.teacher} (or its timm tag), or model.weights="
            )
        validation = bundle.splits.get("validation")
        train = AnomalyDataset(bundle["train"], model.config)
        return train, None if validation is None else AnomalyDataset(validation, model.config)

    def evaluate(self, trainer: Any, dataset: Any) -> dict[str, float]:
        """The loss of a dataset's normal images. Each process computes all of it."""
        return {"loss": self._loss(trainer, dataset)}

    def final_metrics(self, run: Any, trainer: Any) -> dict[str, float]:
        """The loss; and both thresholds, chosen on the validation split's normal images."""
        from hybridzoo.inference.anomaly import AnomalyDetector

        dataset = trainer.eval_dataset
        normal = [i for i, label in enumerate(dataset.split.labels) if not label]
        if normal:
            AnomalyDetector(trainer.model, device=trainer.args.device).calibrate(dataset.split.select(normal))
        return {"loss": self._loss(trainer, dataset)}

    def _loss(self, trainer: Any, dataset: Any) -> float:
        return validation_loss(self.recipe, trainer, dataset, lambda _, batch: int((batch["labels"] == 0).sum()))
