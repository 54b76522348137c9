"""Language models in the harness: one record per document, question or sequence.

likelihood of texts    {"id", "nll", "tokens", "bytes", "words"}
completion             {"id", "answer", "output", "contains"}
MQAR                   {"id", "questions", "right", "gaps"}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.text_stream_tokenizers import check_vocabulary
from hybridzoo.errors import ConfigError, unknown
from hybridzoo.eval.kinds import RecordFile
from hybridzoo.eval.lm.associative import answer, mqar_metrics
from hybridzoo.eval.lm.likelihood import DEFAULT_LENGTH, document_likelihoods, likelihood_metrics
from hybridzoo.eval.lm.recall import complete, with_examples
from hybridzoo.eval.metrics.bootstrap import bootstrap_errors
from hybridzoo.eval.schema import Metric, ResultError

SHARES = ("accuracy", "contains")
OPTIONS = ("tokenizer", "max_length", "stride", "num_fewshot")


class LanguagePredictor:
    """A language model on a device, with its tokenizer.

    Args:
        model: a causal language model.
        device: left out: a GPU if there is one.
        dtype: "float32", or "bfloat16" for autocast.
        tokenizer: left out, the one beside the model; MQAR needs none.
        max_length, stride: of windows, see `likelihood`.
        num_fewshot: solved examples before each text to complete.

    Raises:
        ConfigError: an unknown dtype, or impossible windows.
    """

    def __init__(
        self,
        model: Any,
        device: Any,
        dtype: str,
        *,
        tokenizer: Any = None,
        max_length: int | None = None,
        stride: int | None = None,
        num_fewshot: int = 0,
    ):
        from hybridzoo.inference.classifier import DTYPES, pick_device

        if dtype not in DTYPES:
            raise ConfigError(unknown("dtype", str(dtype), DTYPES))
        self.device, self.dtype = pick_device(device), DTYPES[dtype]
        self.model, self.tokenizer, self.num_fewshot = model.to(self.device).eval(), tokenizer, num_fewshot
        trained = getattr(model.config, "max_position_embeddings", None) or DEFAULT_LENGTH
        self.max_length = max_length or min(trained, DEFAULT_LENGTH)
        self.stride = stride or max(self.max_length // 2, 1)
        self.settings: dict[str, Any] = {"max_length": self.max_length, "stride": self.stride}
        if num_fewshot:
            self.settings["num_fewshot"] = num_fewshot

    def records(
        self, bundle: Any, split: Any, *, batch_size: int, num_workers: int, progress: bool
    ) -> list[dict[str, Any]]:
        """Records of a split, by what it holds."""
        import torch

        half = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype) if half else nullcontext():
            if split.kind == "tokens":
                return answer(self.model, split, batch_size=batch_size, progress=progress)
            tokenizer = self._tokenizer()
            if split.kind == "cloze":
                rows = with_examples(split.content, self.num_fewshot)
                sizes = {"max_length": self.max_length, "batch_size": batch_size}
                return complete(self.model, tokenizer, rows, **sizes, progress=progress)
            found = document_likelihoods(
                self.model,
                tokenizer,
                split.content,
                max_length=self.max_length,
                stride=self.stride,
                batch_size=batch_size,
                progress=progress,
            )
        return [{"id": name, **row, "nll": float(f"{row['nll']:.9g}")} for name, row in zip(split.ids, found)]

    def _tokenizer(self) -> Any:
        from hybridzoo.inference.generation import load_tokenizer

        if self.tokenizer is None:
            self.tokenizer = load_tokenizer(self.model)
        rows = self.model.get_input_embeddings().num_embeddings
        check_vocabulary(self.tokenizer, rows, type(self.model).__name__)
        return self.tokenizer


class LanguageKind:
    """What the harness asks of tasks for models of the kind text-generation."""

    def predictor(self, model: Any, spec: Any, device: Any, dtype: str, options: dict[str, Any]) -> LanguagePredictor:
        """See `LanguagePredictor`; an option that does not exist raises ConfigError."""
        for key in options:
            if key not in OPTIONS:
                raise ConfigError(unknown(f"option of {spec.name}", key, OPTIONS))
        return LanguagePredictor(model, device, dtype, **options)

    def head(self, bundle: Any, spec: Any) -> dict[str, Any]:
        """Nothing: the records hold all."""
        return {}

    def score(
        self, file: RecordFile, task: Any, *, seed: int = 0, resamples: int = 500
    ) -> tuple[dict[str, Metric], dict[str, Any]]:
        """Metrics with bootstrap errors over documents; details by source of the text, or by the gap of a question."""
        rows = list(file.rows)
        if not rows:
            raise ResultError("no records to score")
        if "metrics" in file.head:  # answers of lm-evaluation-harness, whose errors come from there
            from hybridzoo.eval.lm.results import rescore_samples

            return rescore_samples(rows, file.head["metrics"]), {}
        measure = _measure(task.metrics)

        def statistics(indices: np.ndarray) -> dict[str, float]:
            return measure([rows[i] for i in indices])

        values = measure(rows)
        errors = bootstrap_errors(statistics, len(rows), seed=seed, resamples=resamples) if len(rows) > 1 else {}
        metrics = {name: _metric(name, values[name], errors.get(name)) for name in task.metrics}
        return metrics, _details(rows, measure)

    def pictures(self, file: RecordFile, result: Any, stem: Path, bundle: Any, errors: int) -> list[Path]:
        """None."""
        return []


def _measure(metrics: Sequence[str]) -> Callable[[Sequence[Any]], dict[str, float]]:
    if "bits_per_byte" in metrics:
        return likelihood_metrics
    if "contains" in metrics:
        return lambda rows: {"contains": sum(bool(r["contains"]) for r in rows) / max(len(rows), 1)}
    return lambda rows: mqar_metrics(list(rows))


def _metric(name: str, value: float, error: float | None) -> Metric:
    share = name in SHARES
    scale = 100 if share else 1
    return Metric(
        value=round(value * scale, 6),
        stderr=None if error is None else round(error * scale, 6),
        unit="%" if share else "",
    )


def _details(rows: Sequence[Mapping[str, Any]], measure: Callable[..., dict[str, float]]) -> dict[str, Any]:
    if "gaps" in rows[0]:
        hits: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            for gap, right in row["gaps"]:
                hits[int(np.log2(gap + 1))].append(right)
        return {
            "accuracy_by_gap": {
                f"{2**k - 1}-{2 ** (k + 1) - 2}": {"accuracy": round(100 * sum(h) / len(h), 4), "questions": len(h)}
                for k, h in sorted(hits.items())
            }
        }
    parts: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        parts[str(row["id"]).partition("/")[0]].append(row)
    if "nll" not in rows[0] or not 1 < len(parts) <= 20:
        return {}
    return {"by_source": {name: {k: round(v, 6) for k, v in measure(part).items()} for name, part in parts.items()}}
