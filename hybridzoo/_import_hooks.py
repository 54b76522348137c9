"""Run a function once a module has been imported, without importing it ourselves.

hybridzoo's models must be known to transformers' Auto classes and to timm as soon as both packages are
imported, in either order, while `import hybridzoo` itself stays cheap. A finder at the head of `sys.meta_path`
calls the function right after the module of that name was executed.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_waiting: dict[str, list[Callable[[], None]]] = {}


class _AfterImport(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _waiting:
            return None
        callbacks = _waiting.pop(fullname)  # popped first: the look-up below must not come back here
        try:
            spec = importlib.util.find_spec(fullname)
        except BaseException:
            _waiting[fullname] = callbacks
            raise
        if spec is None or spec.loader is None:
            _waiting[fullname] = callbacks
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            try:
                execute(module)
            except BaseException:
                _waiting[fullname] = callbacks  # the import failed: a second try must find us again
                raise
            for callback in callbacks:
                _call(callback, fullname)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _call(callback: Callable[[], None], module: str) -> None:
    """A defect of ours must not make somebody's `import timm` fail; it is said once instead."""
    try:
        callback()
    except Exception as error:
        warnings.warn(
            f"hybridzoo could not tell {module.partition('.')[0]} its models ({type(error).__name__}: {error})",
            RuntimeWarning,
            stacklevel=2,
        )


def when_imported(module: str, callback: Callable[[], None]) -> None:
    """Call `callback` now if `module` is already imported, else right after its import.

    Args:
        module: dotted name; never imported here.
        callback: called once; an exception in it becomes a RuntimeWarning.
    """
    loaded = sys.modules.get(module)
    if loaded is not None and not getattr(getattr(loaded, "__spec__", None), "_initializing", False):
        _call(callback, module)
        return
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
    _waiting.setdefault(module, []).append(callback)
