"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290): `training.objective: dpo`.

    loss = -log sigmoid(beta * ((log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected))))

where log p sums over the tokens of an answer, its end included, given the prompt. The reference is a frozen copy of the
model as the recipe builds it, so a run that goes on from a checkpoint has the same one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from hybridzoo.data.text_stream import IGNORED
from hybridzoo.data.text_stream_tokenizers import check_vocabulary
from hybridzoo.errors import ConfigError
from hybridzoo.training.language_modeling import LanguageModeling, note_special_tokens, shares
from hybridzoo.training.sampling import Key
from hybridzoo.training.schema import Recipe

KIND = "preference"  # of the splits


class PreferencePairs(Dataset):
    """Tokenised pairs; a batch of n pairs has 2n rows, first the chosen answers, then the rejected ones.

    Args:
        tokenizer: of transformers; prompts that are messages need its chat template.
        pairs: `hybridzoo.data.readers.preferences.Pair`s.
        length: tokens of a row at most: an answer keeps its beginning, a prompt its end.

    Raises:
        ConfigError: messages, and a tokenizer without a chat template.
    """

    def __init__(self, tokenizer: Any, pairs: Sequence[Any], length: int):
        if any(not isinstance(p.prompt, str) for p in pairs) and not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "the prompts are conversations, and the tokenizer has no chat template: give a tokenizer that has one "
                "(data.tokenizer), or prompts as texts"
            )
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.rows: list[tuple[list[int], list[int], list[int]]] = []  # prompt, chosen, rejected
        for pair in pairs:
            answers = [
                (tokenizer(text, add_special_tokens=False)["input_ids"] + end)[: length - 1]
                for text in (pair.chosen, pair.rejected)
            ]
            room = length - max(map(len, answers))
            self.rows.append((self._prompt(tokenizer, pair.prompt)[-room:], *answers))
        self.lengths = np.array([len(p) + max(len(a), len(b)) for p, a, b in self.rows], dtype=np.int64)

    @staticmethod
    def _prompt(tokenizer: Any, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            ids = tokenizer(prompt)["input_ids"]
            return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids  # the answer goes on
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> dict[str, Tensor]:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, Tensor]:
        """Batch of keys or plain indices: input_ids, attention_mask, labels (2n, T) int64, padded on the right."""
        rows = [self.rows[k.index if isinstance(k, Key) else int(k)] for k in keys]
        whole = [(p, a) for p, a, _ in rows] + [(p, b) for p, _, b in rows]
        width = max(len(p) + len(a) for p, a in whole)
        batch = {
            "input_ids": torch.full((len(whole), width), self.pad, dtype=torch.long),
            "attention_mask": torch.zeros(len(whole), width, dtype=torch.long),
            "labels": torch.full((len(whole), width), IGNORED, dtype=torch.long),
        }
        for i, (prompt, answer) in enumerate(whole):
            size = len(prompt) + len(answer)
            batch["input_ids"][i, :size] = torch.tensor(prompt + answer)
            batch["attention_mask"][i, :size] = 1
            batch["labels"][i, len(prompt) : size] = torch.tensor(answer)
        return batch


def answer_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """(R,) log probability of each row's labelled tokens; logits (R, T, V), labels (R, T) with -100 elsewhere."""
    flat, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    nats = F.cross_entropy(flat, targets, ignore_index=IGNORED, reduction="none")
    return -nats.view(len(labels), -1).sum(1)


def dpo_loss(ours: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(mean loss, margins (n,)) of log probabilities (2n,), chosen answers first."""
    chosen, rejected = (ours - reference).chunk(2)
    margins = beta * (chosen - rejected)
    return -F.logsigmoid(margins).mean(), margins


class Preference(LanguageModeling):
    """DPO on pairs of answers."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        if recipe.evaluation.metric not in ("loss", "accuracy"):
            raise ConfigError(
                f"evaluation.metric: {recipe.evaluation.metric!r} is not for training.objective: dpo; choose loss, or "
                "accuracy (share of the pairs whose chosen answer gains more than the rejected one)"
            )
        if self.batching.stream:
            raise ConfigError("data.options.stream: pairs of answers are read whole; leave it out")
        self.reference: Any = None
        self._sums: Tensor | None = None  # margins, right, pairs since the last log entry

    def datasets(self, bundle: Any, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """Train and validation pairs; the model as it is now becomes the reference."""
        if bundle["train"].kind != KIND:
            raise ConfigError(
                f"training.objective: dpo learns from pairs of answers (data.name: preferences), not {bundle.info.name}"
            )
        check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings, type(model).__name__)
        note_special_tokens(model, tokenizer)
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        length = self.batching.sequence_length
        made = {n: PreferencePairs(tokenizer, split.content, length) for n, split in bundle.splits.items()}
        return made["train"], made.get("validation")

    def loss(self, trainer: Any, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """See `dpo_loss`."""
        loss, margins, outputs = self._compare(model, inputs, trainer.args.device)
        found = torch.stack([margins.detach().sum(), (margins > 0).sum(), torch.ones_like(margins).sum()]).double()
        self._sums = found if self._sums is None else self._sums + found
        return loss, outputs

    def _compare(self, model: Any, inputs: dict[str, Any], device: Any) -> tuple[Tensor, Tensor, Any]:
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        self.reference.to(device)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.recipe.training.precision)
        with torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None):
            outputs = model(**inputs)
            with torch.no_grad():
                reference = answer_log_probs(self.reference(**inputs).logits, labels)
        ours = answer_log_probs(outputs["logits"], labels)
        return *dpo_loss(ours, reference, self.recipe.training.dpo_beta), outputs

    def log_entries(self, trainer: Any, seconds: float, steps: int) -> dict[str, float]:
        """Mean margin and share of right pairs of this process since the last entry."""
        if self._sums is None:
            return {}
        margins, right, count = self._sums.tolist()
        self._sums = None
        return {"margin": margins / count, "accuracy": right / count}

    def evaluate(self, trainer: Any, dataset: Any) -> dict[str, float]:
        """Loss and accuracy over all pairs, each process a share."""
        return self._measure(trainer, dataset, trainer.args.process_index, trainer.args.world_size)

    def final_metrics(self, run: Any, trainer: Any) -> dict[str, float]:
        """Of the final weights, on this process alone."""
        return self._measure(trainer, trainer.eval_dataset, 0, 1)

    def _measure(self, trainer: Any, dataset: Any, rank: int, world: int) -> dict[str, float]:
        model, device, size = trainer.model, trainer.args.device, self.recipe.evaluation.batch_size
        was_training = model.training
        model.eval()
        totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right, pairs
        with torch.no_grad():
            for indices in shares(len(dataset), size, rank, world):
                batch = dataset.__getitems__(indices or [0])
                loss, margins, _ = self._compare(model, {k: v.to(device) for k, v in batch.items()}, device)
                margins = margins if indices else margins[:0]
                totals += torch.stack([loss.double() * len(margins), (margins > 0).sum(), torch.tensor(len(margins))])
        model.train(was_training)
        if world > 1:
            torch.distributed.all_reduce(totals)
        loss, right, count = totals.tolist()
        return {"loss": loss / max(count, 1), "accuracy": right / max(count, 1)}
