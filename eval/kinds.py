"""Kinds of tasks that score records: one JSON dictionary per sample, from which every metric follows.

Classification keeps its own compact form (`predictions.py`). A new kind adds a line to KINDS and a class with the
methods of `Kind`; harness, result files, rescoring and command line are the same for all.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hybridzoo import registry
from hybridzoo.eval.schema import Metric, ResultError, read_scored

FORMAT = 1
# task of a model -> its Kind
KINDS = {
    "object-detection": "hybridzoo.eval.detection:DetectionKind",
    "anomaly-detection": "hybridzoo.eval.anomaly:AnomalyKind",
    "text-generation": "hybridzoo.eval.lm.kind:LanguageKind",
    "image-generation": "hybridzoo.eval.generation_kind:GenerationKind",
}


class Kind(Protocol):
    """What the harness asks of a kind of task."""

    def predictor(self, model: Any, spec: Any, device: Any, dtype: str, options: dict[str, Any]) -> Predictor:
        """The model, ready to predict; raises ConfigError for options that do not exist."""
        ...

    def head(self, bundle: Any, spec: Any) -> dict[str, Any]:
        """What scoring needs beside the records, as plain JSON."""
        ...

    def score(
        self, file: RecordFile, task: Any, *, seed: int = 0, resamples: int = 500
    ) -> tuple[dict[str, Metric], dict[str, Any]]:
        """Metrics and details, from the file alone."""
        ...

    def pictures(self, file: RecordFile, result: Any, stem: Path, bundle: Any, errors: int) -> list[Path]:
        """Draw what a result is worth looking at, into files that begin with `stem`; `errors` asks for so many
        samples.
        """
        ...


class Predictor(Protocol):
    """A model on a device."""

    device: Any
    settings: dict[str, Any]  # what a row must state: image sizes, thresholds

    def records(
        self, bundle: Any, split: Any, *, batch_size: int, num_workers: int, progress: bool
    ) -> list[dict[str, Any]]:
        """One record per sample of a split."""
        ...


def record_kind(task: str) -> Kind | None:
    """The kind of a model's task, None for classification."""
    return registry.resolve(KINDS[task])() if task in KINDS else None


@dataclass(frozen=True)
class RecordFile:
    """Records of the scored split, and what scoring needs beside them."""

    task: str
    label_names: tuple[str, ...]
    rows: Sequence[Mapping[str, Any]]
    head: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The gzip file; the same records give the same bytes."""
        head = {"records": FORMAT, "task": self.task, "label_names": list(self.label_names), "head": dict(self.head)}
        text = "".join(
            json.dumps(line, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
            for line in [head, *self.rows]
        )
        return gzip.compress(text.encode("utf-8", "surrogatepass"), compresslevel=6, mtime=0)

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str = "records") -> RecordFile:
        """Read what `to_bytes` wrote; raises ResultError for anything else."""
        try:
            lines = [
                json.loads(line) for line in gzip.decompress(data).decode("utf-8", "surrogatepass").split("\n") if line
            ]
            head = lines[0]
            if head["records"] != FORMAT:
                raise ResultError(f"{where}: format {head['records']!r}, this version reads {FORMAT}")
            return cls(head["task"], tuple(head["label_names"]), lines[1:], head["head"])
        except ResultError:
            raise
        except (OSError, EOFError, zlib.error, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise ResultError(f"{where} is no records file of hybridzoo, or it is damaged ({error})") from error

    @classmethod
    def read(cls, path: str | Path, sha256: str | None = None) -> RecordFile:
        """Read a file; with `sha256`, only if it is that file."""
        return cls.from_bytes(read_scored(path, sha256), where=str(path))
