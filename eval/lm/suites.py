"""Named lists of lm-evaluation-harness tasks with their shots, as the papers use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hybridzoo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks that are run together.

    Attributes:
        title: in words, with the source.
        tasks: name in the harness -> examples before the question.
        chat: apply the chat template, examples as turns of the conversation.
        max_length: tokens of a prompt with its answer; None is the model's own.
    """

    title: str
    tasks: Mapping[str, int]
    chat: bool = False
    max_length: int | None = None


_COMMON_SENSE = dict.fromkeys(("piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge"), 0)
SUITES: dict[str, Suite] = {
    "hymba_base": Suite(
        title="Hymba-1.5B-Base (README of NVlabs/hymba)",
        tasks={"mmlu": 5, **_COMMON_SENSE, "squad_completion": 1},
    ),
    "hymba_instruct": Suite(
        title="Hymba-1.5B-Instruct (README of NVlabs/hymba)",
        tasks={"mmlu": 5, "gsm8k": 5, "ifeval": 0, "gpqa_main_zeroshot": 0},
        chat=True,
        max_length=8192,
    ),
    "hymba_small": Suite(
        title="Hymba-125M and -350M; the paper used LightEval, whose cloze MMLU is the harness's mmlu_continuation",
        tasks={"mmlu_continuation": 0, **_COMMON_SENSE, "openbookqa": 0},
    ),
    "deltanet": Suite(
        title="DeltaNet (tables 1 and 2 of arXiv 2406.06484)",
        tasks={"wikitext": 0, "lambada_openai": 0, **_COMMON_SENSE},
    ),
    "recall": Suite(
        title="recall-intensive tasks of Based and JRT",
        tasks={"swde": 0, "squad_completion": 0, "fda": 0},
    ),
}


def parse_tasks(text: str, num_fewshot: int | None = None) -> Suite:
    """A suite by name, or tasks by name: `hellaswag,piqa`, `mmlu@5,arc_easy` (examples behind the @).

    Args:
        text: what stands behind `lm_eval:`.
        num_fewshot: examples for tasks that name none; 0 if left out.

    Raises:
        ConfigError: nothing named, or a number of examples that is none.
    """
    if text in SUITES:
        return SUITES[text]
    tasks = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, shots = part.partition("@")
        if shots and not shots.isdigit():
            raise ConfigError(f"{part!r}: behind the @ stands the number of examples, as in mmlu@5")
        tasks[name] = int(shots) if shots else num_fewshot or 0
    if not tasks:
        raise ConfigError(
            f"lm_eval: needs tasks, as in lm_eval:hellaswag,piqa@0, or one of the suites {', '.join(SUITES)}"
        )
    return Suite(title=f"lm-evaluation-harness: {text}", tasks=tasks)
