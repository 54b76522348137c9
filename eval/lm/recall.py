"""Completion tasks that measure recall: SWDE, FDA and SQuAD in the cloze form of "Based" (Arora et al. 2024).

A row holds a text that ends where the answer would follow, and the answer (`value`). The model goes on greedily, up to
a line break or 48 tokens; it is right when the answer occurs in what it wrote, upper and lower case alike. That is the
rule of the authors' harness and of lm-evaluation-harness (`swde`, `fda`, `squad_completion`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hybridzoo.data.readers.cloze import Cloze
from hybridzoo.errors import DataError

MAX_NEW_TOKENS = 48


def with_examples(rows: Sequence[Cloze], shots: int) -> list[Cloze]:
    """Each text with `shots` solved ones before it (the rows that follow it, cyclically), as a prompt.

    Raises:
        DataError: not enough rows.
    """
    if shots >= len(rows):
        raise DataError(f"{shots} examples need more than {len(rows)} rows")
    made = []
    for i, row in enumerate(rows):
        others = [rows[(i + 1 + j) % len(rows)] for j in range(shots)]
        made.append(Cloze(row.id, "\n\n".join([*(f"{o.text} {o.value}" for o in others), row.text]), row.value))
    return made


def complete(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Cloze],
    *,
    max_length: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """One record a row: `id`, `answer`, `output` (up to the line break) and `contains`.

    Args:
        model: a causal language model in eval mode, on its device.
        tokenizer: its tokenizer.
        rows: of `read_cloze`.
        max_length: tokens of prompt and answer; the end of a longer prompt is kept. The model's trained length.
        batch_size: rows generated together, the longest first.
        progress: a bar on stderr.
    """
    from tqdm import tqdm

    limit = (max_length or getattr(model.config, "max_position_embeddings", None) or 2048) - MAX_NEW_TOKENS
    prompts = [tokenizer(row.text, verbose=False)["input_ids"][-limit:] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: -len(prompts[i]))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    outputs = [""] * len(rows)
    with tqdm(total=len(rows), unit="row", disable=not progress, leave=False) as bar:
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            width = max(len(prompts[i]) for i in batch)
            ids = torch.full((len(batch), width), pad, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for r, i in enumerate(batch):
                ids[r, width - len(prompts[i]) :] = torch.as_tensor(prompts[i])
                mask[r, width - len(prompts[i]) :] = 1
            with torch.inference_mode():
                made = model.generate(
                    input_ids=ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    max_new_tokens=MAX_NEW_TOKENS,
                    do_sample=False,
                    pad_token_id=pad,
                    eos_token_id=tokenizer.eos_token_id,
                )
            for i, text in zip(batch, tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)):
                outputs[i] = text.partition("\n")[0]
            bar.update(len(batch))
    return [
        {"id": row.id, "answer": row.value, "output": out, "contains": row.value.lower() in out.lower()}
        for row, out in zip(rows, outputs)
    ]
