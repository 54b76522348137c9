"""Text generation: a causal language model, its tokenizer, and the checks that a prompt needs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hybridzoo.data.text_stream_tokenizers import check_vocabulary
from hybridzoo.errors import ConfigError, InputError, unknown
from hybridzoo.inference.classifier import DTYPES, check_items, pick_device


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: at most so many are generated.
        temperature: divides the logits; 0 is greedy.
        top_k: sample among so many; 0 is all.
        top_p: sample among the most probable that sum to this; 1 is all.
        num_beams: beam search with so many (needs temperature 0).
        repetition_penalty: transformers' factor on tokens that occurred; 1 is none.
        seed: of the sampling.
    """

    max_new_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    num_beams: int = 1
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, text in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("num_beams", self.num_beams >= 1, "at least 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)} must be {text}")
        if self.num_beams > 1 and self.temperature:
            raise ConfigError(f"num_beams={self.num_beams} searches and does not sample; set temperature=0")

    def keywords(self) -> dict[str, Any]:
        """For transformers' `generate`."""
        chosen: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": self.temperature > 0}
        chosen |= {"num_beams": self.num_beams, "repetition_penalty": self.repetition_penalty}
        if self.temperature:
            chosen |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return chosen


class TextGenerator:
    """A causal language model that goes on with texts.

    Args:
        model: with transformers' `generate`.
        tokenizer: left out, it is loaded from the folder or hub id that the model came from.
        device: left out: a GPU if there is one.
        dtype: "float32" or "bfloat16" of the weights; left out, they stay as they are.

    Raises:
        ConfigError: the model does not generate text, or there is no tokenizer.
        InputError: the tokenizer has more tokens than the model.
    """

    def __init__(self, model: Any, tokenizer: Any = None, *, device: Any = None, dtype: str | None = None):
        if not hasattr(model, "generate"):
            raise ConfigError(f"{type(model).__name__} does {getattr(model, 'task', 'something else')}, not text")
        if dtype is not None and dtype not in DTYPES:
            raise ConfigError(unknown("dtype", dtype, DTYPES))
        self.tokenizer = tokenizer or load_tokenizer(model)
        check_vocabulary(self.tokenizer, model.get_input_embeddings().num_embeddings, type(model).__name__)
        self.device = pick_device(device)
        self.model = model.to(self.device, dtype=DTYPES[dtype] if dtype else None).eval()

    def encode(self, prompts: Sequence[str], room: int = 0) -> dict[str, torch.Tensor]:
        """Prompts to `input_ids` and `attention_mask` (B, T) int64 on the device, padded on the left.

        Args:
            prompts: texts.
            room: tokens that will be generated; a warning names a prompt that leaves the trained length with them.

        Raises:
            InputError: an empty prompt, or one that is no text.
        """
        rows = []
        for number, prompt in enumerate(check_items(prompts, "prompts")):
            if not isinstance(prompt, str):
                raise InputError(f"prompt {number} is a {type(prompt).__name__}, expected a text")
            if not prompt:
                raise InputError(
                    f"prompt {number} is empty: there is nothing to go on from. Give at least a word, or "
                    f"{self.tokenizer.bos_token or 'a line break'!r} to begin a text"
                )
            rows.append(self.tokenizer(prompt, verbose=False)["input_ids"])
            if not rows[-1]:
                raise InputError(f"prompt {number} ({prompt[:40]!r}) has no tokens in this tokenizer's vocabulary")
        longest = max(map(len, rows))
        trained = getattr(self.model.config, "max_position_embeddings", None)
        if trained is not None and longest + room > trained:
            warnings.warn(
                f"the prompt has {longest} tokens, with {room} new ones more than the {trained} that the model was "
                "trained on: the text may get worse beyond them",
                UserWarning,
                stacklevel=3,
            )
        pad = self.tokenizer.pad_token_id
        if pad is None:
            pad = self.tokenizer.eos_token_id or 0
        ids = torch.full((len(rows), longest), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, longest - len(row) :] = torch.as_tensor(row)
            mask[i, longest - len(row) :] = 1
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def __call__(
        self, prompts: Sequence[str], sampling: Sampling | None = None, *, on_text: Callable[[str], None] | None = None
    ) -> list[str]:
        """The continuations, without their prompts.

        Args:
            prompts: texts; all are generated in one batch.
            sampling: how.
            on_text: called with each piece of text as soon as it is complete; for one prompt and without beams.

        Raises:
            InputError: an empty prompt.
            ConfigError: `on_text` with several prompts or beams.
        """
        sampling = sampling or Sampling()
        inputs = self.encode(prompts, sampling.max_new_tokens)
        streamer = None
        if on_text is not None:
            if len(prompts) != 1 or sampling.num_beams > 1:
                raise ConfigError("text can be streamed for one prompt, without beams; leave on_text out")
            streamer = _Streamer(self.tokenizer, on_text)
        torch.manual_seed(sampling.seed)
        ends = {"pad_token_id": self.tokenizer.pad_token_id, "eos_token_id": self.tokenizer.eos_token_id}
        if ends["pad_token_id"] is None:
            ends["pad_token_id"] = self.tokenizer.eos_token_id
        with torch.inference_mode():
            made = self.model.generate(**inputs, **ends, **sampling.keywords(), streamer=streamer)
        new = made[:, inputs["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)


class _Streamer:
    """transformers' streamer protocol: hands out text as soon as no later token can change it."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]):
        self.tokenizer, self.on_text = tokenizer, on_text
        self.tokens: list[int] = []
        self.shown, self.prompt = 0, True

    def put(self, value: torch.Tensor) -> None:
        if self.prompt:  # the first call brings the prompt
            self.prompt = False
            return
        self.tokens += value.reshape(-1).tolist()
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # the beginning of a character of several bytes
            self._show(text)

    def end(self) -> None:
        self._show(self.tokenizer.decode(self.tokens, skip_special_tokens=True))

    def _show(self, text: str) -> None:
        if len(text) > self.shown:
            self.on_text(text[self.shown :])
            self.shown = len(text)


def load_tokenizer(model: Any) -> Any:
    """The tokenizer beside the weights of a model; raises ConfigError where there is none."""
    from transformers import AutoTokenizer

    source = getattr(model, "name_or_path", "") or getattr(model.config, "_name_or_path", "")
    if not source:
        raise ConfigError(
            f"this {type(model).__name__} comes without a tokenizer: pass tokenizer=, or load the model from a folder "
            "or hub id that holds one"
        )
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no tokenizer could be loaded from {source} ({str(error).splitlines()[0]}); pass tokenizer="
        ) from error
