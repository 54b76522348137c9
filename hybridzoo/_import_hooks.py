"""Run a function once a module has been imported, without importing it ourselves.

hybridzoo's models must be known to transformers' Auto classes and to timm as soon as both packages are
imported, in either order, while `import hybridzoo` itself stays cheap. A finder at the head of `sys.meta_path`
calls the function right after the module of that name was executed.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

_waiting: dict[str, list[Callable[[], None]]] = {}


class _AfterImport(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path=None, target=None):
        if fullname not in _waiting:
            return None
        callbacks = _waiting.pop(fullname)  # popped first: the look-up below must not come back here
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            _waiting[fullname] = callbacks
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for callback in callbacks:
                callback()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def when_imported(module: str, callback: Callable[[], None]) -> None:
    """Call `callback` now if `module` is already imported, else right after its import."""
    loaded = sys.modules.get(module)
    if loaded is not None and not getattr(getattr(loaded, "__spec__", None), "_initializing", False):
        callback()
        return
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
    _waiting.setdefault(module, []).append(callback)
