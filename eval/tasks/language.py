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


def harness_task(name: str) -> dict[str, Any]:
    """The task behind `lm_eval_<task>_<n>shot`, the name of results of lm-evaluation-harness."""
    task, _, shots = name.removeprefix("lm_eval_").rpartition("_")
    return {
        "name": name,
        "title": f"{task}, {shots.removesuffix('shot')}-shot, lm-evaluation-harness",
        "data": "lm_eval",
        "protocol": f"lm-evaluation-harness, {shots.removesuffix('shot')}-shot",
        "metrics": (),
        "primary": "acc",
        "task": "text-generation",
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
    {
        "name": "mqar_graded",
        "title": "Multi-query associative recall, 16 pairs in 64 tokens, learned from sequences of 1 to 16",
        "data": "mqar",
        "protocol": "graded",
        "metrics": ("accuracy",),
        "primary": "accuracy",
    },
    _cloze("squad_completion", "SQuAD as completion"),
    _cloze("swde", "SWDE as completion"),
    _cloze("fda", "FDA as completion"),
)
