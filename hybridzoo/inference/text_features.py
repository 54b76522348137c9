"""Texts -> features of a T5 encoder, as text-conditional image models read them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import InputError


class TextFeatures:
    """The last hidden state of a T5 encoder for texts of up to `length` tokens.

    Args:
        source: folder or hub id, or (encoder, tokenizer) in memory.
        length: tokens; longer texts are cut.
        device: where the encoder runs.

    Raises:
        SourceError: the encoder cannot be read.
    """

    def __init__(self, source: Any, length: int, *, device: torch.device | str = "cpu") -> None:
        if isinstance(source, str):
            from transformers import AutoTokenizer, T5EncoderModel

            from hybridzoo.hub import hub_errors

            with hub_errors(source):
                source = (T5EncoderModel.from_pretrained(source), AutoTokenizer.from_pretrained(source))
        encoder, self.tokenizer = source
        self.encoder, self.length = encoder.to(device).eval(), length

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> Tensor:
        """(B, length, width): each text's features at the right end, zeros before them.

        Raises:
            InputError: no text.
        """
        if not texts:
            raise InputError("give at least one text")
        batch = self.tokenizer(
            texts, max_length=self.length, padding="max_length", truncation=True, return_tensors="pt"
        ).to(self.encoder.device)
        features = self.encoder(**batch).last_hidden_state
        mask = batch["attention_mask"].bool()
        features = features * mask.unsqueeze(-1)
        if getattr(self.tokenizer, "padding_side", "right") == "right":  # valid tokens go to the right end
            order = mask.long().argsort(dim=1, stable=True)
            features = features.gather(1, order.unsqueeze(-1).expand_as(features))
        return features.clone()
