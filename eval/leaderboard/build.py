"""Write the leaderboard's three files."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hybridzoo._atomic_file import whole_file
from hybridzoo._paths import PACKAGE, asset_root
from hybridzoo.errors import ConfigError, SourceError
from hybridzoo.eval.leaderboard.render import csv_text, markdown
from hybridzoo.eval.leaderboard.rows import load_tables
from hybridzoo.eval.leaderboard.webpage import page, recipes_in


@dataclass(frozen=True)
class Outputs:
    """Where the files go."""

    markdown: Path
    csv: Path
    page: Path

    @classmethod
    def in_repository(cls, root: Path) -> Self:
        """LEADERBOARD.md at the root, page and CSV under docs/leaderboard."""
        folder = root / "docs" / "leaderboard"
        return cls(markdown=root / "LEADERBOARD.md", csv=folder / "leaderboard.csv", page=folder / "index.html")

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """All three beside each other."""
        return cls(markdown=folder / "LEADERBOARD.md", csv=folder / "leaderboard.csv", page=folder / "index.html")


def default_results() -> Path:
    """`eval/results` of the clone (or of the installed package, which ships none)."""
    return asset_root("eval") / "results"


def default_outputs() -> Outputs:
    """The repository's own files; outside a clone, the current folder."""
    root = PACKAGE.parent
    return Outputs.in_repository(root) if (root / "setup.py").is_file() else Outputs.in_folder(Path.cwd())


def render_all(results: Path, outputs: Outputs, *, repository: str | None = None) -> dict[Path, str]:
    """Path -> text of every generated file.

    Raises:
        ResultError: a result file is invalid, misplaced or of an unknown task.
    """
    tables = load_tables(results)
    return {
        outputs.markdown: markdown(tables, outputs.markdown.parent),
        outputs.csv: csv_text(tables),
        outputs.page: page(
            tables, outputs.page.parent, markdown_path=outputs.markdown, csv_path=outputs.csv, repository=repository
        ),
    }


def build(results: Path | None = None, outputs: Outputs | None = None, *, repository: str | None = None) -> Outputs:
    """Read every result below `results` and write the three files, each atomically.

    Args:
        results: folder of result files; `eval/results` if left out.
        outputs: where to write; the repository's places if left out.
        repository: address of the repository on the web, for links to commits.

    Raises:
        ResultError: a result file is invalid, misplaced or of an unknown task.
        SourceError: a file cannot be written.
    """
    outputs = outputs or default_outputs()
    for path, text in render_all(results or default_results(), outputs, repository=repository).items():
        _write(path, text)
    return outputs


def bundle_board(results: Path | None, out: Path, *, repository: str | None = None) -> Outputs:
    """The three files with copies of what they link to (`results/`, `recipes/`) in one folder for a static host.

    Raises:
        ConfigError: `out` lies inside the results.
        ResultError, SourceError: as `build`.
    """
    results = results or default_results()
    if results.resolve() in (out.resolve(), *out.resolve().parents):
        raise ConfigError(f"{out} lies inside the results {results}; give a folder elsewhere")
    try:
        for source, name in ((results, "results"), (asset_root("recipes"), "recipes")):
            if source.is_dir():
                shutil.copytree(source, out / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py*", "__*"))
    except OSError as error:
        raise SourceError(f"cannot write {out}: {error.strerror or error}; choose a folder with --out") from error
    with recipes_in(out / "recipes"):
        return build(out / "results", Outputs.in_folder(out), repository=repository)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as staged:
            staged.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise SourceError(f"cannot write {path}: {error.strerror or error}; choose a folder with --out") from error
