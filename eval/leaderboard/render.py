"""Tables -> Markdown, CSV and the page. Same results, same bytes: nothing depends on the time of the build."""

from __future__ import annotations

import csv
import io
import json
import os
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hybridzoo._paths import asset_root
from hybridzoo.eval.leaderboard.rows import Cohort, Column, Row, Score, Table

TITLE = "hybridzoo leaderboard"
PAGE = Path(__file__).parent / "page"
ERRORS = {"sd": "standard deviation over seeds", "stderr": "standard error of one run (bootstrap over the samples)"}
LEGEND = (
    ("± ", "standard deviation over seeds where a row has several, else the bootstrap standard error of one run"),
    ("bold", "best value of its group; groups are never compared with each other"),
    ("measured", "run by this harness; `hybridzoo leaderboard check` recomputes the scores from stored predictions"),
    ("paper", "published by the authors; not run here, so it has no rank"),
    ("full, mini, subset", "whole test set; small embedded data set; part of a test set. They never rank together"),
    ("local changes", "the run's commit had uncommitted changes"),
)
COSTS = (
    ("params", "Parameters", "", False),
    ("throughput", "Samples/s", "samples/s", True),
    ("latency_ms", "Latency, ms", "ms", False),
    ("gmacs", "GMACs", "GMACs", False),
    ("peak_memory_mb", "Peak memory, MB", "MB", False),
)


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _relative(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


# Markdown ---------------------------------------------------------------------------------------------------------


def markdown(tables: list[Table], folder: Path) -> str:
    """LEADERBOARD.md: one table per task and cohort; links are relative to `folder`."""
    lines = [
        f"# {TITLE}",
        "",
        "Written by `hybridzoo leaderboard build` from the files in `eval/results`; do not edit. "
        "± is the standard deviation over seeds where there are several, else the bootstrap standard error of one run. "
        "Bold is the best of its table; tables are never compared with each other.",
        "",
    ]
    if not tables:
        lines += ["No results yet.", ""]
    for table in tables:
        lines += [f"## {table.title}", "", table.about, ""]
        lines += markdown_cohorts(table, folder)
    return "\n".join(lines)


def markdown_cohorts(table: Table, folder: Path) -> list[str]:
    """One titled Markdown table per cohort, as lines."""
    lines = []
    for cohort in table.cohorts:
        lines += [f"**{cohort.label}**: {cohort.note}", "", *_markdown_table(table, cohort, folder), ""]
    return lines


def _markdown_table(table: Table, cohort: Cohort, folder: Path) -> list[str]:
    columns = [c for c in table.columns if c.main and any(c.name in row.scores for row in cohort.rows)]
    head = ["#", "model", "parameters", *(c.label for c in columns), "n", "seeds", "result"]
    lines = ["| " + " | ".join(head) + " |", "|--:|---|--:|" + "--:|" * (len(columns) + 2) + "---|"]
    for row in cohort.rows:
        files = " ".join(f"[{i + 1}]({_relative(e.path, folder)})" for i, e in enumerate(row.entries))
        source = _web_only(row.first.provenance.source_url)
        cells = [
            str(row.rank) if row.rank else "",
            f"[{row.label}]({source})" if source else row.label,
            f"{row.params:,}" if row.params else "",
            *(markdown_score(row, c) for c in columns),
            f"{row.first.task.dataset.n_used:,}",
            str(len(row.entries)) if row.first.run else "",
            files,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def markdown_score(row: Row, column: Column) -> str:
    """`**93.80** ± 0.20`, bold where it is the best of its cohort; empty without this metric."""
    score = row.scores.get(column.name)
    if score is None:
        return ""
    value = number(score.value, column.digits)
    value = f"**{value}**" if column.name in row.best else value
    return value + (f" ± {number(score.error, column.digits)}" if score.error is not None else "")


# CSV --------------------------------------------------------------------------------------------------------------


def csv_text(tables: list[Table]) -> str:
    """One line per row and metric (long form): every task has other metrics."""
    head = "task,group,status,track,rank,model,family,parameters,recipe,seeds,n,metric,unit,value,error,error_kind,best"
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head.split(","))
    for table in tables:
        for cohort, row in table.rows:
            status, track = row.first.provenance.status, row.first.track
            for column in table.columns:
                score = row.scores.get(column.name)
                if score is None:
                    continue
                facts = [table.name, cohort.key, status, track, row.rank, row.label, row.family, row.params, row.recipe]
                facts += [len(row.entries), row.first.task.dataset.n_used, column.name, column.unit]
                writer.writerow([*facts, *_csv_score(score), int(column.name in row.best)])
    return out.getvalue()


def _csv_score(score: Score) -> tuple[str, str, str]:
    return f"{score.value:.6g}", "" if score.error is None else f"{score.error:.4g}", score.kind


# Page -------------------------------------------------------------------------------------------------------------


def page(tables: list[Table], folder: Path, *, markdown_path: Path, csv_path: Path, repository: str | None) -> str:
    """The self-contained page: template, style, scripts and data in one file that works from file://."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(PAGE), undefined=StrictUndefined, autoescape=True, keep_trailing_newline=True
    )
    from markupsafe import Markup

    models = {row.label for table in tables for _, row in table.rows}
    tasks = "task" if len(tables) == 1 else "tasks"
    return environment.get_template("page.html.jinja").render(
        title=TITLE,
        lead=f"{len(models)} models on {len(tables)} {tasks}. "
        "Every measured row links to its result file, and names its recipe "
        "and commit. Rows are ranked only within their group.",
        legend=LEGEND,
        css=Markup(_inline("page.css")),
        js=Markup(_inline("plot.js") + _inline("page.js")),
        data=Markup(script_json(page_data(tables, folder, repository))),
        markdown_link=_relative(markdown_path, folder),
        csv_link=_relative(csv_path, folder),
    )


def _inline(name: str) -> str:
    text = (PAGE / name).read_text(encoding="utf-8")
    if "</script" in text.lower() or "</style" in text.lower():
        raise ValueError(f"{name} must not contain a closing script or style tag: it is inlined")
    return text


def script_json(value: Any) -> str:
    """JSON that is safe inside <script>: no `<` can close the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page_data(tables: list[Table], folder: Path, repository: str | None = None) -> dict[str, Any]:
    """What page.js reads."""
    titles = family_titles()
    families = sorted({row.family for table in tables for _, row in table.rows})
    return {
        "errors": ERRORS,
        "families": [{"name": name, "title": titles.get(name, name.replace("_", " "))} for name in families],
        "tasks": [_task_data(table, folder, repository) for table in tables],
    }


def family_titles() -> dict[str, str]:
    from hybridzoo import registry

    return {name: family.title for name, family in registry.families().items()}


def _task_data(table: Table, folder: Path, repository: str | None) -> dict[str, Any]:
    rows = [_row_data(table, cohort, row, folder, repository) for cohort, row in table.rows]
    stated = [cost for cost in COSTS if cost[0] == "params" or any(r["costs"][cost[0]] is not None for r in rows)]
    return {
        "name": table.name,
        "title": table.title,
        "about": table.about,
        "primary": table.primary,
        "metrics": [vars(column) for column in table.columns],
        "costs": [{"key": k, "label": label, "unit": u, "higher_is_better": h} for k, label, u, h in stated],
        "groups": [{"key": c.key, "kind": c.kind, "label": c.label, "note": c.note} for c in table.cohorts],
        "rows": rows,
    }


def _row_data(table: Table, cohort: Cohort, row: Row, folder: Path, repository: str | None) -> dict[str, Any]:
    first = row.first
    runs = [_run_data(e.path, e.result, folder, repository) for e in row.entries]
    status, track = first.provenance.status, first.track
    words = [row.label, row.family, status, track, row.recipe or "", *(r["commit"] or "" for r in runs)]
    return {
        "id": f"{cohort.key}-{cohort.rows.index(row)}",
        "group": cohort.key,
        "rank": row.rank,
        "label": row.label,
        "family": row.family,
        "status": status,
        "track": track,
        "seeds": len(row.entries),
        "n_used": first.task.dataset.n_used,
        "metrics": {name: vars(score) for name, score in row.scores.items()},
        "best": list(row.best),
        "costs": {"params": row.params} | {key: row.efficiency(key) for key, *_ in COSTS[1:]},
        "badges": _badges(row),
        "recipe": _recipe(row.recipe, folder),
        "source_url": _web_only(first.provenance.source_url),
        "facts": _facts(row),
        "search": " ".join(words).lower(),
        "runs": runs,
    }


def _web_only(url: str | None) -> str | None:
    """A link that a result file brings is used only when it leads to the web (never `javascript:`)."""
    return url if url and url.startswith(("https://", "http://")) else None


def _badges(row: Row) -> list[dict[str, str]]:
    first, found = row.first, []
    if first.provenance.status == "paper":
        found.append({"kind": "paper", "text": "paper", "title": LEGEND[3][1]})
    if first.track != "full":
        found.append({"kind": first.track, "text": first.track, "title": LEGEND[4][1]})
    if len(row.entries) > 1:
        title = "mean and standard deviation over the seeds of training"
        found.append({"kind": "seeds", "text": f"{len(row.entries)} seeds", "title": title})
    if any(e.result.run and e.result.run.git_dirty for e in row.entries):
        found.append({"kind": "dirty", "text": "local changes", "title": LEGEND[5][1]})
    return found


def _recipe(title: str | None, folder: Path) -> dict[str, str | None] | None:
    if title is None:
        return None
    file = recipe_files().get(title)
    return {"label": title, "href": _relative(file, folder) if file else None}


@cache
def recipe_files() -> dict[str, Path]:
    """Title -> file of every recipe (results state the title)."""
    import yaml

    found = {}
    for file in sorted(asset_root("recipes").rglob("*.yaml")):
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(recipe, dict) and isinstance(recipe.get("title"), str):
            found[recipe["title"]] = file
    return found


def _facts(row: Row) -> list[list[str]]:
    first, data = row.first, row.first.task.dataset
    facts = [
        ["Data", f"{data.id}, split {data.split}, {data.n_used:,} of {data.n_total:,} samples"],
        ["Protocol", f"{first.task.protocol} (task version {first.task.version})"],
    ]
    if data.revision or data.sha256:
        facts.append(
            ["Data version", ", ".join(filter(None, [data.revision, data.sha256 and f"sha256 {data.sha256}"]))]
        )
    facts += [["Note", note] for note in data.notes]
    if first.model.settings:
        facts.append(["Settings", ", ".join(f"{k} = {v}" for k, v in sorted(first.model.settings.items()))])
    if first.model.weights:
        facts.append(["Weights", first.model.weights.uri])
    if first.run:
        facts.append(["Hardware", ", ".join(filter(None, [first.run.device, first.run.dtype, first.run.backend]))])
        facts.append(["Versions", ", ".join(f"{k} {v}" for k, v in sorted(first.run.versions.items()))])
    if row.recipe:
        facts.append(["Recipe", row.recipe])
    if first.provenance.source:
        facts.append(["Source", first.provenance.source])
    if first.provenance.notes:
        facts.append(["Notes", first.provenance.notes])
    return facts


def _run_data(path: Path, result: Any, folder: Path, repository: str | None) -> dict[str, Any]:
    run = result.run
    commit = run.git_commit if run else None
    seed = None if run is None else run.training_seed if run.training_seed is not None else run.seed
    return {
        "json": _relative(path, folder),
        "command": run.command if run else None,
        "commit": commit,
        "commit_href": f"{repository.rstrip('/')}/commit/{commit}" if repository and commit else None,
        "date": run.date[:10] if run else None,
        "seed": seed,
        "weights": result.model.weights.sha256 if result.model.weights else None,
        "values": {name: metric.value for name, metric in result.metrics.items()},
    }
