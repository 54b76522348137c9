"""A byte-level BPE tokenizer in RoBERTa's form, trained on the texts at hand; needs no network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hybridzoo.errors import ConfigError

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as RoBERTa's; "<mask>" is the last id


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int, *, lower_case: bool = False) -> Any:
    """Train a tokenizer.

    Args:
        texts: the train split.
        vocab_size: entries, special tokens and the 256 bytes included; fewer when the texts yield fewer merges.
        lower_case: fold case first.

    Returns:
        A `PreTrainedTokenizerFast` that adds `<s>` and `</s>`, pads on the right, and is saved by `save_pretrained`.

    Raises:
        ConfigError: `vocab_size` below the 256 bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    smallest = 256 + len(SPECIAL) + 1
    if vocab_size < smallest:
        raise ConfigError(f"vocab_size={vocab_size}: a byte-level tokenizer needs at least {smallest} entries")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if lower_case:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )
