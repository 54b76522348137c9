"""Tokenizers for language models with small vocabularies, trained on the texts at hand; no network needed.

Both kinds are byte-level: every text can be encoded, decoding gives back the text, and there is no unknown token.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hybridzoo._atomic_file import whole_file
from hybridzoo.errors import ConfigError, InputError

SPECIAL = ("<pad>", "<s>", "</s>")  # ids 0, 1, 2: the defaults of the zoo's language models
PAD, BOS, EOS = range(3)
BYTES = 256 + len(SPECIAL)
KEPT_FROM = 8_000_000  # characters from which on tokens and tokenizers are kept on the disk


def train_lm_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer, as GPT-2's, with `<pad>`, `<s>` and `</s>` as ids 0, 1 and 2.

    Args:
        texts: of the train split.
        vocab_size: entries in all, at least 259; fewer come out when the texts yield fewer merges.

    Returns:
        A `PreTrainedTokenizerFast` that begins a text with `<s>`, pads on the left (generation goes on at the right
        end), and is saved by `save_pretrained`.

    Raises:
        ConfigError: a vocabulary without room for the bytes, or no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < BYTES:
        raise ConfigError(
            f"vocab_size={vocab_size}: a byte-level vocabulary needs {BYTES} entries (256 bytes and {len(SPECIAL)} "
            "special tokens)"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = _Count(texts)
    tokenizer.train_from_iterator(seen, trainer)
    if not seen.characters:
        raise ConfigError("there is no text to train a tokenizer on")
    return wrap(tokenizer)


def kept_folder(name: str) -> Path:
    """`$HYBRIDZOO_CACHE/NAME`, or `~/.cache/hybridzoo/NAME`."""
    return Path(os.environ.get("HYBRIDZOO_CACHE", Path.home() / ".cache" / "hybridzoo")) / name


def kept_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """As `train_lm_tokenizer`; of texts of more than 8 MB the result is kept, under the hash of texts and size."""
    if sum(map(len, texts)) < KEPT_FROM:
        return train_lm_tokenizer(texts, vocab_size)
    from tokenizers import Tokenizer

    found = hashlib.sha256(f"byte-level BPE 1 {vocab_size}".encode())
    for text in texts:
        found.update(text.encode("utf-8", "surrogatepass") + b"\0")
    path = kept_folder("tokenizers") / f"{found.hexdigest()[:32]}.json"
    with contextlib.suppress(Exception):  # absent or damaged (tokenizers raises bare Exceptions): it is made again
        return wrap(Tokenizer.from_file(str(path)))
    tokenizer = train_lm_tokenizer(texts, vocab_size)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as staged:
            staged.write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    return tokenizer


def byte_tokenizer() -> Any:
    """One token per byte: ids 3 to 258 in the order of the bytes' printable forms, no merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return wrap(tokenizer)


def wrap(tokenizer: Any) -> Any:
    """A `tokenizers.Tokenizer` with the special tokens above as a transformers tokenizer."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def check_vocabulary(tokenizer: Any, vocab_size: int, name: str = "the model") -> None:
    """Raise InputError when the tokenizer gives ids that the model has no embedding for.

    Args:
        tokenizer: of transformers.
        vocab_size: rows of the model's embedding; more rows than tokens are fine (padding to a round number).
        name: of the model, for the message.
    """
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"the tokenizer knows {len(tokenizer)} tokens, but {name} has a vocabulary of {vocab_size}: they do not "
            "belong together. Use the tokenizer beside the model's weights, or build the model with "
            f"vocab_size={len(tokenizer)}"
        )


class _Count(Iterable[str]):
    """Passes texts on and counts their characters."""

    def __init__(self, texts: Iterable[str]):
        self.texts, self.characters = texts, 0

    def __iter__(self):
        for text in self.texts:
            self.characters += len(text)
            yield text
