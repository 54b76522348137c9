"""Pairs of answers for preference training: for each prompt, the answer that was preferred and the one that was not.

Rows have the keys `prompt`, `chosen` and `rejected`. Each is a text, or a list of messages `{"role", "content"}`;
answers as messages may repeat the prompt's messages, which then need not stand under `prompt`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridzoo.data.base import Raw, Split
from hybridzoo.data.readers.corpus import kind_of, open_text, split_documents, split_files
from hybridzoo.errors import DataError

Message = Mapping[str, str]
_EXPECTED = "texts, or lists of messages with role and content, under prompt, chosen and rejected"


@dataclass(frozen=True)
class Pair:
    """A prompt, as text or as messages, and two answers to it."""

    prompt: str | list[dict[str, str]]
    chosen: str
    rejected: str


def as_pair(row: Any, where: str) -> Pair:
    """One row as a Pair.

    Raises:
        DataError: a key is missing, an answer is empty, or the two answers are to different prompts.
    """
    if not isinstance(row, Mapping) or not {"chosen", "rejected"} <= set(row):
        have = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise DataError(f"{where} has {have[:80]}; expected {_EXPECTED}")
    answers, prompts = {}, []
    for key in ("chosen", "rejected"):
        value = row[key]
        if isinstance(value, str):
            answers[key] = value
            continue
        messages = _messages(value, f"{where}, {key}")
        answers[key] = messages[-1]["content"]
        if len(messages) > 1:
            prompts.append(messages[:-1])
    if len(prompts) == 2 and prompts[0] != prompts[1]:
        raise DataError(f"{where}: chosen and rejected answer different prompts")
    prompt = prompts[0] if prompts else row.get("prompt")
    prompt = prompt if isinstance(prompt, str) else _messages(prompt, f"{where}, prompt")
    if not prompt or not all(text.strip() for text in answers.values()):
        raise DataError(f"{where} has an empty prompt or answer; expected {_EXPECTED}")
    return Pair(prompt, answers["chosen"], answers["rejected"])


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    fine = isinstance(value, list) and value and all(isinstance(m, Mapping) for m in value)
    if not fine or not all(isinstance(m.get(k), str) for m in value for k in ("role", "content")):
        raise DataError(f"{where}: {str(value)[:60]!r} is neither; expected {_EXPECTED}")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def read_preferences(root: str | Path, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """JSON lines in one file, or in files named train, validation and test, or a set of the hub ("hf:org/name")."""
    if isinstance(root, str) and root.startswith("hf:"):
        from hybridzoo.data.readers.hf import load_hub

        table, revision = load_hub(root, None, options.get("config_name"))
        names = {"train": options.get("train_split", "train"), "validation": options.get("validation_split")}
        found = {split: table[name] for split, name in names.items() if name in table}
        rows = {split: [as_pair(row, f"{root}: row {i}") for i, row in enumerate(t)] for split, t in found.items()}
        if "train" not in rows:
            raise DataError(f"{root} has the splits {', '.join(table)}; name the one to learn from with train_split=")
    else:
        path, revision = Path(root).expanduser(), ""
        files = {s: f for s, f in split_files(path).items() if s != "test"} or {
            "train": [path] if path.is_file() else []
        }
        paths = [p for group in files.values() for p in group if kind_of(p) == "lines"]
        if not paths:
            raise DataError(f"{path} holds no .jsonl file with {_EXPECTED}")
        rows = {split: [pair for p in group for pair in _read(p)] for split, group in files.items()}
    given = "validation" in rows
    if not given:
        everything = rows["train"]
        parts = split_documents(len(everything), seed)
        rows = {s: [everything[i] for i in parts[s]] for s in ("train", "validation")}
    digest = hashlib.sha256()
    for pair in (pair for split in rows.values() for pair in split):
        digest.update(json.dumps(asdict(pair), ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass"))
    return Raw(
        splits={
            split: Split([f"{split}/{i}" for i in range(len(pairs))], [0] * len(pairs), pairs, "preference")
            for split, pairs in rows.items()
        },
        label_names=(),
        sha256=digest.hexdigest(),
        sha256_of="the pairs as JSON",
        revision=revision,
        protocol="given" if given else "95/5",
    )


def _read(path: Path) -> Iterable[Pair]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where} is not JSON ({error})") from error
            yield as_pair(row, where)
