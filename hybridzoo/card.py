"""Model cards: a README.md with YAML metadata (`model-index`) that `save_pretrained` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hybridzoo import registry

MARK = "<!-- written by hybridzoo; remove this line to keep your own text -->"


def write_card(model: Any, folder: Path, *, existing: Path, facts: Mapping[str, Any] | None) -> None:
    """Write `folder/README.md`, or copy the person's own text that is at `existing`.

    Args:
        model: the ZooModel.
        folder: where to write.
        existing: the card that stands at the target; one without our mark is kept as it is.
        facts: optional `name`, `license`, `datasets` (list), `language` (list), `command`, `text` (Markdown), and `results`: a
            list of dictionaries with task_type, dataset_type, dataset_name, metric_type, metric_value and more of
            `huggingface_hub.EvalResult`.
    """
    if existing.is_file() and MARK not in existing.read_text(encoding="utf-8"):
        (folder / "README.md").write_text(existing.read_text(encoding="utf-8"), encoding="utf-8")
        return
    facts = dict(facts or {})
    family = registry.families().get(getattr(model, "family", ""))
    name = facts.get("name") or (family.name if family else type(model).__name__)
    results = [EvalResult(**r) for r in facts.get("results", [])]
    data = ModelCardData(
        model_name=name,
        library_name="hybridzoo",
        license=facts.get("license"),
        pipeline_tag=getattr(model, "task", None),
        tags=["hybridzoo", *([family.name] if family else [])],
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
