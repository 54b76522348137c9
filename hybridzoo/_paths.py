"""Where recipes/, eval/ and checkpoints/ lie: inside the installed package, or beside it in a bare clone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def asset_root(kind: str) -> Path:
    """The folder of `recipes`, `eval` or `checkpoints`.

    Args:
        kind: one of the three top-level folders that setup.py maps below the package.
    """
    spec = importlib.util.find_spec(f"hybridzoo.{kind}")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return PACKAGE.parent / kind
