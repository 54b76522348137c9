"""From samples of a split to model inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hybridzoo.errors import ConfigError, DataError, InputError, unknown

PADDINGS = ("longest", "max_length")
PAD_MULTIPLE = 8  # row lengths are rounded up to this, which GPUs like; never above max_length


class TextCollator:
    """Texts to `input_ids` and `attention_mask` (B, L) int64, padded on the right, and `labels` (B,) where given.

    Args:
        tokenizer: a transformers tokenizer with a padding token.
        max_length: longest row in tokens, special tokens included.
        preprocess: cleaning applied first, see `hybridzoo.data.text_cleaning`.
        padding: `longest` pads to the longest row of the batch, rounded up to a multiple of 8; `max_length` always to
            `max_length`.

    Raises:
        ConfigError: unknown padding, or a tokenizer without a padding token.
    """

    def __init__(self, tokenizer: Any, max_length: int, preprocess: str = "none", padding: str | bool = "longest"):
        padding = {True: "longest"}.get(padding, padding)  # type: ignore[call-overload]
        if padding not in PADDINGS:
            raise ConfigError(unknown("padding", str(padding), PADDINGS))
        if tokenizer.pad_token_id is None:
            raise ConfigError(
                f"the tokenizer {type(tokenizer).__name__} has no padding token; set tokenizer.pad_token first"
            )
        if max_length < 1:
            raise ConfigError(f"max_length must be at least 1 token, got {max_length}")
        self.tokenizer, self.max_length = tokenizer, int(max_length)
        self.preprocess, self.padding = preprocess, padding
        self.clean = cleaner(preprocess)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids with special tokens, at most `max_length` each, not padded."""
        texts = [self.clean(check_text(t)) for t in texts]
        return self.tokenizer(texts, truncation=True, max_length=self.max_length, add_special_tokens=True)["input_ids"]

    def pad(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Encoded rows to `input_ids` and `attention_mask`."""
        longest = max(map(len, rows))
        width = self.max_length
        if self.padding == "longest":
            width = min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, max(self.max_length, longest))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.long)
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.pad(self.encode([s["text"] for s in samples]))
        return batch | _labels(samples)


class ImageCollator:
    """Images to `pixel_values` (B, C, H, W) float32, and `labels` (B,) where given.

    Args:
        transform: from an image to a tensor (`build_transform`).
    """

    def __init__(self, transform: Callable[[Any], torch.Tensor]):
        self.transform = transform

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        images = []
        for sample in samples:
            try:
                images.append(self.transform(sample["image"]))
            except DataError as error:
                raise DataError(f"sample {sample.get('id', '?')}: {error}") from error
        return {"pixel_values": torch.stack(images)} | _labels(samples)


def _labels(samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    key = next((k for k in ("label", "labels") if k in samples[0]), None)
    return {} if key is None else {"labels": torch.tensor([int(s[key]) for s in samples], dtype=torch.long)}


def check_text(text: Any) -> str:
    """The text, if it is one that a tokenizer can take; lone surrogates (bytes that were not UTF-8) are replaced."""
    if not isinstance(text, str):
        raise InputError(f"a text must be a string, got {type(text).__name__} ({str(text)[:40]!r})")
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text


def cleaner(preprocess: str) -> Callable[[str], str]:
    """The cleaning function of a mode of `hybridzoo.data.text_cleaning`; `none` returns the text as it is."""
    if preprocess == "none":
        return str
    from functools import partial

    from hybridzoo.data.text_cleaning import clean_text

    clean_text("", preprocess)  # an unknown mode raises here, not at the first text
    return partial(clean_text, mode=preprocess)
