"""What a run was made with: versions, machine, commit, command, data."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "timm", "accelerate", "tokenizers", "safetensors", "numpy", "omegaconf", "pillow")


def versions() -> dict[str, str | None]:
    """Installed versions; None where a package is missing."""
    from hybridzoo import __version__

    found: dict[str, str | None] = {"python": platform.python_version(), "hybridzoo": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> dict[str, Any]:
    """Commit of the checkout that the package lies in, and whether it was changed; None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not (root / "setup.py").is_file():
        return {"commit": None, "changed": None}
    commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changed is None else bool(changed)}


def command_line() -> str:
    """The command as it was typed, as far as Python knows it."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return shlex.join(["python", "-m", program.parent.name, *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])


def environment(info: Any, world_size: int) -> dict[str, Any]:
    """The content of `environment.json`.

    Args:
        info: a DataInfo.
        world_size: number of processes.
    """
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        **git_commit(),
        "versions": versions() | {"torch": torch.__version__},  # with its build, e.g. +cu130
        "machine": {
            "platform": f"{platform.system()} {platform.machine()}",
            "devices": devices or ["cpu"],
            "cpus": os.cpu_count(),
            "cuda": torch.version.cuda,
            "processes": world_size,
        },
        "data": {
            "name": info.name,
            "track": info.track,
            "protocol": info.protocol,
            "revision": info.revision,
            "sha256": info.sha256,
            "license": info.license,
            "source": info.source,
            "sizes": dict(info.sizes),
            "skipped": [{"where": s.where, "reason": s.reason} for s in info.skipped],
        },
    }
