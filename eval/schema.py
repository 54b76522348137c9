"""Result files, schema v1: one JSON per run, never edited.

    eval/results/<task>/<model[.tag]>/<YYYYMMDD-HHMMSS>-<commit8>[-seed<N>].json  measured here
    eval/results/<task>/<model[.tag]>/paper[-<word>].json                  printed in a paper or by its authors

A correction is a new file that names the old one in `supersedes`. Light to import: no torch, no numpy.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from hybridzoo.eval._strict import ResultError, build

SCHEMA_VERSION = 1
STATUSES = ("measured", "paper")
TRACKS = ("full", "subset", "mini")
UNITS = ("%", "", "nats", "mm", "px")
SHA256 = re.compile(r"[0-9a-f]{64}")
DATE = re.compile(r"\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}:\d{2}Z)?")
FILE_NAME = re.compile(r"(\d{8}-\d{6}-[0-9a-z]{8}(-seed\d+)?(-\d+)?|paper(-[a-z0-9_-]+)?)\.json")
NO_COMMIT = "nocommit"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Which weights ran. `sha256` is over all tensors of the state dict (name, dtype, shape, bytes, sorted by name)."""

    uri: str
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """What ran. `name` is a registered name, a folder's name, or `baseline_<name>`."""

    name: str
    tag: str | None = None
    family: str | None = None
    params: int | None = None
    config_sha256: str | None = None
    weights: Weights | None = None
    settings: dict[str, Any] = field(
        default_factory=dict
    )  # what a row must state: max_length, preprocess, image_size …

    @property
    def full_name(self) -> str:
        return f"{self.name}.{self.tag}" if self.tag else self.name


@dataclass(frozen=True, kw_only=True)
class DatasetRef:
    """What it ran on."""

    id: str
    split: str
    n_total: int
    n_used: int
    revision: str | None = None
    sha256: str | None = None
    sha256_of: str | None = None
    skipped: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TaskRef:
    """The task: data set, protocol and the metric that ranks."""

    name: str
    version: int
    protocol: str
    dataset: DatasetRef
    primary: str
    higher_is_better: bool = True


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A value in its unit (`%` for shares, 0 to 100) and its bootstrap standard error."""

    value: float
    stderr: float | None = None
    unit: str = "%"


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """How fast the run was, on `run.device`, data loading included."""

    throughput: float | None = None
    unit: str = "samples/s"
    latency_ms: float | None = None
    peak_memory_mb: float | None = None
    gmacs: float | None = None
    batch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """How it was measured."""

    date: str
    command: str
    seed: int
    dtype: str
    device: str
    recipe: str | None = None
    training_seed: int | None = None
    backend: str | None = None
    deterministic: bool = False
    git_commit: str | None = None
    git_dirty: bool | None = None
    versions: dict[str, str] = field(default_factory=dict)
    wall_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class PredictionsRef:
    """The predictions that the scores were computed from: file beside the result, and its sha256."""

    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the numbers come from. Paper rows name their source."""

    status: str
    source_url: str | None = None
    source: str | None = None
    submitted_by: str | None = None
    predictions: PredictionsRef | None = None
    notes: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of one model on one task.

    Attributes:
        track: `full`, `subset` or `mini`; results of different tracks never rank together.
        details: what is no single number: the confusion matrix, scores per class, reliability bins.
        supersedes: path of the result file that this one corrects, relative to `eval/results`.
    """

    model: ModelRef
    task: TaskRef
    metrics: dict[str, Metric]
    provenance: Provenance
    track: str
    run: Run | None = None
    efficiency: Efficiency | None = None
    details: dict[str, Any] = field(default_factory=dict)
    supersedes: str | None = None
    schema: int = SCHEMA_VERSION

    # JSON -----------------------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Any, *, where: str = "result") -> Self:
        """The result of a plain dictionary; unknown or missing keys and wrong types raise ResultError naming the
        field.
        """
        if isinstance(values, Mapping) and values.get("schema") != SCHEMA_VERSION:
            raise ResultError(
                f"{where}: schema {values.get('schema')!r}; this version of hybridzoo reads {SCHEMA_VERSION}"
            )
        result = build(cls, values, where)
        result.validate(where=where)
        return result

    @classmethod
    def from_json(cls, source: str | Path) -> Self:
        """Read a result from a file, or from JSON text.

        Raises:
            ResultError: not JSON, or against the schema.
        """
        is_text = isinstance(source, str) and source.lstrip().startswith("{")
        where = "result" if is_text else str(source)
        try:
            text = str(source) if is_text else Path(source).read_text(encoding="utf-8")
            values = json.loads(text)
        except OSError as error:
            raise ResultError(f"{where} cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise ResultError(f"{where} is not JSON ({error})") from error
        return cls.from_dict(values, where=where)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, `schema` first."""
        values = asdict(self)
        return {"schema": values.pop("schema"), **values}

    def to_json(self, path: str | Path | None = None) -> str:
        """JSON text; with `path` also written there, atomically. An existing file is never overwritten.

        Raises:
            ResultError: the file exists, or the result is not valid.
        """
        self.validate()
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        if path is not None:
            write_new(Path(path), text.encode("utf-8"))
        return text

    # Checks ---------------------------------------------------------------------------------------------------------

    def validate(self, *, where: str = "result") -> None:
        """Raise ResultError when values contradict each other or the schema."""

        def demand(condition: bool, text: str) -> None:
            if not condition:
                raise ResultError(f"{where}: {text}")

        demand(self.schema == SCHEMA_VERSION, f"schema must be {SCHEMA_VERSION}, it is {self.schema!r}")
        status, data = self.provenance.status, self.task.dataset
        demand(status in STATUSES, f"provenance.status must be one of {', '.join(STATUSES)}, it is {status!r}")
        demand(self.track in TRACKS, f"track must be one of {', '.join(TRACKS)}, it is {self.track!r}")
        demand(
            bool(re.fullmatch(r"\w[\w-]*", self.task.name)),
            f"task.name {self.task.name!r} must be letters, digits, _ and -",
        )
        demand(
            bool(re.fullmatch(r"\w[\w-]*", self.model.name)),
            f"model.name {self.model.name!r} must be letters, digits, _ and -",
        )
        tag = self.model.tag
        demand(
            tag is None or bool(re.fullmatch(r"[\w.-]+", tag)), f"model.tag {tag!r} must be letters, digits, _, . and -"
        )
        demand(bool(self.metrics), "metrics is empty")
        for name, metric in self.metrics.items():
            demand(math.isfinite(metric.value), f"metrics.{name}.value must be a finite number, it is {metric.value}")
            fine = metric.stderr is None or (math.isfinite(metric.stderr) and metric.stderr >= 0)
            demand(fine, f"metrics.{name}.stderr must be 0 or more, it is {metric.stderr}")
            demand(metric.unit in UNITS, f"metrics.{name}.unit must be one of {UNITS}, it is {metric.unit!r}")
            in_range = metric.unit != "%" or 0 <= metric.value <= 100
            demand(in_range, f"metrics.{name}.value is in %, so 0 to 100; it is {metric.value}")
        demand(
            self.task.primary in self.metrics,
            f"the primary metric {self.task.primary!r} is not among {', '.join(self.metrics)}",
        )
        demand(
            0 < data.n_used <= data.n_total, f"task.dataset: n_used {data.n_used} must be 1 to n_total ({data.n_total})"
        )
        cut = data.n_used < data.n_total
        demand(
            not cut or self.track == "subset",
            f"{data.n_used} of {data.n_total} samples were used, so track must be 'subset'",
        )
        weights = self.model.weights.sha256 if self.model.weights else None
        for name, sha in (
            ("model.weights", weights),
            ("model.config", self.model.config_sha256),
            ("dataset", data.sha256),
        ):
            demand(sha is None or bool(SHA256.fullmatch(sha)), f"{name} sha256 must be 64 hex digits, it is {sha!r}")
        if status == "paper":
            demand(
                bool(self.provenance.source_url and self.provenance.source),
                "a paper row needs provenance.source and source_url",
            )
            demand(self.run is None, "a paper row has no run: nothing was measured")
        else:
            demand(self.run is not None, "a measured row needs run")
            assert self.run is not None
            demand(
                bool(DATE.fullmatch(self.run.date)),
                f"run.date must be ISO 8601 UTC (2026-01-31T12:00:00Z), it is {self.run.date!r}",
            )
            demand(self.provenance.predictions is not None, "a measured row needs provenance.predictions")
            assert self.provenance.predictions is not None
            name = self.provenance.predictions.path
            demand(
                Path(name).name == name, f"provenance.predictions.path must be a file beside the result, it is {name!r}"
            )

    def path_in(self, results: Path, *, kind: str | None = None) -> Path:
        """Where this result belongs below `results`; `kind` adds a word to a paper row's name."""
        if self.run is None:
            name = "paper" + (f"-{kind}" if kind else "")
        else:
            commit = (self.run.git_commit or NO_COMMIT)[:8]
            name = f"{self.run.date.replace('-', '').replace(':', '').replace('T', '-').rstrip('Z')}-{commit}"
            if self.run.training_seed is not None:  # seeds that train side by side end within the same second
                name += f"-seed{self.run.training_seed}"
        return results / self.task.name / self.model.full_name / f"{name}.json"


