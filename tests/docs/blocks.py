"""Code blocks of the Markdown documents, and what the comment before a block says about running it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```\s*$", re.M | re.S)
COMMENT = re.compile(r"<!--\s*(?P<word>not run|needs):\s*(?P<text>.+?)\s*-->\s*\Z", re.S)
SHELL = ("console", "bash", "sh", "shell")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        not_run: the reason why it is only parsed, or "".
        needs: a path of the repository without which it is only parsed, or "".
    """

    path: Path
    line: int
    language: str
    code: str
    not_run: str
    needs: str

    @property
    def where(self) -> str:
        return f"{self.path.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def why_not(self) -> str:
        """Why this block is not executed here, or ""."""
        if self.needs and not (ROOT / self.needs).exists():
            return f"{self.needs} is not there"
        return self.not_run


def documents() -> list[Path]:
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in found if path.is_file()]


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        note = COMMENT.search(text[: match.start()])
        word, reason = (note["word"], note["text"]) if note else ("", "")
        code = re.sub(f"^{match['indent']}", "", match["code"], flags=re.M)
        found.append(
            Block(
                path=path,
                line=text.count("\n", 0, match.start()) + 1,
                language=match["language"].lower() or ("console" if _only_commands(code) else ""),
                code=code,
                not_run=reason if word == "not run" else "",
                needs=reason if word == "needs" else "",
            )
        )
    return found


def _only_commands(code: str) -> bool:
    """Whether a block without a language shows calls of `hybridzoo`, one a line, and nothing else."""
    lines = [line for line in code.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return bool(lines) and all(line.startswith("hybridzoo ") for line in lines)


def commands(block: Block) -> list[list[str]]:
    """The command lines of a shell block as words, without environment settings, prompts and printed output."""
    code = block.code.replace("\\\n", " ")
    lines = code.splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    found = []
    for line in lines:
        for part in re.split(r"\s(?:&&|\|\|?|;)\s", line):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if ">" in words:
                words = words[: words.index(">")]
            if words:
                found.append(words)
    return found


def hybridzoo_arguments(words: list[str]) -> list[str] | None:
    """The arguments of `hybridzoo`, also behind python -m, torchrun or accelerate launch; None for other programs."""
    if words[0].rpartition("/")[2] == "hybridzoo":
        return words[1:]
    for i, word in enumerate(words[:-1]):
        if word == "-m" and words[i + 1] == "hybridzoo":
            return words[i + 2 :]
    return None
