"""Text classification: strings to labels, in batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from hybridzoo.data.batching import length_batches
from hybridzoo.data.collate import TextCollator, check_text
from hybridzoo.errors import ConfigError, unknown
from hybridzoo.inference.classifier import Classifier, Prediction, check_items

LONG_TEXT = ("truncate", "head_tail", "sliding_window")
TOKENISE_TOGETHER = 512
LONG_CHARACTERS = 50_000  # beyond that a text is cut at white space before it is tokenised, if the rest cannot matter


class TextClassifier(Classifier):
    """Cleans and tokenises as the model's config says, batches by length, predicts, restores the order.

    Args:
        model: a text-classification model.
        tokenizer: its tokenizer; left out, it is loaded from the folder or hub id that the model came from.
        max_length: tokens per window, special tokens included; the config's if left out.
        preprocess: cleaning; the config's if left out.
        long_text: what happens to a text of more than `max_length` tokens: `truncate` keeps its beginning;
            `head_tail` a
            quarter from the beginning and the rest from the end; `sliding_window` averages the logits of windows that
            overlap
            by a quarter.
        device, dtype, abstain: see `Classifier`.

    Raises:
        ConfigError: an unknown strategy, no tokenizer, or a length that the model cannot take.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        max_length: int | None = None,
        preprocess: str | None = None,
        long_text: str = "truncate",
        **options: Any,
    ):
        super().__init__(model, **options)
        if long_text not in LONG_TEXT:
            raise ConfigError(unknown("strategy for long texts", long_text, LONG_TEXT))
        config = self.model.config
        tokenizer = tokenizer or _load_tokenizer(model)
        fixed = getattr(config, "fixed_length", None)
        most = getattr(config, "max_tokens", None)
        length = max_length or fixed or getattr(config, "max_length", None) or min(tokenizer.model_max_length, 512)
        if fixed is not None and length != fixed:
            raise ConfigError(f"this model takes exactly {fixed} tokens a row; max_length={length} cannot be had")
        if most is not None and length > most:
            raise ConfigError(f"max_length={length} is more than the {most} tokens that this model holds")
        self.long_text = long_text
        self.collator = TextCollator(
            tokenizer,
            length,
            preprocess if preprocess is not None else getattr(config, "preprocess", "none"),
            "max_length" if fixed is not None else "longest",
        )
        self.tokenizer, self.max_length = tokenizer, length

    def windows(self, text: str) -> list[list[int]]:
        """Token ids (special tokens included) of the one or several windows that stand for a text."""
        text = self.collator.clean(check_text(text))
        if self.long_text == "truncate":
            return [self._truncated(text)]
        encoded = self.tokenizer(text, add_special_tokens=True, return_special_tokens_mask=True, verbose=False)
        ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
        if len(ids) <= self.max_length:
            return [ids]
        first = next((i for i, s in enumerate(special) if not s), len(ids))
        last = len(ids) - next((i for i, s in enumerate(reversed(special)) if not s), 0)
        before, body, after = ids[:first], ids[first:last], ids[last:]
        room = self.max_length - len(before) - len(after)
        if room < 1:
            raise ConfigError(
                f"max_length={self.max_length} leaves no room beside {len(before) + len(after)} special tokens"
            )
        if self.long_text == "head_tail":
            head = room // 4
            return [[*before, *body[:head], *body[len(body) - (room - head) :], *after]]
        step = max(room - room // 4, 1)
        starts = [*range(0, len(body) - room, step), len(body) - room]
        return [[*before, *body[s : s + room], *after] for s in starts]

    def _windows_of(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """`windows` of each; short texts that are only truncated go to the tokenizer together, which is faster."""
        if self.long_text != "truncate" or any(isinstance(t, str) and len(t) > LONG_CHARACTERS for t in texts):
            return [self.windows(t) for t in texts]
        return [[row] for row in self.collator.encode(texts)]

    def _truncated(self, text: str) -> list[int]:
        def encode(part: str) -> list[int]:
            return self.tokenizer(part, truncation=True, max_length=self.max_length, verbose=False)["input_ids"]

        limit = max(LONG_CHARACTERS, 40 * self.max_length)
        if len(text) > limit:
            cut = max(text.rfind(" ", 0, limit), text.rfind("\n", 0, limit))
            ids = encode(text[:cut]) if cut > 0 else []
            if len(ids) >= self.max_length:  # the window is full, so what was cut off could not have come in
                return ids
        return encode(text)

    def logits(self, texts: Sequence[str], batch_size: int = 32, *, progress: bool = False) -> np.ndarray:
        """(N, K) float32 logits, in the order of the texts.

        Args:
            texts: strings; an empty one is scored on its special tokens alone.
            batch_size: windows per forward.
            progress: show a bar on stderr.

        Raises:
            InputError: an item that is no string.
        """
        texts = check_items(texts, "texts")
        rows, owner = [], []
        with tqdm(total=len(texts), unit="text", desc="tokenise", disable=not progress, leave=False) as bar:
            for start in range(0, len(texts), TOKENISE_TOGETHER):
                part = texts[start : start + TOKENISE_TOGETHER]
                for number, windows in enumerate(self._windows_of(part), start):
                    rows += windows
                    owner += [number] * len(windows)
                bar.update(len(part))
        total = np.zeros((len(texts), len(self.label_names)), np.float64)
        with tqdm(total=len(rows), unit="text", desc="predict", disable=not progress, leave=False) as bar:
            for batch in length_batches([len(r) for r in rows], batch_size):
                logits = self._forward(self.collator.pad([rows[i] for i in batch]))
                np.add.at(total, [owner[i] for i in batch], logits)
                bar.update(len(batch))
        counts = np.bincount(owner, minlength=len(texts)) if owner else np.ones(len(texts))
        return (total / counts[:, None]).astype(np.float32)

    def __call__(self, texts: Sequence[str], batch_size: int = 32, *, progress: bool = False) -> list[Prediction]:
        """One prediction per text, in order."""
        return self.predictions(self.logits(texts, batch_size, progress=progress))


def _load_tokenizer(model: Any) -> Any:
    from transformers import AutoTokenizer

    source = getattr(model, "name_or_path", "") or getattr(model.config, "_name_or_path", "")
    if not source:
        raise ConfigError(
            f"this {type(model).__name__} comes without a tokenizer: pass tokenizer=, or load the model from a "
            f"folder or hub id "
            "that holds one"
        )
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no tokenizer could be loaded from {source} ({str(error).splitlines()[0]}); pass tokenizer="
        ) from error
