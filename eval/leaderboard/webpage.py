"""Tables -> one self-contained page: template, style, scripts, pictures and data in one file that works from file://.

The page is in page/: page.html.jinja, page.css and small scripts that are inlined in the order of SCRIPTS.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from hybridzoo._paths import asset_root
from hybridzoo.eval.leaderboard.render import TITLE, relative, web_only
from hybridzoo.eval.leaderboard.rows import Cohort, Row, Table
from hybridzoo.eval.leaderboard.samples import row_samples
from hybridzoo.eval.tasks import load_task

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("util.js", "state.js", "rows.js", "filters.js", "table.js", "plot.js", "samples.js", "page.js")
ERRORS = {"sd": "standard deviation over seeds", "stderr": "standard error of one run (bootstrap over the samples)"}
LEGEND = (
    ("±", "standard deviation over seeds where a row has several, else the bootstrap standard error of one run"),
    ("bold", "best value of its group; groups are never compared with each other"),
    ("measured", "run by this harness; hybridzoo leaderboard check recomputes the scores from stored predictions"),
    ("paper", "published by the authors; not run here, so it has no rank and is never bold"),
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
KIND_TITLES = {
    "text-classification": "Text",
    "text-pair-classification": "Pairs of texts",
    "image-classification": "Images",
    "object-detection": "Detection",
    "anomaly-detection": "Anomalies",
    "text-generation": "Language models",
    "image-generation": "Image generation",
}
MOST_CLASSES = 20  # of a confusion matrix and of a table by class; larger ones say nothing at a glance


def page(tables: list[Table], folder: Path, *, markdown_path: Path, csv_path: Path, repository: str | None) -> str:
    """The page's text; links are relative to `folder`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(PAGE), undefined=StrictUndefined, autoescape=True, keep_trailing_newline=True
    )
    return environment.get_template("page.html.jinja").render(
        title=TITLE,
        lead="Hybrid architectures, measured by one harness. Every measured row links to its result file and names its "
        "recipe, command and commit; its scores follow from stored predictions. Rows are ranked only within their "
        "group.",
        facts=_counts(tables),
        legend=LEGEND,
        css=Markup(_inline("page.css")),
        scripts=[Markup(_inline(name)) for name in SCRIPTS],
        data=Markup(script_json(page_data(tables, folder, repository))),
        markdown_link=relative(markdown_path, folder),
        csv_link=relative(csv_path, folder),
    )


def _counts(tables: list[Table]) -> list[tuple[int, str]]:
    rows = [row for table in tables for _, row in table.rows]
    measured = [entry for row in rows for entry in row.entries if entry.result.run]
    counts = [
        (len({row.label for row in rows}), "model"),
        (len(tables), "task"),
        (len(measured), "measured run"),
        (sum(row.first.run is None for row in rows), "row"),
    ]
    named = [(count, word if count == 1 else f"{word}s") for count, word in counts]
    return [*named[:3], (named[3][0], f"{named[3][1]} from papers")]


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


# Data of the scripts ----------------------------------------------------------------------------------------------


def page_data(tables: list[Table], folder: Path, repository: str | None = None) -> dict[str, Any]:
    """What the scripts read."""
    titles = family_titles()
    families = sorted({row.family for table in tables for _, row in table.rows})
    kinds = list(KIND_TITLES)
    tasks = [_task_data(table, folder, repository) for table in tables]
    return {
        "title": TITLE,
        "errors": ERRORS,
        "families": [{"name": name, "title": titles.get(name, name.replace("_", " "))} for name in families],
        "tasks": sorted(tasks, key=lambda t: kinds.index(t["kind"]) if t["kind"] in kinds else len(kinds)),
    }


def family_titles() -> dict[str, str]:
    from hybridzoo import registry

    return {name: family.title for name, family in registry.families().items()}


def _task_data(table: Table, folder: Path, repository: str | None) -> dict[str, Any]:
    rows = [_row_data(cohort, row, folder, repository) for cohort, row in table.rows]
    stated = [cost for cost in COSTS if cost[0] == "params" or any(r["costs"][cost[0]] is not None for r in rows)]
    kind = load_task(table.name).kind
    return {
        "name": table.name,
        "title": table.title,
        "short": table.name.removeprefix("lm_eval_"),
        "kind": kind,
        "kind_title": KIND_TITLES.get(kind, kind),
        "about": table.about,
        "primary": table.primary,
        "metrics": [vars(column) for column in table.columns],
        "costs": [{"key": k, "label": label, "unit": u, "higher_is_better": h} for k, label, u, h in stated],
        "groups": [{"key": c.key, "kind": c.kind, "label": c.label, "note": _note(c)} for c in table.cohorts],
        "rows": rows,
    }


def _note(cohort: Cohort) -> str:
    used = {row.first.task.dataset.n_used for row in cohort.rows}
    return f"{used.pop():,} samples; {cohort.note}" if len(used) == 1 else cohort.note


