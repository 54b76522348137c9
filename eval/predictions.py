"""Predictions as files, and scores as a pure function of them.

`….predictions.jsonl.gz`: a first line with the task, then one line per sample: `{"id", "label", "logits"}`. With more
than 100 classes
the line holds the five best classes and the probabilities that the metrics need instead of all logits.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.eval.metrics import (
    averages,
    bootstrap_errors,
    brier_score,
    confusion_matrix,
    expected_calibration_error,
    fit_temperature,
    log_softmax,
    negative_log_likelihood,
    per_class,
    reliability,
    top_k_hits,
)
from hybridzoo.eval.schema import Metric, ResultError, read_scored
from hybridzoo.eval.tasks import Task

FORMAT = 1
MANY_CLASSES = 100
TOP = 5
_UNITS = {"nll": "nats", "nll_calibrated": "nats", "brier": "", "temperature": ""}


@dataclass(frozen=True)
class Predictions:
    """What a model said on a split.

    Attributes:
        ids: sample names.
        labels: (N,) true classes.
        logits: (N, K) float; None with more than 100 classes.
        top: (N, 5) best classes, best first, and `top_p` (N, 5) their probabilities, `label_p` (N,) that of the true
            class;
            only with more than 100 classes.
    """

    ids: Sequence[str]
    labels: np.ndarray
    logits: np.ndarray | None = None
    top: np.ndarray | None = None
    top_p: np.ndarray | None = None
    label_p: np.ndarray | None = None

    @classmethod
    def from_logits(cls, ids: Sequence[str], labels: Sequence[int], logits: np.ndarray) -> Predictions:
        """All logits, or with many classes what is kept of them."""
        truth = np.asarray(labels, np.int64)
        if not np.isfinite(logits).all():
            bad = [str(ids[int(i)]) for i in np.flatnonzero(~np.isfinite(logits).all(axis=1))[:3]]
            raise ResultError(f"the model gave NaN or infinite logits, first for {', '.join(bad)}; nothing was scored")
        if logits.shape[1] <= MANY_CLASSES:
            return cls(ids, truth, logits=np.asarray(logits, np.float64))
        probabilities = np.exp(log_softmax(logits))
        top = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
        return cls(
            ids,
            truth,
            top=top,
            top_p=np.take_along_axis(probabilities, top, axis=1),
            label_p=probabilities[np.arange(len(truth)), truth],
        )

    def rows(self) -> list[dict[str, Any]]:
        """One plain dictionary per sample; numbers with seven significant digits."""
        made = []
        for i, (name, label) in enumerate(zip(self.ids, self.labels.tolist())):
            row: dict[str, Any] = {"id": name, "label": label}
            if self.logits is not None:
                row["logits"] = [_round(v) for v in self.logits[i]]
            else:
                assert self.top is not None
                assert self.top_p is not None
                assert self.label_p is not None
                row |= {"top": self.top[i].tolist(), "top_p": [_round(v) for v in self.top_p[i]]}
                row["label_p"] = _round(self.label_p[i])
            made.append(row)
        return made


@dataclass(frozen=True)
class PredictionFile:
    """The scored split, and the validation split where a temperature is to be fitted."""

    task: str
    label_names: tuple[str, ...]
    test: Predictions
    validation: Predictions | None = None

    def to_bytes(self) -> bytes:
        """The gzip file; the same predictions give the same bytes."""
        head = {"predictions": FORMAT, "task": self.task, "label_names": list(self.label_names)}
        lines = [head, *self.test.rows()]
        if self.validation is not None:
            lines += [{**row, "split": "validation"} for row in self.validation.rows()]
        text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
        return gzip.compress(text.encode("utf-8", "surrogatepass"), compresslevel=6, mtime=0)

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str = "predictions") -> PredictionFile:
        """Read what `to_bytes` wrote; raises ResultError for anything else."""
        try:
            lines = [json.loads(line) for line in gzip.decompress(data).decode("utf-8", "surrogatepass").splitlines()]
            head, rows = lines[0], lines[1:]
            if head["predictions"] != FORMAT:
                raise ResultError(f"{where}: format {head['predictions']!r}, this version reads {FORMAT}")
            test = [r for r in rows if r.get("split") != "validation"]
            validation = [r for r in rows if r.get("split") == "validation"]
            return cls(
                head["task"], tuple(head["label_names"]), _parse(test), _parse(validation) if validation else None
            )
        except ResultError:
            raise
        except (OSError, EOFError, zlib.error, ValueError, KeyError, IndexError, TypeError) as error:
            raise ResultError(f"{where} is no predictions file of hybridzoo, or it is damaged ({error})") from error

    @classmethod
    def read(cls, path: str | Path, sha256: str | None = None) -> PredictionFile:
        """Read a file; with `sha256`, only if it is that file."""
        return cls.from_bytes(read_scored(path, sha256), where=str(path))


def _round(value: float) -> float:
    return float(f"{value:.7g}")


def _parse(rows: Sequence[dict[str, Any]]) -> Predictions:
    ids = [r["id"] for r in rows]
    labels = np.array([r["label"] for r in rows], np.int64)
    if "logits" in rows[0]:
        return Predictions(ids, labels, logits=np.array([r["logits"] for r in rows], np.float64))
    return Predictions(
        ids,
        labels,
        top=np.array([r["top"] for r in rows], np.int64),
        top_p=np.array([r["top_p"] for r in rows], np.float64),
        label_p=np.array([r["label_p"] for r in rows], np.float64),
    )


def score(
    predictions: PredictionFile, task: Task, *, seed: int = 0, resamples: int = 500
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Metrics and details, from predictions alone.

    Args:
        predictions: as read from a file (`PredictionFile.from_bytes(file.to_bytes())` rounds as a file does).
        task: whose metrics are wanted.
        seed: of the bootstrap.
        resamples: of the bootstrap; 0 leaves standard errors out.

    Returns:
        name -> Metric, and details: confusion matrix, scores per class, reliability bins.

    Raises:
        ResultError: no samples, or a metric that these predictions cannot give.
    """
    test, classes = predictions.test, len(predictions.label_names)
    if not len(test.labels):
        raise ResultError("no predictions to score")
    samples = _per_sample(test)
    wanted = [m for m in task.metrics if not (m == "top5" and classes <= TOP)]

    def statistics(rows: np.ndarray) -> dict[str, float]:
        return _statistics({k: v[rows] for k, v in samples.items()}, classes, wanted)

    count = len(test.labels)
    values = statistics(np.arange(count))
    errors = bootstrap_errors(statistics, count, seed=seed, resamples=resamples) if resamples and count > 1 else {}
    details: dict[str, Any] = {"reliability": _reliability(samples)}
    if classes <= MANY_CLASSES:
        details |= _matrix_details(samples, predictions.label_names)
    if predictions.validation is not None and test.logits is not None:
        validation = predictions.validation
        assert validation.logits is not None
        temperature = fit_temperature(validation.logits, validation.labels)
        cooled = _per_sample(Predictions(test.ids, test.labels, logits=test.logits / temperature))
        after = _statistics(cooled, classes, ["nll", "ece"])
        values |= {"temperature": temperature, "nll_calibrated": after["nll"], "ece_calibrated": after["ece"]}
        details["reliability_calibrated"] = _reliability(cooled)
    metrics = {name: _metric(name, value, errors.get(name)) for name, value in values.items()}
    return metrics, details


