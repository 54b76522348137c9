"""Splits of `hybridzoo.data` as datasets that hand out whole, collated batches.

Texts are cleaned and tokenised once, images that fit are decoded once. `__getitems__` takes the keys of a batch and
returns its tensors, so the collate function of the DataLoader is `as_is`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hybridzoo.data.base import DataWarning
from hybridzoo.training.batch_augment import BatchAugment, can_augment
from hybridzoo.training.sampling import Key, global_rng_kept, sample_seeds, seed_globals
from hybridzoo.training.schema import AugmentSection

CACHE_BYTES = 2 * 2**30  # decoded uint8 images or float tensors of one split that are kept in memory
_ENCODE_ROWS = 10_000


def as_is(batch: Any) -> Any:
    """Collate function for datasets whose `__getitems__` already collates."""
    return batch


class TextDataset(Dataset):
    """Token ids of one split, cleaned and tokenised once.

    Args:
        split: of a DataBundle.
        collator: a `hybridzoo.data.collate.TextCollator`; its `encode` and `pad` are used.
    """

    def __init__(self, split: Any, collator: Any):
        self.collator = collator
        self.labels = torch.tensor(list(split.labels), dtype=torch.long)
        stored = stored_tokens(split, collator)
        self.tokens, self.lengths = flat_tokens(split.content, collator) if stored is None else stored
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Any) -> dict[str, torch.Tensor]:
        return {k: v[0] for k, v in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Batch of keys or plain indices: input_ids and attention_mask (B, T) int64, labels (B,) int64."""
        indices = [k.index if isinstance(k, Key) else int(k) for k in keys]
        batch = self.collator.pad([self.tokens[self.starts[i] : self.starts[i + 1]] for i in indices])
        return batch | {"labels": self.labels[torch.tensor(indices)]}


def flat_tokens(texts: Sequence[str], collator: Any) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of all texts, one after the other, int32, and the length of each, int64.

    One flat array: forked loader processes share it, which they cannot do with millions of Python integers.
    """
    parts, lengths = [], []
    for start in range(0, len(texts), _ENCODE_ROWS):
        rows = collator.encode([texts[i] for i in range(start, min(start + _ENCODE_ROWS, len(texts)))])
        lengths += [len(row) for row in rows]
        parts.append(np.fromiter((t for row in rows for t in row), dtype=np.int32))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32), np.array(lengths, dtype=np.int64)


def stored_tokens(split: Any, collator: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """As `flat_tokens` for a split that keeps its texts as words of a small vocabulary (`data.lra.tokens.TokenTexts`).

    None where the texts must go through the tokenizer: it has other words, cleans, or adds special tokens.
    """
    content: Any = getattr(split, "content", None)
    if getattr(content, "words", None) is None or not len(split) or collator.preprocess != "none":
        return None
    ids = np.array(collator.tokenizer.convert_tokens_to_ids(list(content.words)), dtype=np.int32)
    first = ids[content.flat[: content.starts[1]]][: collator.max_length]
    if collator.encode([content[0]])[0] != first.tolist():
        return None
    lengths = np.minimum(np.diff(content.starts), collator.max_length)
    longer = int((np.diff(content.starts) > collator.max_length).sum())
    if longer:
        warnings.warn(
            f"{longer} of {len(split)} samples have more than the {collator.max_length} tokens that this model takes; "
            "they are cut off there",
            DataWarning,
            stacklevel=2,
        )
        kept = [content.flat[a : a + n] for a, n in zip(content.starts[:-1], lengths)]
        return ids[np.concatenate(kept)], lengths
    return ids[content.flat], lengths


class PairDataset(Dataset):
    """Token ids of pairs of texts, each text by itself; otherwise as TextDataset.

    Args:
        split: of a DataBundle, of kind `text_pair`.
        collator: see TextDataset.
    """

    def __init__(self, split: Any, collator: Any):
        self.collator = collator
        self.labels = torch.tensor(list(split.labels), dtype=torch.long)
        parts, lengths = [], []
        for start in range(0, len(split), _ENCODE_ROWS // 10):
            pairs = split.content[start : start + _ENCODE_ROWS // 10]
            tokens, counts = flat_tokens([text for pair in pairs for text in pair], collator)
            parts.append(tokens.astype(np.uint16) if not len(tokens) or tokens.max() < 2**16 else tokens)
            lengths.append(counts)
        self.text_lengths = np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)
        self.lengths = self.text_lengths.reshape(-1, 2).max(1) if len(split) else self.text_lengths
        self.starts = np.concatenate([[0], np.cumsum(self.text_lengths)])
        self.tokens = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint16)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Any) -> dict[str, torch.Tensor]:
        return {k: v[0] for k, v in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Batch of keys or plain indices: input_ids, attention_mask, pair_input_ids, pair_attention_mask, each (B, T)
        int64 with a T of its own for the second texts, and labels (B,) int64.
        """
        indices = [k.index if isinstance(k, Key) else int(k) for k in keys]
        first, second = (self.collator.pad([self._row(2 * i + part) for i in indices]) for part in (0, 1))
        batch = first | {f"pair_{name}": value for name, value in second.items()}
        return batch | {"labels": self.labels[torch.tensor(indices)]}

    def _row(self, number: int) -> np.ndarray:
        return self.tokens[self.starts[number] : self.starts[number + 1]].astype(np.int64)