def _row_data(cohort: Cohort, row: Row, folder: Path, repository: str | None) -> dict[str, Any]:
    first = row.first
    runs = [_run_data(e.path, e.result, folder, repository) for e in row.entries]
    status, track = first.provenance.status, first.track
    matrix = first.details.get("confusion_matrix")
    small = isinstance(matrix, dict) and len(matrix.get("labels", ())) <= MOST_CLASSES
    facets = {"license": _license(row), "device": _device(row), "backend": _backend(row)}
    words = [
        row.label,
        row.family,
        status,
        track,
        row.recipe or "",
        *facets.values(),
        *(r["commit"] or "" for r in runs),
    ]
    return {
        "id": f"{cohort.key}-{cohort.rows.index(row)}",
        "group": cohort.key,
        "rank": row.rank,
        "label": row.label,
        "family": row.family,
        "status": status,
        "track": track,
        **facets,
        "seeds": len(row.entries),
        "n_used": first.task.dataset.n_used,
        "metrics": {name: vars(score) for name, score in row.scores.items()},
        "best": list(row.best),
        "costs": {"params": row.params} | {key: row.efficiency(key) for key, *_ in COSTS[1:]},
        "badges": _badges(row),
        "recipe": _recipe(row.recipe, folder),
        "source_url": web_only(first.provenance.source_url),
        "facts": _facts(row),
        "confusion": matrix if small else None,
        "classes": _classes(first.details.get("per_class")),
        "samples": row_samples(row, folder),
        "search": " ".join(words).lower(),
        "runs": runs,
    }


def _license(row: Row) -> str:
    """Of the weights as the registry states it, cut to its name; weights of a run of ours carry the zoo's licence."""
    from hybridzoo import registry

    model = row.first.model
    if model.family == "baseline":
        return "none: fitted on the spot"
    if not registry.is_model(model.name):
        return "not stated"
    tags = registry.get_model(model.name)[0].tags
    if model.tag is not None and model.tag in tags:
        text = tags[model.tag].license
    elif row.first.run and row.recipe:
        return "Apache-2.0"  # trained from a recipe of the zoo
    else:
        text = registry.get_family(model.family or "").license if model.family in registry.families() else ""
    text = text.partition(" (")[0].strip()
    return "not stated" if not text or text.startswith(("not stated", "none stated")) else text


def _device(row: Row) -> str:
    """`H100 80GB HBM3` or `CPU`; which processor and how many threads stands in the row's details."""
    run = row.first.run
    if run is None:
        return "not measured"
    return "CPU" if run.device.startswith("CPU") else run.device.removeprefix("NVIDIA ")


def _backend(row: Row) -> str:
    run = row.first.run
    return "not measured" if run is None else run.backend or "auto"


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
    return {"label": title, "href": relative(file, folder) if file else None}


_recipes: ContextVar[Path | None] = ContextVar("recipes", default=None)


@contextmanager
def recipes_in(folder: Path) -> Iterator[None]:
    """Links to recipes lead to copies in `folder`."""
    token = _recipes.set(folder)
    try:
        yield
    finally:
        _recipes.reset(token)


def recipe_files() -> dict[str, Path]:
    """Title -> file of every recipe (results state the title)."""
    return _read_recipes(_recipes.get() or asset_root("recipes"))


@cache
def _read_recipes(folder: Path) -> dict[str, Path]:
    import yaml

    found = {}
    for file in sorted(folder.rglob("*.yaml")):
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(recipe, dict) and isinstance(recipe.get("title"), str):
            found[recipe["title"]] = file
    return found


def _classes(per_class: Any) -> dict[str, Any] | None:
    """A table of scores by class: numbers only, of at most MOST_CLASSES classes."""
    if not isinstance(per_class, dict) or not 1 < len(per_class) <= MOST_CLASSES:
        return None
    rows = {name: values for name, values in per_class.items() if isinstance(values, dict)}
    if len(rows) != len(per_class):
        return None
    columns = list(dict.fromkeys(k for v in rows.values() for k, x in v.items() if isinstance(x, int | float)))
    return {
        "columns": columns,
        "rows": [[name, *(values.get(column) for column in columns)] for name, values in rows.items()],
    }


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
        if first.run.git_commit:
            facts.append(["Commit", f"git show {first.run.git_commit}"])
    if row.recipe:
        facts.append(["Recipe", row.recipe])
    if first.provenance.submitted_by:
        facts.append(["Submitted by", first.provenance.submitted_by])
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
        "json": relative(path, folder),
        "command": run.command if run else None,
        "commit": commit,
        "commit_href": f"{repository.rstrip('/')}/commit/{commit}" if repository and commit else None,
        "date": run.date[:10] if run else None,
        "seed": seed,
        "weights": result.model.weights.sha256 if result.model.weights else None,
        "values": {name: metric.value for name, metric in result.metrics.items()},
    }
