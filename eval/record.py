"""What a result says about model, machine and software."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hybridzoo.eval.schema import ModelRef, Weights

PACKAGES = ("torch", "transformers", "timm", "tokenizers", "safetensors", "numpy", "scikit-learn", "pillow")


def versions() -> dict[str, str]:
    """Versions of what is installed and matters."""
    from hybridzoo import __version__

    found = {"python": platform.python_version(), "hybridzoo": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it) of the clone that the package runs from; (None, None)
    elsewhere.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / "setup.py").is_file() or not (root / ".git").exists():
        return None, None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def device_name(device: Any) -> str:
    """The device in words: the GPU's name, or the processor's."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"CPU {name}, {torch.get_num_threads()} threads"


def weights_sha256(state: Mapping[str, Any]) -> str:
    """sha256 over all tensors: name, dtype, shape and bytes, sorted by name; the same for every file format."""
    import torch

    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()


def config_sha256(config: Any) -> str:
    """sha256 of the config as sorted JSON, without the version of transformers and the path that it was loaded from."""
    values = {k: v for k, v in config.to_dict().items() if k not in ("transformers_version", "_name_or_path")}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def safe_name(text: str) -> str:
    """Letters, digits, `_` and `-` only."""
    return re.sub(r"[^\w-]+", "_", text).strip("_") or "model"


def describe_model(model: Any, *, name: str, tag: str | None, uri: str | None, settings: dict[str, Any]) -> ModelRef:
    """The reference of a model in memory; `uri` None means random weights."""
    return ModelRef(
        name=safe_name(name),
        tag=re.sub(r"[^\w.-]+", "_", tag) if tag else None,
        family=getattr(model, "family", None),
        params=sum(p.numel() for p in model.parameters()),
        config_sha256=config_sha256(model.config),
        weights=Weights(uri=uri, sha256=weights_sha256(model.state_dict())) if uri else None,
        settings=settings,
    )


def read_recipe(folder: Path) -> dict[str, Any]:
    """What a run folder says of its training: recipe title, model, seed; empty for other folders."""
    import yaml

    try:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(recipe, dict):
        return {}
    model, training = recipe.get("model") or {}, recipe.get("training") or {}
    return {"name": model.get("name"), "title": recipe.get("title"), "seed": training.get("seed")}
