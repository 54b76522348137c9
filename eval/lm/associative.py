"""MQAR accuracy: the share of questions that a model answers with the right value (`hybridzoo.data.mqar`)."""

from __future__ import annotations

from typing import Any

import torch

from hybridzoo.data.mqar import Mqar
from hybridzoo.data.text_stream import IGNORED
from hybridzoo.errors import InputError


def answer(model: Any, data: Mqar, *, batch_size: int = 64, progress: bool = False) -> list[dict[str, Any]]:
    """One record a sequence: `id`, `questions`, `right`, and the gap of each question with whether it was right.

    Args:
        model: a causal language model in eval mode, on its device.
        data: of a split that was not trained on.
        batch_size: sequences of a forward pass.
        progress: a bar on stderr.

    Raises:
        InputError: the task has more tokens than the model.
    """
    from tqdm import tqdm

    rows = model.get_input_embeddings().num_embeddings
    if data.options.vocab_size > rows:
        raise InputError(f"the task has {data.options.vocab_size} tokens, the model only {rows}")
    records: list[dict[str, Any]] = []
    for begin in tqdm(range(0, len(data), batch_size), disable=not progress, leave=False):
        batch = data.__getitems__(range(begin, min(begin + batch_size, len(data))))
        labels = batch["labels"][:, 1:]
        with torch.inference_mode():
            logits = model(input_ids=batch["input_ids"].to(model.device), use_cache=False).logits[:, :-1]
        right = logits.argmax(-1).cpu() == labels
        asked = labels != IGNORED
        for i in range(len(labels)):
            columns = asked[i].nonzero().flatten()
            hits = right[i, columns].tolist()
            gaps = ((columns - 2 * data.options.pairs) // 2).tolist()
            records.append(
                {
                    "id": str(begin + i),
                    "questions": len(hits),
                    "right": sum(hits),
                    "gaps": [[gap, int(hit)] for gap, hit in zip(gaps, hits)],
                }
            )
    return records


def mqar_metrics(records: list[dict[str, Any]]) -> dict[str, float]:
    """`accuracy` over all questions, 0 to 1."""
    return {"accuracy": sum(r["right"] for r in records) / max(sum(r["questions"] for r in records), 1)}
