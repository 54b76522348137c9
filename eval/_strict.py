"""Plain dictionaries to dataclasses, strictly: unknown or missing keys and wrong types are errors that name the
field.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from hybridzoo.errors import DataError, unknown


class ResultError(DataError):
    """A result file that breaks the schema; says which file, which field, and what was expected."""


def build(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `kind`; raises ResultError that names the field."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return build(next(a for a in arguments if a is not type(None)), value, where)
    if is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ResultError(f"{where}: expected an object, got {type(value).__name__}")
        return {str(k): build(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise ResultError(f"{where}: expected a list, got {type(value).__name__}")
        return [build(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ResultError(f"{where}: expected {kind.__name__}, got {type(value).__name__} ({str(value)[:40]!r})")
    return value


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ResultError(f"{where}: expected an object, got {type(value).__name__}")
    hints = typing.get_type_hints(kind)
    for key in value:
        if key not in hints:
            raise ResultError(f"{where}: " + unknown("key", str(key), hints))
    made = {key: build(hints[key], v, f"{where}.{key}") for key, v in value.items()}
    try:
        return kind(**made)
    except TypeError:
        lacking = [
            f.name for f in fields(kind) if f.name not in made and f.default is MISSING and f.default_factory is MISSING
        ]
        raise ResultError(f"{where}: missing {', '.join(lacking)}") from None
