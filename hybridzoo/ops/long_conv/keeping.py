"""Transforms of taps that are used again, kept by whoever knows when the taps change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_store: ContextVar[dict[Any, Any] | None] = ContextVar("transforms of long_conv's taps", default=None)


@contextmanager
def keeping(store: dict[Any, Any]) -> Iterator[None]:
    """Inside, calls of `long_conv` may put the transform of their taps into `store`, and take it from there.

    For calls without gradients. The caller answers for a store being used with the same kernel, reverse kernel and skip
    only. It holds one entry, that of the last shape and dtype of the input, on the device of that input.
    """
    token = _store.set(store)
    try:
        yield
    finally:
        _store.reset(token)


def current() -> dict[Any, Any] | None:
    """The store of the innermost `keeping`."""
    return _store.get()
