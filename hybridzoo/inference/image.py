"""Image classification: files, PIL images or arrays to labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hybridzoo.data.collate import ImageCollator
from hybridzoo.data.transforms import build_transform
from hybridzoo.inference.classifier import Classifier, Prediction, check_items


class ImageClassifier(Classifier):
    """Preprocesses as the model's config says, batches, predicts.

    Args:
        model: an image-classification model of the zoo.
        channels_last: keep activations in NHWC memory, which convolutions on GPUs like.
        device, dtype, abstain: see `Classifier`.
    """

    def __init__(self, model: Any, *, channels_last: bool = False, **options: Any):
        super().__init__(model, **options)
        self.transform = build_transform(self.model.config, train=False)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.model.to(memory_format=torch.channels_last)

    def logits(
        self, images: Sequence[Any], batch_size: int = 32, *, num_workers: int = 0, progress: bool = False
    ) -> np.ndarray:
        """(N, K) float32 logits, in the order of the images.

        Args:
            images: paths, PIL images, uint8 arrays (H, W[, 3]), preprocessed tensors (C, H, W), or samples of a
                `Split`.
            batch_size: images per forward.
            num_workers: processes that read and preprocess.
            progress: show a bar on stderr.

        Raises:
            DataError: an image that is missing or damaged; it is named.
        """
        images = check_items(images, "images")
        if not len(images):
            return np.empty((0, len(self.label_names)), np.float32)
        loader = torch.utils.data.DataLoader(
            _Samples(images),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=ImageCollator(self.transform),
            pin_memory=self.device.type == "cuda",
        )
        rows = []
        with tqdm(total=len(images), unit="img", disable=not progress, leave=False) as bar:
            for batch in loader:
                rows.append(
                    self._forward({"pixel_values": batch["pixel_values"].contiguous(memory_format=self.layout)})
                )
                bar.update(len(rows[-1]))
        return np.concatenate(rows)

    def __call__(self, images: Sequence[Any], batch_size: int = 32, **options: Any) -> list[Prediction]:
        """One prediction per image; options as in `logits`."""
        return self.predictions(self.logits(images, batch_size, **options))


class _Samples(torch.utils.data.Dataset):
    """Images, or samples of a Split, as {"id", "image"}."""

    def __init__(self, images: Sequence[Any]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.images[index]
        if isinstance(item, dict):
            return {"id": item["id"], "image": item["image"]}
        return {"id": str(index), "image": item}
