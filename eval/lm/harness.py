"""lm-evaluation-harness on models of the zoo: the field's own tasks, prompts and scorers.

The harness is an optional package (`pip install 'hybridzoo[lm]'`). Its tasks read their data from the Hugging Face Hub;
tasks of your own are YAML files in a folder (`include_path`), with local data, and need no network.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridzoo.errors import ConfigError, DataError, unknown
from hybridzoo.eval.lm.suites import Suite

SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match", "contains", "f1", "mc1", "mc2")
RANKING = ("acc_norm", "acc", "exact_match", "contains", "f1", "bits_per_byte", "word_perplexity", "perplexity")
LOWER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score")


@dataclass(frozen=True, kw_only=True)
class HarnessScore:
    """What the harness says of one task.

    Attributes:
        task: its name in the harness.
        version: of the task, as its YAML states it.
        shots: examples before the question.
        metrics: name -> (value, standard error or None), in the harness's own scale.
        primary: the metric that ranks.
        n: samples scored, `n_total` without `limit`.
        samples: one plain dictionary each: id, target, answers, and the metrics of the sample.
        subtasks: names, for a group such as `mmlu`.
    """

    task: str
    version: str
    shots: int
    metrics: Mapping[str, tuple[float, float | None]]
    primary: str
    n: int
    n_total: int
    samples: list[dict[str, Any]]
    subtasks: tuple[str, ...] = field(default=())


def _require() -> Any:
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"lm_eval: tasks need lm-evaluation-harness ({error}): pip install 'hybridzoo[lm]'"
        ) from error
    return lm_eval


def task_manager(include_path: str | Path | None = None) -> Any:
    """The harness's tasks, and those of a folder with YAML files.

    Raises:
        ConfigError: the harness is not installed.
        DataError: no such folder.
    """
    _require()
    if include_path is not None and not Path(include_path).is_dir():
        raise DataError(f"{include_path} is no folder with task files (*.yaml)")
    return _manager(None if include_path is None else str(include_path))


@functools.lru_cache(maxsize=4)
def _manager(include_path: str | None) -> Any:
    """The harness reads some 14,000 YAML files for its list."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    return TaskManager(include_path=include_path)


def as_harness_model(model: Any, tokenizer: Any, *, batch_size: int = 8, max_length: int | None = None) -> Any:
    """The harness's model class around a model in memory.

    Raises:
        InputError: the tokenizer has more tokens than the model.
    """
    _require()
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    from hybridzoo.data.text_stream_tokenizers import check_vocabulary

    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings, type(model).__name__)
    begins = tokenizer("a", verbose=False)["input_ids"][:1] == [tokenizer.bos_token_id]
    trained = getattr(model.config, "max_position_embeddings", None)
    return HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=batch_size,
        max_length=max_length or trained or 2048,
        add_bos_token=begins,
    )


def run_harness(
    model: Any,
    tokenizer: Any,
    suite: Suite,
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    seed: int = 0,
) -> list[HarnessScore]:
    """Run tasks of lm-evaluation-harness.

    Args:
        model: a causal language model in eval mode, on its device.
        tokenizer: its tokenizer.
        suite: of `suites.parse_tasks`.
        include_path: a folder with further tasks.
        limit: samples of each task.
        batch_size: rows of a forward pass.
        max_length: tokens of a prompt; the suite's, else the model's.
        seed: of the examples that are drawn.

    Returns:
        One score per task, in the suite's order.

    Raises:
        ConfigError: the harness is not installed, or it has no such task.
        DataError: a task's data cannot be read.
    """
    lm_eval = _require()
    manager = task_manager(include_path)
    for name in suite.tasks:
        if name not in manager.all_tasks:
            raise ConfigError(unknown("task of lm-evaluation-harness", name, manager.all_tasks))
    wrapped = as_harness_model(model, tokenizer, batch_size=batch_size, max_length=max_length or suite.max_length)
    scores = []
    for name, shots in suite.tasks.items():
        try:
            with _quiet():
                found = lm_eval.simple_evaluate(
                    model=wrapped,
                    tasks=[name],
                    num_fewshot=shots,
                    task_manager=manager,
                    limit=limit,
                    bootstrap_iters=1000,
                    log_samples=True,
                    apply_chat_template=suite.chat,
                    fewshot_as_multiturn=suite.chat,
                    random_seed=seed,
                    numpy_random_seed=seed,
                    torch_random_seed=seed,
                    fewshot_random_seed=seed,
                )
        except (OSError, ConnectionError, ValueError) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise DataError(
                f"lm_eval:{name} could not be run: {first[:300]}. Its data come from the Hugging Face Hub; offline, "
                "give tasks with local data in a folder (include_path)"
            ) from error
        scores.append(_score(name, shots, found))
    return scores


def _score(name: str, shots: int, found: Mapping[str, Any]) -> HarnessScore:
    rows = found["results"].get(name) or found.get("groups", {}).get(name)
    if rows is None:
        raise DataError(f"lm_eval:{name} gave no result ({', '.join(found['results'])})")
    metrics: dict[str, tuple[float, float | None]] = {}
    for key, value in rows.items():
        metric, _, filtered = key.partition(",")
        if metric.endswith("_stderr") or not isinstance(value, (int, float)) or isinstance(value, bool) or not filtered:
            continue
        shown = metric if filtered in ("none", "custom-extract") or metric not in metrics else f"{metric}_{filtered}"
        error = rows.get(f"{metric}_stderr,{filtered}")
        metrics[shown] = (float(value), float(error) if isinstance(error, (int, float)) else None)
    subtasks = tuple(found.get("group_subtasks", {}).get(name) or ())
    samples = found.get("samples") or {}
    names = [t for t in samples if t == name or subtasks]
    counts = [found["n-samples"][t] for t in names if t in found.get("n-samples", {})]
    primary = next((m for m in RANKING if m in metrics), next(iter(metrics)))
    return HarnessScore(
        task=name,
        version=str(found.get("versions", {}).get(name, "")),
        shots=shots,
        metrics=metrics,
        primary=primary,
        n=sum(c["effective"] for c in counts) or sum(len(samples[t]) for t in names),
        n_total=sum(c["original"] for c in counts) or sum(len(samples[t]) for t in names),
        samples=[_sample(task, row, metrics) for task in names for row in samples[task]],
        subtasks=subtasks,
    )


def _sample(task: str, row: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: _plain(row[key]) for key in metrics if key in row}
    return {
        "id": f"{task}/{row['doc_id']}",
        "target": str(row.get("target")),
        "answer": _plain(row["filtered_resps"]),
        **kept,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return float(value) if hasattr(value, "__float__") else str(value)


@contextmanager
def _quiet() -> Any:
    """The harness logs every step at warning level; its parallel tokeniser threads warn about forks."""
    import logging

    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