def check_location(result: Result, path: Path, results: Path) -> None:
    """Raise ResultError unless the file lies where its content says it belongs."""
    parts = path.relative_to(results).parts
    if len(parts) != 3 or parts[:2] != (result.task.name, result.model.full_name) or not FILE_NAME.fullmatch(parts[2]):
        raise ResultError(
            f"{path}: this result belongs to {result.task.name}/{result.model.full_name}/ under a name like "
            "20260131-120000-1a2b3c4d.json, or paper.json for a paper row"
        )
    if (result.run is None) != parts[2].startswith("paper"):
        raise ResultError(f"{path}: files named paper… hold paper rows and only those")


def read_results(results: str | Path) -> list[tuple[Path, Result]]:
    """All result files below a folder, sorted by path; the first bad one raises ResultError."""
    results = Path(results)
    found = []
    for path in sorted(results.rglob("*.json")):
        result = Result.from_json(path)
        check_location(result, path, results)
        found.append((path, result))
    return found


def read_scored(path: str | Path, sha256: str | None = None) -> bytes:
    """The file that a result was computed from; with `sha256`, only if it is that very file.

    Raises:
        ResultError: it cannot be read, or is another.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ResultError(f"{path} cannot be read ({error.strerror})") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise ResultError(f"{path} is not the file that was scored (sha256 {found[:12]}…, expected {sha256[:12]}…)")
    return data


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist: complete or not at all, and never over another.

    Raises:
        ResultError: it exists, or the folder cannot be written (full disk, no permission).
    """
    if path.exists():
        raise _taken(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            _claim(temporary, path)
        finally:
            os.unlink(temporary)
    except OSError as error:
        raise ResultError(f"cannot write {path}: {error.strerror or error}; give another folder with --out") from error


def _taken(path: Path) -> ResultError:
    return ResultError(f"{path} exists; results are never overwritten (write a new one with 'supersedes')")


def _claim(temporary: str, path: Path) -> None:
    """Give the file its name; ResultError when the name is taken by now (a rename would replace silently)."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError:  # a file system without hard links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        shutil.copyfile(temporary, path)