class SortedTextDataset(Dataset):
    """A TextDataset or PairDataset in order of length, for evaluation: batches of similar length are little padded."""

    def __init__(self, inner: TextDataset | PairDataset):
        self.inner = inner
        self.order = np.argsort(-inner.lengths, kind="stable")
        self.labels = inner.labels[torch.from_numpy(self.order)]

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.inner[int(self.order[index])]

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """See TextDataset."""
        return self.inner.__getitems__([int(self.order[i]) for i in indices])


class ImageDataset(Dataset):
    """Images of one split, through a transform.

    Args:
        split: of a DataBundle.
        transform: PIL image -> tensor (C, H, W).
        seed: None for evaluation (the transform is fixed); else each drawing of the transform is seeded with its key.
        cache: keep the transformed tensors, for evaluation of small splits.
    """

    def __init__(
        self, split: Any, transform: Callable[[Any], torch.Tensor], seed: int | None = None, cache: bool = False
    ):
        self.split, self.transform, self.seed = split, transform, seed
        self.labels = torch.tensor(list(split.labels), dtype=torch.long)
        self.cached: torch.Tensor | None = None
        if cache and seed is None and len(split):
            first = transform(split[0]["image"])
            if first.numel() * 4 * len(split) <= CACHE_BYTES:
                self.cached = torch.empty((len(split), *first.shape), dtype=torch.float32)
                for i in range(len(split)):
                    self.cached[i] = transform(split[i]["image"])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Any) -> dict[str, torch.Tensor]:
        return {k: v[0] for k, v in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Batch of keys or plain indices: pixel_values (B, C, H, W) float32, labels (B,) int64."""
        indices = [k.index if isinstance(k, Key) else int(k) for k in keys]
        if self.cached is not None:
            pixels = self.cached[torch.tensor(indices)]
        elif self.seed is None:
            pixels = torch.stack([self.transform(self.split[i]["image"]) for i in indices])
        else:
            seeds = sample_seeds(self.seed, keys)
            images = []
            with global_rng_kept():  # in the main process, dropout draws from the same generators
                for i, seed in zip(indices, seeds.tolist()):
                    seed_globals(seed)
                    images.append(self.transform(self.split[i]["image"]))
            pixels = torch.stack(images)
        return {"pixel_values": pixels, "labels": self.labels[torch.tensor(indices)]}


class CachedImageDataset(Dataset):
    """Train split of small images: decoded once into one uint8 array, augmented by the batch.

    Args:
        images: (N, C, H, W) uint8.
        labels: class indices.
        augment: see BatchAugment.
        seed: of the augmentation.
    """

    def __init__(self, images: torch.Tensor, labels: Sequence[int], augment: BatchAugment, seed: int):
        self.images, self.augment, self.seed = images, augment, seed
        self.labels = torch.tensor(list(labels), dtype=torch.long)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> dict[str, torch.Tensor]:
        return {k: v[0] for k, v in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, torch.Tensor]:
        """Batch of keys: pixel_values (B, C, H, W) float32, labels (B,) int64."""
        indices = torch.tensor([k.index for k in keys])
        pixels = self.augment(self.images[indices], sample_seeds(self.seed, keys))
        return {"pixel_values": pixels, "labels": self.labels[indices]}


def decode_small(split: Any, *, height: int, width: int, channels: int) -> torch.Tensor | None:
    """All images of a split as (N, C, H, W) uint8, or None unless each has that size and all fit into memory."""
    if not len(split) or len(split) * channels * height * width > CACHE_BYTES:
        return None
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None or split[0]["image"].size != (width, height):
        return None
    stored = getattr(getattr(split, "content", None), "array", None)  # data sets that are one array already (IDX files)
    if stored is not None and stored.dtype == np.uint8 and stored.size == len(split) * channels * height * width:
        planes = torch.from_numpy(np.ascontiguousarray(stored)).view(len(split), height, width, channels)
        return planes.permute(0, 3, 1, 2).contiguous()
    array = np.empty((len(split), height, width, channels), dtype=np.uint8)
    for i in range(len(split)):
        image = split[i]["image"]
        if image.size != (width, height):
            return None
        array[i] = np.asarray(image.convert(mode)).reshape(height, width, channels)
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()


def train_images(
    split: Any, config: Any, augment: AugmentSection, transform: Callable[[Any], torch.Tensor], seed: int
) -> ImageDataset | CachedImageDataset:
    """The fastest dataset that does the recipe's augmentation.

    Args:
        split: the train split.
        config: a model config with image_size, num_channels, image_mean, image_std.
        augment: of the recipe.
        transform: the train transform, used when the batch form cannot do it.
        seed: of the augmentation.
    """
    if can_augment(augment):
        side = config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        images = decode_small(split, height=height, width=width, channels=config.num_channels)
        if images is not None:
            batch_augment = BatchAugment(augment, list(config.image_mean), list(config.image_std))
            return CachedImageDataset(images, split.labels, batch_augment, seed)
    return ImageDataset(split, transform, seed=seed)
