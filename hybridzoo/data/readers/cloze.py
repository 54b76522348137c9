"""Texts to go on from, with the answer that should come: SWDE, FDA and SQuAD in the cloze form of "Based"."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridzoo.data.base import Raw, Split
from hybridzoo.errors import DataError

HUB = {
    "squad_completion": "hazyresearch/based-squad",
    "swde": "hazyresearch/based-swde",
    "fda": "hazyresearch/based-fda",
}


@dataclass(frozen=True)
class Cloze:
    """A text to go on from, and what should come."""

    id: str
    text: str
    value: str


def read_cloze(root: str | Path, name: str = "squad_completion") -> list[Cloze]:
    """The rows of a task from `validation.jsonl`, another .jsonl or .json file, or the hub (`hf:org/name`).

    Args:
        root: a file, a folder with `validation.jsonl`, or `hf:hazyresearch/based-squad`.
        name: of the task, for messages.

    Raises:
        DataError: nothing there, or rows without `text` and `value`.
    """
    if isinstance(root, str) and root.startswith("hf:"):
        from hybridzoo.data.readers.hf import load_hub

        table, _ = load_hub(root)
        rows: list[Any] = list(table["validation"] if "validation" in table else next(iter(table.values())))
    else:
        path = Path(root).expanduser()
        path = path / "validation.jsonl" if path.is_dir() else path
        try:
            text = path.read_text(encoding="utf-8-sig")
            lines = [line for line in text.splitlines() if line.strip()]
            rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in lines]
        except FileNotFoundError as error:
            needed = f"rows with text and value, as {HUB.get(name, HUB['squad_completion'])} on the hub has them"
            raise DataError(f"{path} does not exist; {name} needs {needed} (root='hf:…' reads it there)") from error
        except ValueError as error:
            raise DataError(f"{path} holds no JSON rows ({error})") from error
    made = []
    for number, row in enumerate(rows):
        found = {key: row.get(key) for key in ("text", "value")} if isinstance(row, Mapping) else {}
        if not found or not all(isinstance(v, str) and v.strip() for v in found.values()):
            have = ", ".join(map(str, row))[:80] if isinstance(row, Mapping) else type(row).__name__
            raise DataError(f"{root}: row {number} has {have}; expected texts under 'text' and 'value'")
        made.append(
            Cloze(
                str(row.get("id", row.get("doc_id", number))), str(found["text"]).strip(), str(found["value"]).strip()
            )
        )
    if not made:
        raise DataError(f"{root} holds no rows")
    return made


def read(name: str, root: str | Path) -> Raw:
    """All rows as the test split."""
    rows = read_cloze(root, name)
    lines = "".join(json.dumps(asdict(row), ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    return Raw(
        splits={"test": Split([row.id for row in rows], [0] * len(rows), rows, "cloze")},
        label_names=(),
        sha256=hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest(),
        sha256_of="the rows (id, text, value) as JSON lines",
        revision=str(root).removeprefix("hf:") if str(root).startswith("hf:") else "",
    )


def read_squad_completion(root: Any, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """SQuAD as completion."""
    return read("squad_completion", root)


def read_swde(root: Any, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """SWDE: facts of web pages."""
    return read("swde", root)


def read_fda(root: Any, protocol: str, seed: int, options: dict[str, Any]) -> Raw:
    """FDA: facts of reports on medical devices."""
    return read("fda", root)
