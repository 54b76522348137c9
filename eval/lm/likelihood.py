"""How probable a model finds texts: negative log-likelihood of documents of any length, in overlapping windows.

Every token of a document is scored once, with at least `max_length - stride` tokens before it where the document has so
many. The first token is predicted from the beginning-of-text token. Bits per byte do not depend on the tokenizer:
models with different vocabularies can be compared by them, not by perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hybridzoo.errors import ConfigError

DEFAULT_LENGTH = 2048


@dataclass(frozen=True)
class Window:
    """Tokens [start, end) of a document, of which [first, end) are scored."""

    document: int
    start: int
    first: int
    end: int


def windows(lengths: Sequence[int], max_length: int, stride: int) -> Iterator[Window]:
    """Windows over documents of so many tokens, the one that stands before the text included.

    Raises:
        ConfigError: a stride that leaves no context, or more than the window.
    """
    if not 1 <= stride < max_length:
        raise ConfigError(f"stride={stride} must be 1 to max_length - 1 ({max_length - 1}): a window needs context")
    for document, length in enumerate(lengths):
        first = 1
        while first < length:
            end = min(length, max(first + stride, max_length if first == 1 else 0))
            yield Window(document, max(0, end - max_length), first, end)
            first = end


def prefix_token(tokenizer: Any) -> int:
    """What stands before a text: the beginning-of-text token, else the end-of-text token."""
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(tokenizer, name) is not None:
            return int(getattr(tokenizer, name))
    raise ConfigError(f"the tokenizer {type(tokenizer).__name__} has neither a bos_token nor an eos_token")


def document_likelihoods(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> list[dict[str, float]]:
    """One record a document: `nll` in nats, `tokens` scored, `bytes` (UTF-8) and `words` (separated by white space).

    Args:
        model: a causal language model in eval mode, on its device.
        tokenizer: its tokenizer.
        texts: documents; an empty one has the record 0, 0, 0, 0.
        max_length: tokens of a window; the length the model was trained on, at most 2,048, if left out.
        stride: tokens that a window scores anew; half of `max_length` if left out.
        batch_size: windows of a forward pass.
        progress: a bar on stderr.

    Raises:
        ConfigError: impossible windows, or a tokenizer without a token to begin with.
    """
    from tqdm import tqdm

    trained = getattr(model.config, "max_position_embeddings", None) or DEFAULT_LENGTH
    max_length = int(max_length or min(trained, DEFAULT_LENGTH))
    stride = stride or max(max_length // 2, 1)
    before = prefix_token(tokenizer)
    rows = [
        [before, *tokenizer(t, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]]
        for t in texts
    ]
    todo = sorted(windows([len(row) for row in rows], max_length, stride), key=lambda w: w.start - w.end)
    nll = np.zeros(len(rows))
    with tqdm(total=len(todo), unit="window", disable=not progress, leave=False) as bar:
        for begin in range(0, len(todo), batch_size):
            batch = todo[begin : begin + batch_size]
            for window, value in zip(batch, _score(model, rows, batch)):
                nll[window.document] += value
            bar.update(len(batch))
    return [
        {
            "nll": float(value),
            "tokens": len(row) - 1,
            "bytes": len(text.encode("utf-8", "surrogatepass")),
            "words": len(text.split()),
        }
        for value, row, text in zip(nll, rows, texts)
    ]


def _score(model: Any, rows: Sequence[Sequence[int]], batch: Sequence[Window]) -> list[float]:
    """Summed negative log-likelihood of the scored tokens of each window."""
    width = max(w.end - w.start for w in batch)
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, w in enumerate(batch):
        ids[i, : w.end - w.start] = torch.as_tensor(rows[w.document][w.start : w.end])
        mask[i, : w.end - w.start] = 1
    device = model.device
    padding = {} if bool(mask.all()) else {"attention_mask": mask.to(device)}
    with torch.inference_mode():
        logits = model(input_ids=ids.to(device), use_cache=False, **padding).logits
    found = []
    for i, w in enumerate(batch):
        targets = ids[i, w.first - w.start : w.end - w.start].to(device)
        of = logits[i, w.first - w.start - 1 : w.end - w.start - 1].float()
        found.append(float(F.cross_entropy(of, targets, reduction="sum")))
    return found


def likelihood_metrics(records: Sequence[dict[str, float]]) -> dict[str, float]:
    """`bits_per_byte`, `perplexity` (of tokens) and `word_perplexity` of all documents together.

    Args:
        records: of `document_likelihoods`; any subset of documents.
    """
    nll, tokens, size, words = (sum(r[key] for r in records) for key in ("nll", "tokens", "bytes", "words"))
    return {
        "bits_per_byte": nll / (math.log(2) * max(size, 1)),
        "perplexity": math.exp(min(nll / max(tokens, 1), 700)),
        "word_perplexity": math.exp(min(nll / max(words, 1), 700)),
    }
