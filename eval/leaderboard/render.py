"""Tables -> Markdown and CSV. Same results, same bytes: nothing depends on the time of the build."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from urllib.parse import quote

from hybridzoo.eval.leaderboard.rows import Cohort, Column, Row, Score, Table

TITLE = "hybridzoo leaderboard"


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def relative(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


def web_only(url: str | None) -> str | None:
    """A link that a result file brings is used only when it leads to the web (never `javascript:`)."""
    return url if url and url.startswith(("https://", "http://")) else None


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
        files = " ".join(f"[{i + 1}]({relative(e.path, folder)})" for i, e in enumerate(row.entries))
        source = web_only(row.first.provenance.source_url)
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
