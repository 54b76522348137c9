"""Vocabularies of the Long Range Arena as transformers tokenizers, which are saved beside the weights.

The official programs collect their ids at run time (ListOps from an unordered set of the first validation rows, so they
differ from run to run); here every id is fixed.

| | ids |
|---|---|
| `listops` | 0 pad, 1 unk, 2 eos, 3-12 the digits, 13-16 `[MIN [MAX [MED [SM`, 17 `X` (closing): 18 as in S4 |
| `bytes` | 0 pad, 1 eos, 2 unk, byte + 3 (as ByT5): 259 |
| `characters:15` | 0 pad, 1 unk, 2 eos, then what occurs 15 times or more in the train split, sorted (S4) |

A text is not ended by `eos` unless `:eos` is added (`bytes:eos`, `listops:eos`), as S4 does; then it is the last token
after truncation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from hybridzoo.data.lra.listops import CLOSE, DIGITS, END, OPERATORS
from hybridzoo.errors import ConfigError, unknown

LISTOPS_WORDS = ("<pad>", "<unk>", "<eos>", *DIGITS, *OPERATORS, CLOSE)
KINDS = ("listops", "bytes", "characters")


def is_lra_tokenizer(name: str) -> bool:
    """Whether `data.tokenizer` names one of these."""
    return name.partition(":")[0] in KINDS


def lra_tokenizer(name: str, texts: Iterable[str]) -> Any:
    """The tokenizer of a name in the table above.

    Args:
        name: kind, with a minimal count for characters and `:eos` where wanted: `characters:15:eos`.
        texts: of the train split; only characters look at them.

    Raises:
        ConfigError: another name.
    """
    kind, *rest = name.split(":")
    if kind not in KINDS:
        raise ConfigError(unknown("vocabulary of the Long Range Arena", name, KINDS))
    ended = "eos" in rest
    rest = [r for r in rest if r != "eos"]
    least = rest.pop(0) if kind == "characters" and rest else "1"
    if rest or not least.isdigit():
        raise ConfigError(f"data.tokenizer={name!r} is none of listops, bytes, characters:<number>, each with or "
                          "without :eos")  # fmt: skip
    if kind == "listops":
        return _finished(_listops(), ended, ids=(0, 1, 2))
    if kind == "bytes":
        return _finished(_bytes(), ended, ids=(0, 2, 1))
    return _finished(_characters(texts, int(least)), ended, ids=(0, 1, 2))


def _listops() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(LISTOPS_WORDS)}, unk_token="<unk>"))
    # What the official loader does to the text: parentheses go, a closing bracket becomes X.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("(", " "), normalizers.Replace(")", " "), normalizers.Replace(END, f" {CLOSE} ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's mapping)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


def _bytes() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = ["<pad>", "<eos>", "<unk>", *byte_symbols()]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _characters(texts: Iterable[str], least: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    kept = sorted(c for c, n in counts.items() if n >= least)
    if not kept:
        raise ConfigError(f"no character occurs {least} times in the train split; give a smaller number")
    words = ["<pad>", "<unk>", "<eos>", *kept]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _finished(tokenizer: Any, ended: bool, ids: tuple[int, int, int]) -> Any:
    """As a transformers tokenizer that pads on the right; `ids` are those of pad, unk and eos."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens(["<pad>", "<unk>", "<eos>"])
    if ended:
        eos = ("<eos>", ids[2])
        tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[eos])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
