"""Scores of lm-evaluation-harness as result files of our schema, one per task, with the answers beside them."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hybridzoo.errors import ConfigError
from hybridzoo.eval.kinds import RecordFile
from hybridzoo.eval.lm.harness import LOWER, SHARES, HarnessScore, run_harness
from hybridzoo.eval.lm.suites import parse_tasks
from hybridzoo.eval.schema import (
    DatasetRef,
    Efficiency,
    Metric,
    PredictionsRef,
    Provenance,
    Result,
    Run,
    TaskRef,
)

PREFIX = "lm_eval:"


def run_lm_eval(
    model: Any,
    text: str,
    *,
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    max_length: int | None = None,
    tokenizer: Any = None,
    limit: int | None = None,
    batch_size: int = 8,
    device: Any = None,
    dtype: str = "float32",
    seed: int = 0,
    out: str | Path | None = None,
    name: str | None = None,
    command: str | None = None,
) -> list[tuple[Result, Path | None]]:
    """Run tasks of lm-evaluation-harness and write a result for each.

    Args:
        model: a model in memory, a registered name, a folder or hub id.
        text: a suite (`hymba_base`), or tasks (`hellaswag,mmlu@5`), with or without `lm_eval:` in front.
        include_path: a folder with task files of your own.
        num_fewshot: examples for tasks that name none.
        max_length: tokens of a prompt.
        tokenizer: left out, the one beside the model.
        limit: samples of each task; the track becomes `subset`.
        batch_size: rows of a forward pass.
        device: left out: a GPU if there is one.
        dtype: "float32", or "bfloat16" for autocast.
        seed: of the examples.
        out: folder of results; left out, nothing is written.
        name: of the model in the results.
        command: recorded.

    Raises:
        ConfigError, DataError, InputError: each names what was given and the fix.
    """
    import torch

    from hybridzoo.eval import record
    from hybridzoo.eval.harness import write_result
    from hybridzoo.eval.predictors import load_predictor
    from hybridzoo.eval.tasks import Task
    from hybridzoo.inference.generation import load_tokenizer

    suite = parse_tasks(text.removeprefix(PREFIX), num_fewshot)
    any_task = Task(
        name="lm_eval", title="", data="lm_eval", protocol="", metrics=(), primary="", task="text-generation"
    )
    options = {} if max_length is None else {"max_length": max_length}
    predictor = load_predictor(model, any_task, device, dtype, name, options)
    language = predictor.classifier
    half = language.dtype != torch.float32
    made: list[tuple[Result, Path | None]] = []
    for task, shots in suite.tasks.items():
        one = type(suite)(title=suite.title, tasks={task: shots}, chat=suite.chat, max_length=suite.max_length)
        started, begin = datetime.now(UTC), time.perf_counter()
        with torch.autocast(language.device.type, dtype=language.dtype, enabled=half):
            (score,) = run_harness(
                language.model,
                tokenizer or load_tokenizer(language.model),
                one,
                include_path=include_path,
                limit=limit,
                batch_size=batch_size,
                max_length=max_length,
                seed=seed,
            )
        seconds = time.perf_counter() - begin
        title = f"lm_eval_{task}_{shots}shot"
        file = RecordFile(title, (), score.samples, {"metrics": list(score.metrics), "primary": score.primary})
        data = file.to_bytes()
        commit, dirty = record.git_state()
        words = ["hybridzoo", "eval", predictor.reference.full_name, f"{PREFIX}{task}@{shots}"]
        words += [] if limit is None else ["--limit", str(limit)]
        result = Result(
            model=predictor.reference,
            task=_task(score, title, suite.chat),
            metrics={metric: _metric(metric, *pair) for metric, pair in score.metrics.items()},
            track="subset" if score.n < score.n_total else "full",
            details={"subtasks": list(score.subtasks)} if score.subtasks else {},
            efficiency=Efficiency(throughput=round(score.n / seconds, 2), batch_size=batch_size),
            run=Run(
                date=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
                command=command or shlex.join(words),
                recipe=predictor.recipe.get("title"),
                training_seed=predictor.recipe.get("seed"),
                seed=seed,
                dtype=dtype,
                device=predictor.device_name,
                git_commit=commit,
                git_dirty=dirty,
                versions={**record.versions(), "lm_eval": version("lm_eval")},
                wall_s=round(seconds, 3),
            ),
            provenance=Provenance(
                status="measured",
                predictions=PredictionsRef(path="predictions.jsonl.gz", sha256=hashlib.sha256(data).hexdigest()),
                notes=predictor.note,
            ),
        )
        path = None
        if out is not None:
            result, path = write_result(result, data, Path(out))
        result.validate()
        made.append((result, path))
    return made


def _task(score: HarnessScore, title: str, chat: bool) -> TaskRef:
    lines = "".join(json.dumps([s["id"], s["target"]], ensure_ascii=False) + "\n" for s in score.samples)
    return TaskRef(
        name=title,
        version=1,
        protocol=f"lm-evaluation-harness, {score.shots}-shot" + (" chat" if chat else ""),
        primary=score.primary,
        higher_is_better=score.primary not in LOWER,
        dataset=DatasetRef(
            id=f"lm_eval/{score.task}",
            split="as the task says",
            n_total=score.n_total,
            n_used=score.n,
            revision=f"task version {score.version}" if score.version else None,
            sha256=hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest(),
            sha256_of="ids and targets of the samples",
        ),
    )


def _metric(name: str, value: float, error: float | None) -> Metric:
    share = name.split("_strict")[0].split("_flexible")[0] in SHARES or name.endswith("_acc")
    scale = 100 if share else 1
    return Metric(
        value=round(value * scale, 6),
        stderr=None if error is None or not math.isfinite(error) else round(error * scale, 6),
        unit="%" if share else "",
    )


def rescore_samples(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, Metric]:
    """The metrics of stored samples again: means of shares, and perplexities of log-likelihoods.

    Raises:
        ConfigError: a metric whose samples were not kept.
    """
    found: dict[str, Metric] = {}
    for name in metrics:
        values = [row[name] for row in rows if name in row]
        if not values:
            raise ConfigError(f"the samples hold no values of {name!r}")
        if isinstance(values[0], list):  # (log-likelihood, weight) pairs
            total = -sum(v[0] for v in values) / sum(v[1] for v in values)
            value = total / math.log(2) if name == "bits_per_byte" else math.exp(total)
        elif name == "perplexity":
            value = math.exp(-sum(values) / len(values))
        else:
            value = sum(values) / len(values)
        found[name] = _metric(name, value, None)
    return found
