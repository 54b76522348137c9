"""Training sets of image tokenizers and of models of their codes, from any set of images or of extracted codes.

A tokenizer ("image-tokenization") sees the images themselves. A model of codes ("image-generation") sees codes: those
of a set that holds codes, or else those that its tokenizer gives for each image, computed once when the training starts
(with `training.augment.hflip` also of the mirrored images, one of the two per drawing). Which codes are masked is a
function of (seed, epoch, image), like every augmentation here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hybridzoo.errors import ConfigError
from hybridzoo.training.objectives import Objective
from hybridzoo.training.sampling import Key, sample_seeds, uniforms
from hybridzoo.training.schema import AugmentSection, Recipe

TOKENIZE, GENERATE = "image-tokenization", "image-generation"
ENCODE_BATCH = 256
_VALIDATION_SEED = 7


class CodeDataset(Dataset):
    """Masked codes of one split.

    Args:
        codes: (N, A, T) integers: A versions (mirrored, cropped) of each image's T codes.
        labels: (N,) classes.
        masking: uniforms -> batch, see `Masking` of the model.
        seed: of the drawings.
        fixed: every sample is always drawn alike, in its first version (validation).
        texts: index -> (C, E) features, for a text-conditional model; then there are no classes.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        labels: Sequence[int],
        masking: Any,
        seed: int,
        *,
        fixed: bool = False,
        texts: Callable[[int], torch.Tensor] | None = None,
    ) -> None:
        self.codes, self.masking, self.seed, self.fixed, self.texts = codes, masking, seed, fixed, texts
        self.labels = torch.tensor(list(labels), dtype=torch.long)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, key: Any) -> dict[str, torch.Tensor]:
        return {k: v[0] for k, v in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Batch of keys or plain indices: input_ids and labels (B, T) int64, condition_drop (B,) bool, and
        class_labels (B,) int64 or text_embeds (B, C, E).
        """
        keys = [k if isinstance(k, Key) else Key(0, int(k), 0) for k in keys]
        if self.fixed:
            keys = [Key(0, k.index, 0) for k in keys]
        versions, tokens = self.codes.shape[1:]
        u = uniforms(sample_seeds(self.seed, keys), 1 + self.masking.draws(tokens))
        index = torch.tensor([k.index for k in keys])
        version = torch.zeros_like(index) if self.fixed else torch.from_numpy((u[:, 0] * versions).astype(np.int64))
        batch = self.masking(self.codes[index, version].long(), torch.from_numpy(u[:, 1:]).float())
        if self.texts is not None:
            return batch | {"text_embeds": _left_padded([self.texts(int(i)) for i in index])}
        return batch | {"class_labels": self.labels[index]}


def _left_padded(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """(length_i, E) each -> (B, longest, E), zeros before the shorter ones."""
    longest = max(len(f) for f in features)
    return torch.stack([torch.nn.functional.pad(f, (0, 0, longest - len(f), 0)) for f in features])


def build_datasets(recipe: Recipe, bundle: Any, model: Any) -> tuple[Dataset, Dataset | None]:
    """Train and validation set (None without that split) of a tokenizer or of a model of codes.

    Raises:
        ConfigError: options that mean nothing here, or a tokenizer that does not belong to the model.
    """
    train, validation = bundle["train"], bundle.splits.get("validation")
    if type(model).task == TOKENIZE:
        return _pixels(recipe, train, model), None if validation is None else _plain_pixels(validation, model)
    config = model.config
    tokenizer = None if train.kind == "codes" else load_tokenizer(config)

    def dataset(split: Any, training: bool) -> CodeDataset:
        if tokenizer is None:
            codes = stored_codes(split, config.grid_size**2)
        else:
            codes = encode_split(tokenizer, split, hflip=training and recipe.training.augment.hflip > 0)
        _check_codes(codes, config, bundle.info.name, len(split))
        seed = recipe.training.seed if training else _VALIDATION_SEED
        masking = model.masking(training=training)
        return CodeDataset(codes, split.labels, masking, seed, fixed=not training, texts=_texts(split, config))

    return dataset(train, True), None if validation is None else dataset(validation, False)


def load_tokenizer(config: Any) -> Any:
    """The tokenizer that a model's config names, with its weights, on the GPU if there is one.

    Raises:
        ConfigError: none is named, or another one was meant.
    """
    from hybridzoo.inference.classifier import pick_device
    from hybridzoo.inference.image_generation import check_tokenizer
    from hybridzoo.loading import build_model

    if config.tokenizer is None:
        raise ConfigError(
            "model.config.tokenizer is null, so images cannot be turned into codes: name a tokenizer (a registered "
            "model with weights, a folder or a hub id), or train on a set of codes"
        )
    from hybridzoo import registry

    known = registry.is_model(config.tokenizer)
    if known and not registry.get_model(config.tokenizer)[0].tags:
        raise ConfigError(
            f"model.config.tokenizer={config.tokenizer} has no trained weights in the registry: train one "
            "(`hybridzoo train maskmamba/tokenizer_fashion_mnist_mini`) and give its run folder"
        )
    tokenizer = build_model(config.tokenizer, pretrained=True) if known else build_model(config.tokenizer)
    if type(tokenizer).task != TOKENIZE:
        raise ConfigError(f"model.config.tokenizer={config.tokenizer} does {type(tokenizer).task}, not {TOKENIZE}")
    check_tokenizer(config, tokenizer.config)
    return tokenizer.to(pick_device(None)).eval()


@torch.inference_mode()
def encode_split(tokenizer: Any, split: Any, *, hflip: bool = False, batch_size: int = ENCODE_BATCH) -> torch.Tensor:
    """Codes of all images of a split.

    Args:
        tokenizer: its config's size, channels and normalisation prepare the images (central crop).
        split: of a DataBundle, with images.
        hflip: also of the mirrored images.
        batch_size: images per forward.

    Returns:
        (N, A, T) int32 on the CPU, A = 2 with hflip.
    """
    pixels = _plain_pixels(split, tokenizer)
    parts = []
    for start in range(0, len(split), batch_size):
        indices = range(start, min(start + batch_size, len(split)))
        images = pixels.__getitems__(list(indices))["pixel_values"].to(tokenizer.device)
        both = (images, images.flip(-1)) if hflip else (images,)
        codes = torch.stack([tokenizer.encode(x).indices.flatten(1) for x in both], dim=1)
        parts.append(codes.to(torch.int32).cpu())
    return torch.cat(parts)


def stored_codes(split: Any, tokens: int) -> torch.Tensor:
    """(N, A, T) integers of a split that holds codes."""
    first = np.asarray(split.content[0])
    versions = first.size // tokens
    if versions < 1 or first.size % tokens:
        raise ConfigError(
            f"the codes have {first.shape} numbers per image and the model has {tokens} tokens; are they of another "
            "image size or another tokenizer? (model.config.image_size, model.config.downsample)"
        )
    rows = [np.asarray(split.content[i]).reshape(versions, tokens) for i in range(len(split))]
    stacked = np.stack(rows)
    return torch.from_numpy(stacked.astype(np.int16 if stacked.max(initial=0) < 2**15 else np.int32))


def _check_codes(codes: torch.Tensor, config: Any, name: str, count: int) -> None:
    if len(codes) != count or codes.shape[2] != config.grid_size**2:
        raise ConfigError(
            f"{name} gives {tuple(codes.shape)} codes for {count} images; the model has {config.grid_size**2} tokens "
            f"(image_size={config.image_size}, downsample={config.downsample})"
        )
    high = int(codes.max())
    if int(codes.min()) < 0 or high >= config.codebook_size:
        raise ConfigError(
            f"{name} holds codes up to {high} and the model's codebook_size is {config.codebook_size}: they come from "
            "another tokenizer"
        )


def _texts(split: Any, config: Any) -> Callable[[int], torch.Tensor] | None:
    content: Any = getattr(split, "content", None)
    return None if getattr(content, "texts", None) is None else partial(_features, content, config.text_length)


def _features(content: Any, length: int, index: int) -> torch.Tensor:
    return torch.from_numpy(content.text_features(index)[:length])


def _pixels(recipe: Recipe, split: Any, model: Any) -> Dataset:
    from hybridzoo.data.transforms import build_transform
    from hybridzoo.training.datasets import train_images

    augment = {k: v for k, v in dataclasses.asdict(recipe.training.augment).items() if v not in (None, 0, 0.0)}
    transform = build_transform(model.config, train=True, augment=augment)
    return train_images(split, model.config, recipe.training.augment, transform, recipe.training.seed)


def _plain_pixels(split: Any, model: Any) -> Any:
    """The split's images without augmentation, decoded at once where they are small."""
    from hybridzoo.data.transforms import build_transform
    from hybridzoo.training.batch_augment import BatchAugment
    from hybridzoo.training.datasets import CachedImageDataset, ImageDataset, decode_small

    config = model.config
    images = decode_small(split, height=config.image_size, width=config.image_size, channels=config.num_channels)
    if images is not None:
        plain = BatchAugment(AugmentSection(), list(config.image_mean), list(config.image_std))
        return _ByIndex(CachedImageDataset(images, split.labels, plain, 0))
    return ImageDataset(split, build_transform(config, train=False))


class _ByIndex(Dataset):
    """A set that hands out by key, by plain index."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.labels = inner, inner.labels

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: Any) -> dict[str, torch.Tensor]:
        return {k: v[0] for k, v in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[Any]) -> dict[str, torch.Tensor]:
        """See CachedImageDataset."""
        return self.inner.__getitems__([i if isinstance(i, Key) else Key(0, int(i), 0) for i in indices])


class ImageTokenization(Objective):
    """A tokenizer learns to give its images back; labels of the data are not looked at."""

    def datasets(self, bundle: Any, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """See `build_datasets`."""
        if bundle["train"].kind != "image":
            raise ConfigError(f"{self.recipe.model.name} learns from images; {bundle.info.name} holds none")
        return build_datasets(self.recipe, bundle, model)

    def evaluate(self, trainer: Any, dataset: Any) -> dict[str, float]:
        """`loss`, and `codebook_usage`: the share of codes that the split needs. Each process computes all of it."""
        return self._validate(trainer, dataset)

    def final_metrics(self, run: Any, trainer: Any) -> dict[str, float]:
        """The same of the final weights."""
        return self._validate(trainer, trainer.eval_dataset)

    def _validate(self, trainer: Any, dataset: Any) -> dict[str, float]:
        used = torch.zeros(trainer.model.config.codebook_size, dtype=torch.bool)

        def note(outputs: Any, batch: Any) -> float:
            used[outputs.indices.unique().cpu()] = True
            return len(outputs.indices)

        loss = validation_loss(self.recipe, trainer, dataset, note)
        return {"loss": loss, "codebook_usage": float(used.float().mean())}


class ImageGeneration(Objective):
    """A model of codes learns to name the masked ones."""

    def model(self, bundle: Any) -> Any:
        """The data's classes become the model's, where it is class-conditional."""
        from hybridzoo.training.build import build_recipe_model

        model = build_recipe_model(self.recipe, bundle.info.label_names, device="meta")
        text = getattr(model.config, "condition", "class") == "text"
        return build_recipe_model(self.recipe, None if text else bundle.info.label_names)

    def datasets(self, bundle: Any, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """See `build_datasets`."""
        if bundle["train"].kind not in ("image", "codes"):
            raise ConfigError(f"{self.recipe.model.name} learns from images or codes; {bundle.info.name} holds neither")
        return build_datasets(self.recipe, bundle, model)

    def evaluate(self, trainer: Any, dataset: Any) -> dict[str, float]:
        """`loss` and `accuracy` (share of masked codes that the best guess names), of fixed masks."""
        return self._validate(trainer, dataset)

    def final_metrics(self, run: Any, trainer: Any) -> dict[str, float]:
        """The same of the final weights."""
        return self._validate(trainer, trainer.eval_dataset)

    def _validate(self, trainer: Any, dataset: Any) -> dict[str, float]:
        counts, mask_id = [0, 0], trainer.model.config.mask_token_id

        def note(outputs: Any, batch: Any) -> float:
            masked = batch["input_ids"] == mask_id
            hits = (outputs.logits.argmax(-1) == batch["labels"]) & masked
            counts[0] += int(hits.sum())
            counts[1] += int(masked.sum())
            return int(masked.sum())

        loss = validation_loss(self.recipe, trainer, dataset, note)
        return {"loss": loss, "accuracy": counts[0] / max(counts[1], 1)}


@torch.no_grad()
def validation_loss(recipe: Recipe, trainer: Any, dataset: Any, weigh: Callable[[Any, Any], float]) -> float:
    """Mean loss of a dataset with the model in eval mode; `weigh(outputs, batch)` gives a batch's weight."""
    model, device = trainer.model, trainer.args.device
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.training.precision)
    total, weights, was_training = 0.0, 0.0, model.training
    model.eval()
    try:
        for start in range(0, len(dataset), recipe.evaluation.batch_size):
            indices = list(range(start, min(start + recipe.evaluation.batch_size, len(dataset))))
            batch = {k: v.to(device) for k, v in dataset.__getitems__(indices).items()}
            with torch.autocast(device.type, dtype=half, enabled=half is not None):
                outputs = model(**batch)
            weight = weigh(outputs, batch)
            total, weights = total + float(outputs.loss) * weight, weights + weight
    finally:
        model.train(was_training)
    return total / max(weights, 1e-12)