def _metric(name: str, value: float, error: float | None) -> Metric:
    unit = _UNITS.get(name, "%")
    scale = 100 if unit == "%" else 1
    return Metric(value=round(value * scale, 6), stderr=None if error is None else round(error * scale, 6), unit=unit)


def _per_sample(p: Predictions) -> dict[str, np.ndarray]:
    """Arrays (N,) from which every metric follows."""
    if p.logits is not None:
        probabilities = np.exp(log_softmax(p.logits))
        predicted = p.logits.argmax(axis=1)
        return {
            "label": p.labels,
            "predicted": predicted,
            "confidence": probabilities[np.arange(len(predicted)), predicted],
            "top5": top_k_hits(p.logits, p.labels, TOP),
            "nll": negative_log_likelihood(p.logits, p.labels),
            "brier": brier_score(p.logits, p.labels),
        }
    assert p.top is not None
    assert p.top_p is not None
    assert p.label_p is not None
    return {
        "label": p.labels,
        "predicted": p.top[:, 0],
        "confidence": p.top_p[:, 0],
        "top5": (p.top == p.labels[:, None]).any(axis=1),
        "nll": -np.log(np.maximum(p.label_p, 1e-300)),
    }


def _statistics(samples: dict[str, np.ndarray], classes: int, wanted: Sequence[str]) -> dict[str, float]:
    label, predicted = samples["label"], samples["predicted"]
    correct = label == predicted
    values: dict[str, float] = {"accuracy": float(correct.mean()), "top1": float(correct.mean())}
    if any("_macro" in m or "_weighted" in m for m in wanted):
        values |= averages(confusion_matrix(label, predicted, classes))
    for name in ("top5", "nll", "brier"):
        if name in wanted:
            if name not in samples:
                raise ResultError(
                    f"metric {name!r} needs all logits, which are not kept with more than {MANY_CLASSES} classes"
                )
            values[name] = float(samples[name].mean())
    if "ece" in wanted:
        values["ece"] = expected_calibration_error(samples["confidence"], correct)
    return {name: values[name] for name in wanted}


def _reliability(samples: dict[str, np.ndarray]) -> dict[str, list[float]]:
    table = reliability(samples["confidence"], samples["label"] == samples["predicted"])
    return {name: [round(float(v), 6) for v in column] for name, column in table.items()}


def _matrix_details(samples: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    matrix = confusion_matrix(samples["label"], samples["predicted"], len(names))
    scores = per_class(matrix)
    rows = {
        name: {key: round(float(scores[key][i]) * (1 if key == "support" else 100), 4) for key in scores}
        for i, name in enumerate(names)
    }
    return {"confusion_matrix": {"labels": list(names), "counts": matrix.tolist()}, "per_class": rows}
