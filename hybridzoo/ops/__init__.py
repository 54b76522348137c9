"""Primitives of the zoo's layers: one torch definition each, and faster backends (see `hybridzoo.ops.dispatch`).

The names below are imported at first use, so that importing this package costs nothing beyond torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "use_backend": "hybridzoo.ops.dispatch",
    "report": "hybridzoo.ops.dispatch",
    "selftest": "hybridzoo.ops.dispatch",
    "BackendWarning": "hybridzoo.ops.dispatch",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
