"""ZooConfig: a transformers config that refuses unknown keys and wrong types, and says what would be right."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, Union, get_args, get_origin

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from hybridzoo import registry
from hybridzoo.errors import ConfigError, unknown

# Keys that transformers itself writes into config.json or accepts as keywords beside the fields of the class.
_TRANSFORMERS_KEYS = frozenset(
    {
        *("model_type", "transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "torch_dtype"),
        *("num_labels", "output_attentions", "quantization_config", "tie_word_embeddings", "use_cache"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
        *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
        *("experts_implementation", "_experts_implementation_internal"),
    }
)
_IGNORED_KEYS = ("auto_map",)  # points at Python files of a repository; the zoo's code is in the package, never there


def _restore(value: Any, hint: Any) -> Any:
    """What JSON and YAML lose: a tuple comes back as a list, 1.0 as 1. Everything else is left to the type check."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if any(isinstance(value, a) for a in args if isinstance(a, type) and not (a is int and value is True)):
            return value
        for arg in args:
            restored = _restore(value, arg)
            if restored is not value:
                return restored
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is tuple or hint is tuple:
        if not isinstance(value, (list, tuple)):
            return value
        inner = args[:1] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        return tuple(map(_restore, value, inner)) if len(inner) == len(value) else tuple(value)
    if origin is list or hint is list:
        if not isinstance(value, (list, tuple)):
            return value
        return [_restore(v, args[0]) for v in value] if args else list(value)
    return value


class _TeachingMeta(type):
    """Turns the errors of `huggingface_hub.dataclasses.strict` into ConfigError, in the constructor and on assignment.

    `strict` decorates a class after it was made and puts its checks into `__setattr__` and `validate`; both are wrapped
    when it assigns them.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        with _Teach(cls.__name__):
            return super().__call__(*args, **kwargs)

    def __setattr__(cls, name: str, value: Any) -> None:
        if name == "__setattr__":
            value = _teaching_setattr(value)
        elif name == "validate":
            value = _teaching_validate(value)
        super().__setattr__(name, value)


class _Teach:
    """`with _Teach(where):` a StrictDataclassError becomes a ConfigError that names the class and the field."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ConfigError) or not isinstance(error, (StrictDataclassError, TypeError, ValueError)):
            return
        cause = error.__cause__
        if isinstance(cause, ConfigError):  # raised by validate_values; strict only wrapped it
            raise cause
        deepest = error
        while isinstance(deepest.__cause__, Exception):
            deepest = deepest.__cause__
        text = str(error).splitlines()[0].removeprefix("Validation error for ").rstrip(":")
        detail = str(deepest) if deepest is not error else ""
        raise ConfigError(f"{self.where}: {text}{': ' + detail if detail else ''}") from error


