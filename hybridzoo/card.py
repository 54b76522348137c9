"""Model cards: a README.md with YAML metadata (`model-index`) that `save_pretrained` writes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hybridzoo import registry
from hybridzoo.errors import ConfigError, unknown

FACTS = ("name", "license", "datasets", "language", "tags", "command", "text", "results")
MARK = "<!-- written by hybridzoo; remove this line to keep your own text -->"


def write_card(model: Any, folder: Path, *, existing: Path, facts: Mapping[str, Any] | None) -> None:
    """Write `folder/README.md`, or copy the person's own text that is at `existing`.

    Args:
        model: the ZooModel.
        folder: where to write.
        existing: the card that stands at the target; one without our mark is kept as it is.
        facts: optional `name`, `license`, `datasets` (list), `language` (list), `tags` (list), `command`, `text`
            (Markdown), and `results`: a list of dictionaries with task_type, dataset_type, dataset_name, metric_type,
            metric_value and more of `huggingface_hub.EvalResult`.

    Raises:
        ConfigError: an unknown fact, or a result that is not an `EvalResult`.
    """
    if existing.is_file() and MARK.encode() not in existing.read_bytes():
        shutil.copyfile(existing, folder / "README.md")
        return
    facts = dict(facts or {})
    for key in facts:
        if key not in FACTS:
            raise ConfigError(unknown("fact of a model card", key, FACTS))
    family = registry.families().get(getattr(model, "family", ""))
    name = facts.get("name") or (family.name if family else type(model).__name__)
    try:
        results = [EvalResult(**r) for r in facts.get("results") or []]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"card['results']: {error}; each is the keywords of huggingface_hub.EvalResult") from error
    data = ModelCardData(
        model_name=name,
        library_name="hybridzoo",
        license=facts.get("license"),
        pipeline_tag=getattr(model, "task", None),
        tags=["hybridzoo", *([family.name] if family else []), *(facts.get("tags") or [])],
        datasets=facts.get("datasets"),
        language=facts.get("language"),
        eval_results=results or None,
    )
    lines = ["---", data.to_yaml(), "---", MARK, f"# {name}", ""]
    if family:
        lines += [f"{family.title}. Paper: {family.paper}. Original code: {family.source}.", ""]
    parameters = sum(p.numel() for p in model.parameters())
    lines += [f"{parameters:,} parameters, class `{type(model).__name__}`.", ""]
    if facts.get("text"):
        lines += [facts["text"].strip(), ""]
    if results:
        lines += ["| data set | metric | value |", "|---|---|---|"]
        lines += [f"| {r.dataset_name} | {r.metric_name or r.metric_type} | {r.metric_value} |" for r in results] + [""]
    if facts.get("command"):
        lines += ["Made by:", "", "```", facts["command"], "```", ""]
    lines += ["```python", "from hybridzoo import build_model", "", 'model = build_model("PATH_OR_HUB_ID")', "```", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
