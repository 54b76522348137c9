"""mkdocs hooks: pages that are made from the code, and links of pages that lead outside docs/.

A family without a page in docs/models gets one from the registry; every family's page ends with its recipes and where
it stands on the board; each op has a page with its signature and backends; the API reference lists the public modules.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "site-package"  # the package as setup.py installs it: eval/ and recipes/ below hybridzoo
API = {
    "Models": (
        "hybridzoo.loading",
        "hybridzoo.registry",
        "hybridzoo.info",
        "hybridzoo.modeling",
        "hybridzoo.configuration",
    ),
    "Inference": (
        "hybridzoo.inference.text",
        "hybridzoo.inference.image",
        "hybridzoo.inference.detection",
        "hybridzoo.inference.anomaly",
        "hybridzoo.inference.generation",
        "hybridzoo.inference.image_generation",
    ),
    "Data": ("hybridzoo.data.base", "hybridzoo.data.catalog", "hybridzoo.data.collate", "hybridzoo.data.transforms"),
    "Training": ("hybridzoo.training.schema", "hybridzoo.training.recipe", "hybridzoo.training.run"),
    "Evaluation": (
        "hybridzoo.eval.harness",
        "hybridzoo.eval.schema",
        "hybridzoo.eval.tasks",
        "hybridzoo.eval.leaderboard.build",
        "hybridzoo.eval.leaderboard.check",
        "hybridzoo.eval.leaderboard.verify",
    ),
    "Ops": ("hybridzoo.ops.dispatch",),
    "Errors": ("hybridzoo.errors",),
}


def on_startup(command: str, dirty: bool) -> None:
    """Copy the package before mkdocstrings looks for it."""
    shutil.rmtree(BUILD, ignore_errors=True)
    shutil.copytree(ROOT / "hybridzoo", BUILD / "hybridzoo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("eval", "recipes", "checkpoints"):
        ignored = shutil.ignore_patterns("__pycache__", "results", "*.safetensors")
        shutil.copytree(ROOT / name, BUILD / "hybridzoo" / name, ignore=ignored, dirs_exist_ok=True)


def on_config(config: Any) -> Any:
    """Fill in the parts of the navigation that follow from the code."""
    from hybridzoo import registry

    titles = {name: family.title for name, family in registry.families().items()}
    filled = {
        "Models": [{title: f"models/{name}.md"} for name, title in sorted(titles.items())],
        "Ops": [{name: f"ops/{name}.md"} for name in _ops()],
        "API": [{title: f"api/{title.lower()}.md"} for title in API],
    }
    nav = []
    for entry in config["nav"] or []:
        ((title, target),) = entry.items()
        nav.append({title: filled[title]} if target in ("models/", "ops/", "api/") else entry)
    named = set(re.findall(r"[\w/]+\.md", str(nav)))
    for entry in nav:
        if "Guides" in entry:  # pages that nobody has put anywhere
            found = [p.name for p in sorted((ROOT / "docs").glob("*.md")) if p.name not in named]
            entry["Guides"] += [{_title(ROOT / "docs" / name): name} for name in found]
    config["nav"] = [_existing(entry) for entry in nav]
    return config


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").lstrip("# ").splitlines()[0]


def _existing(entry: dict[str, Any]) -> dict[str, Any]:
    """Without pages of the list that are not written."""
    ((title, target),) = entry.items()
    if isinstance(target, list) and title not in ("Models", "Ops", "API"):
        return {title: [e for e in target if (ROOT / "docs" / next(iter(e.values()))).is_file()]}
    return entry


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that no file in docs/ holds."""
    from hybridzoo import registry

    for name in registry.families():
        if files.get_file_from_path(f"models/{name}.md") is None:
            files.append(File.generated(config, f"models/{name}.md", content=family_page(name)))
    for name in _ops():
        files.append(File.generated(config, f"ops/{name}.md", content=op_page(name)))
    for title, modules in API.items():
        text = f"# {title}\n\n" + "\n".join(f"::: {module}\n" for module in modules if _exists(module))
        files.append(File.generated(config, f"api/{title.lower()}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Facts below a family's page; links that leave docs/ become plain text."""
    source = page.file.src_uri
    if source.startswith("models/"):
        markdown += family_facts(Path(source).stem, shown=markdown)
    return re.sub(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)", lambda m: _link(m, source, files), markdown)


def _link(match: re.Match[str], source: str, files: Any) -> str:
    text, target = match[1], match[2]
    if "://" in target or target.startswith(("mailto:", "/")):
        return match[0]
    path = Path(os.path.normpath(Path("docs") / Path(source).parent / target)).as_posix()
    if path.startswith("docs/"):
        inner = path.removeprefix("docs/")
        return match[0] if files.get_file_from_path(inner) else text
    return text  # LEADERBOARD.md, recipes, results: in the repository, not in the site


def on_post_build(config: Any) -> None:
    """The board with the files it links to, so that every link of a row works on the site too."""
    from hybridzoo.eval.leaderboard.build import bundle_board

    bundle_board(None, Path(config["site_dir"]) / "leaderboard", repository=config["repo_url"] or None)


# Pages -------------------------------------------------------------------------------------------------------------


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines)


def family_page(name: str) -> str:
    """A family without a hand-written page: what the registry knows."""
    from hybridzoo import registry

    family = registry.get_family(name)
    tasks = ", ".join(family.model_classes)
    lines = [f"# {family.title}", "", f"For {tasks}. Paper: {family.paper}. Original code: {family.source}.", ""]
    first = next((m for m in registry.models().values() if m.family == name), None)
    if first is not None:
        lines += [
            "```python",
            "from hybridzoo import build_model",
            "",
            f'model = build_model("{first.name}")',
            "```",
            "",
        ]
    return "\n".join(lines)


def family_facts(name: str, shown: str = "") -> str:
    """Variants, recipes and results of a family, as Markdown; `shown` is what its page says already."""
    import yaml

    from hybridzoo import registry
    from hybridzoo._paths import asset_root
    from hybridzoo.eval.leaderboard.build import default_results
    from hybridzoo.eval.leaderboard.render import number
    from hybridzoo.eval.leaderboard.rows import load_tables, metric_label

    if name not in registry.families():
        return ""
    parts = ["", "", "## From the registry and the results", ""]
    if "generated: models" not in shown:
        models = [m for m in registry.models().values() if m.family == name]
        rows = [[f"`{m.name}`", m.task, m.summary, ", ".join(f"`.{t}`" for t in m.tags)] for m in models]
        parts += ["### Variants", "", _table(["model", "task", "what it is", "weights"], rows), ""]
    rows = []
    for file in sorted((asset_root("recipes") / name).glob("*.yaml")):
        recipe = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        rows.append([f"`hybridzoo train {name}/{file.stem}`", recipe.get("title", ""), recipe.get("paper", "")])
    if rows:
        parts += ["### Recipes", "", _table(["command", "what it trains", "hyper-parameters"], rows), ""]
    rows = []
    for table in load_tables(default_results()):
        column = next(c for c in table.columns if c.name == table.primary)
        for cohort, row in table.rows:
            score = row.scores.get(table.primary)
            if row.family == name and score is not None:
                error = "" if score.error is None else f" ± {number(score.error, column.digits)}"
                value = f"{metric_label(table.primary)} {number(score.value, column.digits)}{error}"
                rows.append([f"`{row.label}`", table.title, cohort.label, value])
    if rows:
        parts += ["### On the board", "", _table(["model", "task", "group", "score"], rows), ""]
        parts += ["[The whole board](../leaderboard/index.html)", ""]
    return "\n".join(parts)


def _ops() -> list[str]:
    from hybridzoo.ops import dispatch

    return sorted(dispatch.ops())


def op_page(name: str) -> str:
    """An op: what docs/ops.md says of it, its functions with their docstrings, its backends."""
    from hybridzoo.ops import dispatch

    op = dispatch.get_op(name)
    module = importlib.import_module(f"hybridzoo.ops.{name}")
    lines = [f"# {name}", ""]
    written = re.search(
        rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", (ROOT / "docs/ops.md").read_text("utf-8"), re.M | re.S
    )
    lines += [written[1].strip() if written else inspect.getdoc(module) or "", ""]
    lines += ["## Functions", ""]
    for public in getattr(module, "__all__", [name]):
        if inspect.isfunction(getattr(module, public, None)):
            lines += [f"::: hybridzoo.ops.{name}.{public}", "    options: {heading_level: 3}", ""]
    rows = []
    for backend in op.backends:
        where = ", ".join(backend.devices) if backend.devices else "any device"
        needs = f"`{backend.symbol.partition(':')[0]}`" if backend.symbol else ""
        fixed = "yes" if backend.deterministic else "no"
        rows.append([f"`{backend.name}`", where, needs, fixed, backend.auto_veto or ""])
    header = ["backend", "runs on", "needs", "bit-reproducible", "why `auto` does not take it"]
    lines += [
        "## Backends",
        "",
        "The first that can run a call is taken; `torch` is the definition.",
        "",
        _table(header, rows),
    ]
    used = sorted(
        file.relative_to(ROOT).as_posix()
        for folder in ("layers", "models")
        for file in (ROOT / "hybridzoo" / folder).rglob("*.py")
        if f"hybridzoo.ops.{name} " in file.read_text(encoding="utf-8")
    )
    if used:
        lines += ["", "## Used by", "", *(f"- `{path}`" for path in used)]
    return "\n".join(lines) + "\n"


def _exists(module: str) -> bool:
    path = BUILD / Path(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