def _teaching_setattr(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def __setattr__(self: Any, name: str, value: Any) -> None:
        hint = type(self).zoo_types.get(type(self).attribute_map.get(name, name))
        if hint is not None:
            value = _restore(value, hint)
        with _Teach(type(self).__name__):
            original(self, name, value)

    return __setattr__


def _teaching_validate(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def validate(self: Any) -> None:
        with _Teach(type(self).__name__):
            original(self)

    # strict recognises its own method by this mark when it decorates a subclass
    validate.__is_defined_by_strict_decorator__ = True  # type: ignore[attr-defined]
    return validate


class ZooConfig(PretrainedConfig, metaclass=_TeachingMeta):
    """Base of every family's configuration.

    A subclass is written like a dataclass, decorated with `huggingface_hub.dataclasses.strict` (which checks the types
    in the constructor and on assignment), and checks its values in a method `validate_values(self)` that raises
    ConfigError. Lists become tuples and integers floats where a field is annotated so, which makes
    `from_dict(to_dict())` and config.json exact. `num_classes` is accepted beside transformers' `num_labels`.

    Raises:
        ConfigError: an unknown key (with the nearest names), a wrong type or an impossible value.
    """

    zoo_types = {}  # noqa: RUF012  field -> resolved annotation, of the fields that the zoo's classes declare

    def __init_subclass__(cls, **kwargs: Any) -> None:
        own = inspect.get_annotations(cls, eval_str=True)  # strict does not check annotations that are strings
        super().__init_subclass__(**kwargs)
        cls.zoo_types = {**cls.zoo_types, **own}
        for field in fields(cls):  # type: ignore[arg-type]
            if field.name in own:
                field.type = own[field.name]
        if cls.attribute_map.get("num_classes") is None and "num_classes" not in cls.zoo_types:
            cls.attribute_map = {**cls.attribute_map, "num_classes": "num_labels"}

    def __post_init__(self, **kwargs: Any) -> None:
        known = {f.name for f in fields(self)}  # type: ignore[arg-type]
        for key in _IGNORED_KEYS:
            kwargs.pop(key, None)
        for key in kwargs:
            if key not in known | _TRANSFORMERS_KEYS | set(self.attribute_map):
                choices = sorted(known | {"num_labels"})
                raise ConfigError(unknown(f"key of {type(self).__name__}", key, choices))
        for alias, key in self.attribute_map.items():
            if alias in kwargs and key in ("num_labels", *known):
                value = kwargs.pop(alias)
                if kwargs.setdefault(key, value) != value:
                    raise ConfigError(f"{type(self).__name__}: {alias}={value!r} and {key}={kwargs[key]!r} disagree")
                if key in known:
                    setattr(self, key, kwargs.pop(key))
        self._check_labels(kwargs.get("num_labels"))
        self._check_transformers_values(kwargs.get("torch_dtype", self.dtype))
        for key in ("attn_implementation", "experts_implementation"):
            if "/" in str(kwargs.get(key) or ""):
                raise ConfigError(
                    f"{type(self).__name__}: {key}={kwargs[key]!r} names code to download, and a configuration never "
                    f"brings code. Leave it out, and call model.set_{key}(...) yourself if you trust that code."
                )
        registry.register_auto_models(self.model_type)
        super().__post_init__(**kwargs)
        if self.id2label is not None and (self.label2id is None or len(self.label2id) != len(self.id2label)):
            self.label2id = {name: int(index) for index, name in self.id2label.items()}
        self.validate_values()

    def _check_labels(self, num_labels: Any) -> None:
        """transformers only warns when num_labels and id2label disagree, and takes a num_labels of any type."""
        where = type(self).__name__
        if num_labels is not None and (not isinstance(num_labels, int) or isinstance(num_labels, bool)):
            raise ConfigError(f"{where}: num_labels={num_labels!r} must be an int, the number of classes")
        if num_labels is not None and num_labels < 1:
            raise ConfigError(f"{where}: num_labels={num_labels} must be at least 1")
        if self.id2label is None:
            return
        if num_labels is not None and len(self.id2label) != num_labels:
            raise ConfigError(
                f"{where}: num_labels={num_labels}, but id2label names {len(self.id2label)} classes; give one"
            )
        try:
            indices = sorted(int(index) for index in self.id2label)
        except (TypeError, ValueError):
            indices = None
        if indices != list(range(len(self.id2label))):
            raise ConfigError(
                f"{where}: the keys of id2label must be 0 to {len(self.id2label) - 1}, got {self.id2label}"
            )

    def _check_transformers_values(self, dtype: Any) -> None:
        """Fields of transformers' own class: 5.23 annotates them with strings, which strict does not check."""
        import torch

        where = type(self).__name__
        if isinstance(dtype, str) and not isinstance(getattr(torch, dtype.removeprefix("torch."), None), torch.dtype):
            raise ConfigError(unknown(f"dtype of {where}", dtype, ["float32", "bfloat16", "float16", "float64"]))
        problems = ("regression", "single_label_classification", "multi_label_classification")
        if self.problem_type is not None and self.problem_type not in problems:
            raise ConfigError(unknown(f"problem_type of {where}", str(self.problem_type), problems))

    def validate_values(self) -> None:
        """Check values that a type cannot express; a subclass raises ConfigError naming the field and the fix."""
