"""Tasks of language models, as keywords of `Task`."""

from __future__ import annotations

from typing import Any

LIKELIHOOD = ("bits_per_byte", "perplexity", "word_perplexity")


def _text(name: str, title: str, data: str, protocol: str, split: str = "test") -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "data": data,
        "protocol": protocol,
        "metrics": LIKELIHOOD,
        "primary": "bits_per_byte",
        "split": split,
    }


def _cloze(name: str, title: str) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "data": name,
        "protocol": "validation",
        "metrics": ("contains",),
        "primary": "contains",
    }


LANGUAGE_TASKS: tuple[dict[str, Any], ...] = (
    _text("austen_mini", "Austen's novels, 13 held-out chapters", "austen_mini", "90/5/5"),
    _text("zoo_mix", "English of registry packages, held-out documents", "zoo_mix", "98/1/1"),
    _text("corpus", "Texts of your own", "corpus", "90/5/5"),
    _text("hf_corpus", "Texts of the Hugging Face Hub", "hf_corpus", "90/5/5"),
    {
        "name": "mqar",
        "title": "Multi-query associative recall, 32 pairs in 256 tokens",
        "data": "mqar",
        "protocol": "generated",
        "metrics": ("accuracy",),
        "primary": "accuracy",
    },
    _cloze("squad_completion", "SQuAD as completion"),
    _cloze("swde", "SWDE as completion"),
    _cloze("fda", "FDA as completion"),
)
