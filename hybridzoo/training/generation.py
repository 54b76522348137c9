"""Training sets of image tokenizers and of models of their codes, from any set of images or of extracted codes.

A tokenizer ("image-tokenization") sees the images themselves. A model of codes ("image-generation") sees codes: those
of a set that holds codes, or else those that its tokenizer gives for each image, computed once when the training starts
(with `training.augment.hflip` also of the mirrored images, one of the two per drawing). Which codes are masked is a
function of (seed, epoch, image), like every augmentation here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hybridzoo.errors import ConfigError
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
            return batch | {"text_embeds": torch.stack([self.texts(int(i)) for i in index])}
        return batch | {"class_labels": self.labels[index]}


def build_datasets(recipe: Recipe, bundle: Any, model: Any) -> tuple[Dataset, Dataset | None]:
    """Train and validation set (None without that split) of a tokenizer or of a model of codes.

    Raises:
        ConfigError: options that mean nothing here, or a tokenizer that does not belong to the model.
    """
    _check(recipe)
    train, validation = bundle["train"], bundle.splits.get("validation")
    if type(model).task == TOKENIZE:
        return _pixels(recipe, train, model), None if validation is None else _plain_pixels(validation, model)
    grid = model.config.grid_size**2
    if train.kind == "codes":
        parts = [None if s is None else stored_codes(s, grid) for s in (train, validation)]
    else:
        hflip = recipe.training.augment.hflip > 0
        tokenizer = load_tokenizer(model.config)
        parts = [encode_split(tokenizer, train, hflip=hflip)]
        parts.append(None if validation is None else encode_split(tokenizer, validation))
    for split, codes in zip((train, validation), parts):
        if codes is not None:
            _check_codes(codes, model.config, bundle.info.name, len(split))
    seed = recipe.training.seed
    learn, check = model.masking(), model.masking(training=False)
    train_set = CodeDataset(parts[0], train.labels, learn, seed, texts=_texts(train))
    if validation is None:
        return train_set, None
    return train_set, CodeDataset(
        parts[1], validation.labels, check, _VALIDATION_SEED, fixed=True, texts=_texts(validation)
    )


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
    """(N, A, T) int32 of a split that holds codes."""
    first = np.asarray(split.content[0])
    versions = first.size // tokens
    if versions < 1 or first.size % tokens:
        raise ConfigError(
            f"the codes have {first.shape} numbers per image and the model has {tokens} tokens; are they of another "
            "image size or another tokenizer? (model.config.image_size, model.config.downsample)"
        )
    rows = [np.asarray(split.content[i]).reshape(versions, tokens) for i in range(len(split))]
    return torch.from_numpy(np.stack(rows).astype(np.int32))


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


def _check(recipe: Recipe) -> None:
    t = recipe.training
    wrong = [k for k in ("label_smoothing", "mixup", "cutmix") if getattr(t, k)]
    wrong += ["class_weights"] if t.class_weights != "none" else []
    wrong += ["calibrate_temperature"] if t.calibrate_temperature else []
    if wrong:
        raise ConfigError(
            f"training.{wrong[0]} is for classifiers; a model of codes has its own label_smoothing in model.config"
        )
    if recipe.evaluation.metric != "loss":
        raise ConfigError(f"evaluation.metric={recipe.evaluation.metric}: for generation the only one is loss")


def _texts(split: Any) -> Callable[[int], torch.Tensor] | None:
    features = getattr(split.content, "text_features", None)
    return None if features is None else features


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
