"""The oldest supported versions are the same wherever they are written."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_the_oldest_versions_of_ci_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(re.match(r"([\w-]+)>=([\d.]+)", text).groups() for text in project["dependencies"])
    lines = (ROOT / ".ci" / "min-versions.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert set(pinned) == {"torch", "transformers", "timm"}
    for name, version in pinned.items():
        assert version.removesuffix(".0") == bounds[name].removesuffix(".0"), name


def test_the_workflow_mirrors_the_local_one():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    local = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\S+)", local, re.M):
        assert f"make {target}" in text or target == "test", target
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]["include"]
    assert {row["os"].partition("-")[0] for row in matrix} == {"ubuntu", "macos", "windows"}
    assert {row["versions"] for row in matrix} == {"min", "latest"}
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert oldest.removeprefix(">=") in {row["python"] for row in matrix}
