"""Writes the tables in README.md and docs/ that come from the code and the result files.

    python docs/generate.py            rewrite every table
    python docs/generate.py --check    exit 1 and name the files that are stale

A table stands between two comments, `<!-- generated: NAME [ARGUMENT] -->` and `<!-- end generated -->`:

    models [FAMILY]     the registered models
    families            the architectures, their papers and licences
    overview            architectures x tasks x the best result of each
    results [TASK]      what was measured: models x tasks, or the table of one task
    tasks               the evaluation tasks
    commands            the CLI's commands
    options COMMAND     one command's arguments and options
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- generated: ([\w-]+)(?: ([\w-]+))? -->\n).*?(<!-- end generated -->)", re.S)


def documents() -> list[Path]:
    """README.md, CONTRIBUTING.md and every Markdown file below docs/."""
    return [
        p for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))) if p.is_file()
    ]


def generate(text: str, where: str, folder: Path) -> str:
    """`text` with every generated block written anew; links are relative to `folder`."""

    def fill(match: re.Match[str]) -> str:
        name, argument = match[2], match[3]
        if name not in TABLES:
            raise SystemExit(f"{where}: there is no table {name!r}; known are {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[name](argument, folder)}\n{match[4]}"

    if text.count("<!-- generated:") != len(BLOCK.findall(text)):
        raise SystemExit(f"{where}: a generated block is not closed by <!-- end generated -->")
    return BLOCK.sub(fill, text)


def table(header: list[str], rows: list[list[Any]], right: tuple[int, ...] = ()) -> str:
    """A Markdown table."""
    marks = ["--:" if i in right else "---" for i in range(len(header))]
    lines = [header, marks, *([str("" if c is None else c).replace("|", "\\|") for c in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# Tables -----------------------------------------------------------------------------------------------------------


def models(family: str | None, folder: Path) -> str:
    from hybridzoo import model_info, registry
    from hybridzoo.cli._table import si

    rows = []
    for name in registry.list_models(family=family):
        info = model_info(name)
        tags = ", ".join(f"`.{tag}`" for tag in info.tags)
        rows.append([f"`{name}`", si(info.parameters), info.task, tags, info.summary])
    return table(["model", "parameters", "task", "weights", "what it is"], rows, right=(1,))


def families(_: str | None, folder: Path) -> str:
    from hybridzoo import registry

    rows = []
    for name, family in sorted(registry.families().items()):
        page = ROOT / "docs" / "models" / f"{name}.md"
        title = f"[{family.title}]({_relative(page, folder)})" if page.is_file() else family.title
        count = sum(m.family == name for m in registry.models().values())
        rows.append([title, ", ".join(family.model_classes), count, _linked(family.paper), _linked(family.source)])
    return table(["architecture", "tasks", "models", "paper", "original code"], rows, right=(2,))


def overview(_: str | None, folder: Path) -> str:
    from hybridzoo import registry
    from hybridzoo.eval.leaderboard.build import default_results
    from hybridzoo.eval.leaderboard.rows import load_tables, metric_label

    best: dict[str, list[str]] = {name: [] for name in registry.families()}
    of_model = {name: m.family for name, m in registry.models().items()}
    for t in load_tables(default_results()):
        for c in t.cohorts:
            taken: set[str] = set()
            for r in c.rows if c.kind != "paper" else ():  # best first
                family = of_model.get(r.label.partition(".")[0])
                if family is None or family in taken:
                    continue
                taken.add(family)
                track = "" if c.kind == "measured-full" else f" ({c.kind.removeprefix('measured-')})"
                score = f"at chance ({_score(t, r).replace('**', '')})" if r.at_chance else _score(t, r)
                best[family].append(f"{t.name}{track}: {metric_label(t.primary)} {score} `{r.label}`")
    rows = []
    for name, family in sorted(registry.families().items()):
        page = ROOT / "docs" / "models" / f"{name}.md"
        title = f"[{family.title}]({_relative(page, folder)})" if page.is_file() else family.title
        rows.append([title, ", ".join(family.model_classes), "<br>".join(best[name]) or "not measured"])
    return table(["architecture", "tasks", "its best measured result on each data set"], rows)


def results(task: str | None, folder: Path) -> str:
    from hybridzoo.eval.leaderboard.build import default_results
    from hybridzoo.eval.leaderboard.render import markdown_cohorts
    from hybridzoo.eval.leaderboard.rows import load_tables, metric_label
    from hybridzoo.eval.tasks import load_task

    tables = load_tables(default_results())
    if task is not None:
        load_task(task)
        chosen = [t for t in tables if t.name == task]
        return "\n".join(markdown_cohorts(chosen[0], folder)).strip() if chosen else "Nothing was measured yet."
    measured = [(t, c, r) for t in tables for c in t.cohorts if c.kind != "paper" for r in c.rows]
    if not measured:
        return "Nothing was measured yet."
    columns = [(t, c) for t in tables for c in t.cohorts if c.kind != "paper"]
    header = ["model", "parameters"]
    for t, c in columns:
        track = "" if c.kind == "measured-full" else f" ({c.kind.removeprefix('measured-')})"
        several = sum(other is t for other, _ in columns) > 1
        header.append(
            f"{t.name}{track}{', ' + c.label.partition(', ')[2] if several else ''}: {metric_label(t.primary)}"
        )
    names = sorted({r.label for *_, r in measured})
    rows = []
    for name in names:
        mine = {id(c): (t, r) for t, c, r in measured if r.label == name}
        params = next((r.params for _, r in mine.values() if r.params), None)
        cells = [_score(*mine[id(c)]) if id(c) in mine else "" for _, c in columns]
        rows.append([f"`{name}`", f"{params:,}" if params else "", *cells])
    return table(header, rows, right=tuple(range(1, len(header))))


def _score(t: Any, row: Any) -> str:
    from hybridzoo.eval.leaderboard.render import markdown_score

    column = next(c for c in t.columns if c.name == t.primary)
    seeds = f" ({len(row.entries)} seeds)" if len(row.entries) > 1 else ""
    return markdown_score(row, column) + seeds


def tasks(_: str | None, folder: Path) -> str:
    from hybridzoo.eval.leaderboard.rows import metric_label
    from hybridzoo.eval.tasks import list_tasks, load_task

    rows = []
    for name in list_tasks():
        t = load_task(name)
        rows.append([f"`{name}`", t.title, f"`{t.data}`", t.protocol, metric_label(t.primary), ", ".join(t.metrics)])
    return table(["task", "title", "data", "protocol", "ranked by", "metrics"], rows)


def _cli() -> Any:
    import typer

    from hybridzoo.cli import app

    return typer.main.get_command(app)


def _leaves(command: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in sorted(command.commands.items()):
        if hasattr(inner, "commands"):
            yield from _leaves(inner, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", inner


def commands(_: str | None, folder: Path) -> str:
    rows = []
    for name, command in _leaves(_cli()):
        arguments = " ".join(_argument(p) for p in command.params if p.param_type_name == "argument")
        help_text = " ".join((command.help or "").split("\b")[0].split())
        first = re.split(r"(?<=[.:])\s", help_text)[0].rstrip(":")
        rows.append([f"`hybridzoo {name} {arguments}`".replace(" `", "`"), first])
    return table(["command", "what it does"], rows)


def _argument(parameter: Any) -> str:
    word = (parameter.metavar or parameter.name).upper().strip("[]{}")
    word += " …" if parameter.nargs == -1 else ""
    return word if parameter.required else f"[{word}]"


def options(command: str | None, folder: Path) -> str:
    found = {name.replace(" ", "-"): inner for name, inner in _leaves(_cli())}
    if command not in found:
        raise SystemExit(f"there is no command {command!r}; known are {', '.join(found)}")
    rows = []
    for parameter in found[command].params:
        if parameter.param_type_name == "argument":
            label = _argument(parameter)
        else:
            label = ", ".join([*parameter.opts, *parameter.secondary_opts])
        rows.append([f"`{label}`", " ".join((parameter.help or "").split())])
    return table(["argument or option", "meaning"], rows)


def _linked(text: str) -> str:
    return re.sub(r"(?<![(<\[])(https?://[^\s,;)]+[^\s,;).])", r"<\1>", text)


def _relative(path: Path, folder: Path) -> str:
    import os

    return Path(os.path.relpath(path, folder)).as_posix()


TABLES: dict[str, Callable[[str | None, Path], str]] = {
    "models": models,
    "families": families,
    "overview": overview,
    "results": results,
    "tasks": tasks,
    "commands": commands,
    "options": options,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is stale")
    check = parser.parse_args(arguments).check
    stale = []
    for path in documents():
        old = path.read_text(encoding="utf-8")
        new = generate(old, str(path.relative_to(ROOT)), path.parent)
        if new == old:
            continue
        stale.append(path.relative_to(ROOT).as_posix())
        if not check:
            path.write_text(new, encoding="utf-8")
    if check and stale:
        print(f"stale tables in {', '.join(stale)}; run: python docs/generate.py", file=sys.stderr)
        return 1
    print(f"{'all tables are current' if not stale else 'rewrote ' + ', '.join(stale)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
