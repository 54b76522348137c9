"""Names -> families, configurations, tasks and weights. Imports neither torch nor any model module.

A *family* is one architecture (`iformer`): its config class, its model class per task, its converter and its facts.
A *model* is a named configuration of a family (`iformer_small`), a *tag* its published weights (`.sail_in1k`).
Families register themselves in `hybridzoo/models/<family>/__init__.py`; other packages through the entry-point
group `hybridzoo.models` (an entry point is a module, or a function without arguments, that registers).
"""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
import re
import threading
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from hybridzoo.errors import UnknownNameError, unknown

ENTRY_POINT_GROUP = "hybridzoo.models"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Published weights of one model: what `pretrained=True` loads.

    Args:
        uri: `checkpoints:FOLDER` (ships with the zoo), `hf-hub:org/repo[@rev]` (a save_pretrained folder), or
            `hf-hub:org/repo[@rev]:path/in/repo.pth` (a single file in the original's layout, converted while loading).
        license: SPDX name, or the words of the source where it states none.
        source: page that describes the weights.
        original: the file is in the original implementation's layout.
        sha256: of the single file, where known; checked after the download.
        config: configuration values that belong to these weights (input size, labels).
        metrics: figures as published, `{"imagenet1k top-1": 83.4}`; never measured by the zoo.
    """

    uri: str
    license: str
    source: str = ""
    original: bool = False
    sha256: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


def shipped(folder: str, tag: str, license: str) -> dict[str, Weights]:
    """The tag of a model that the zoo trained itself, if its folder in checkpoints/ has weights; else no tag."""
    from hybridzoo._paths import asset_root

    path = asset_root("checkpoints") / folder
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        return {}
    return {tag: Weights(uri=f"checkpoints:{folder}", license=license, source=f"checkpoints/{folder}/README.md")}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture. Class targets are `"module:Class"` strings, resolved at first use."""

    name: str
    title: str
    model_type: str
    config_class: str
    model_classes: Mapping[str, str]  # task -> "module:Class"; the first is the default task
    auto_classes: Mapping[str, str]  # task -> name of the transformers Auto class
    convert: str | None  # module with from_original / to_original / config_from_original
    paper: str
    source: str  # repository of the original implementation, or a sentence that says there is none
    license: str  # of the original implementation
    original_model_type: str | None = None  # of the original's config.json, where it is not `model_type`
    timm: str | None = None  # module whose import registers the family's backbones with timm
    image_processor: str | None = (
        None  # "module:Class" that AutoImageProcessor and pipelines load, where it is the zoo's
    )


@dataclass(frozen=True, kw_only=True)
class Model:
    """A named configuration of a family."""

    name: str
    family: str
    task: str
    config: Mapping[str, Any]
    summary: str
    tags: Mapping[str, Weights]

    @property
    def default_tag(self) -> str | None:
        return next(iter(self.tags), None)


_families: dict[str, Family] = {}
_models: dict[str, Model] = {}


def register_family(family: Family) -> Family:
    """Add an architecture; a second registration of a name or model type raises."""
    for other in _families.values():
        if other.name == family.name or other.model_type == family.model_type:
            raise ValueError(f"family {family.name!r} (model_type {family.model_type!r}) is already registered")
    _families[family.name] = family
    return family


def register_model(
    name: str,
    *,
    family: str,
    config: Mapping[str, Any] | None = None,
    task: str | None = None,
    summary: str = "",
    tags: Mapping[str, Weights] | None = None,
) -> Model:
    """Add a named configuration of a registered family.

    Args:
        name: `<family>_<size>`; letters, digits and `_`.
        family: a registered family.
        config: values that differ from the config class's defaults.
        task: one of the family's tasks; the family's first if left out.
        summary: one line for listings.
        tags: weights that really exist, best first.

    Raises:
        ValueError: the name is taken or malformed.
        UnknownNameError: no such family or task.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", name):
        raise ValueError(f"model name {name!r} must be lower-case letters, digits and '_' (a '.' begins a tag)")
    if name in _models:
        raise ValueError(f"model {name!r} is already registered by family {_models[name].family!r}")
    if family not in _families:
        raise UnknownNameError(unknown("family", family, _families, "(register_family comes first)"))
    tasks = _families[family].model_classes
    task = task or next(iter(tasks))
    if task not in tasks:
        raise UnknownNameError(unknown(f"task for family {family!r}", task, tasks))
    _models[name] = Model(
        name=name, family=family, task=task, config=dict(config or {}), summary=summary, tags=dict(tags or {})
    )
    return _models[name]


_lock = threading.RLock()
_loaded = False


def _load_all() -> None:
    """Import every family's light `__init__` and every plug-in, once."""
    global _loaded
    with _lock:
        if _loaded:
            return
        _loaded = True  # set first: a family or plug-in that lists models while it registers must not come back here
        try:
            package = importlib.import_module("hybridzoo.models")
            for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
                if not module.name.startswith("_"):
                    importlib.import_module(f"hybridzoo.models.{module.name}")
        except BaseException:
            _loaded = False
            raise
        for point in entry_points(group=ENTRY_POINT_GROUP):
            _load_plugin(point)


def _load_plugin(point: EntryPoint) -> None:
    """Load one plug-in. A broken one is named in a warning, what it registered is taken back, and the zoo goes on."""
    known_families, known_models = dict(_families), dict(_models)
    try:
        target = point.load()
        if callable(target):
            target()
    except Exception as error:
        _families.clear()
        _families.update(known_families)
        _models.clear()
        _models.update(known_models)
        package = f" of package {point.dist.name!r}" if point.dist else ""
        warnings.warn(
            f"hybridzoo plug-in {point.name!r} ({point.value}){package} could not be loaded and is left out: "
            f"{type(error).__name__}: {error}. Update or uninstall that package.",
            RuntimeWarning,
            stacklevel=2,
        )


def families() -> dict[str, Family]:
    """All families by name."""
    _load_all()
    return dict(_families)


def models() -> dict[str, Model]:
    """All models by name, in natural order."""
    _load_all()
    return {name: _models[name] for name in sorted(_models, key=_natural)}


def get_family(name: str) -> Family:
    """The family `name`; raises UnknownNameError with the nearest names."""
    if name not in families():
        raise UnknownNameError(unknown("family", name, _families, "(hybridzoo.list_families() lists them)"))
    return _families[name]


def get_model(name: str) -> tuple[Model, str | None]:
    """The model and the tag of `name` or `name.tag`; raises UnknownNameError with the nearest names."""
    base, _, tag = name.partition(".")
    if base not in models():
        raise UnknownNameError(unknown("model", base, _models, "(`hybridzoo list` shows all)"))
    model = _models[base]
    if tag and tag not in model.tags:
        have = ", ".join(model.tags) or "none: this model has no published weights"
        raise UnknownNameError(unknown(f"tag of {base!r}", tag, model.tags, f"(tags: {have})"))
    return model, tag or None


def resolve(target: str) -> Any:
    """The object that a `"module:name"` string points to."""
    module, _, attribute = target.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def is_model(name: str) -> bool:
    """Whether `name` (with or without tag) is registered."""
    try:
        get_model(name)
    except UnknownNameError:
        return False
    return True


def list_families() -> list[str]:
    """Names of all families."""
    return sorted(families(), key=_natural)


def list_models(
    filter: str | Iterable[str] = "",
    *,
    exclude: str | Iterable[str] = (),
    task: str | None = None,
    family: str | None = None,
    pretrained: bool = False,
) -> list[str]:
    """Names of registered models, in natural order.

    Args:
        filter: one or several wildcard patterns (`"*mamba*"`); empty means all. A pattern that ends in `.*` (or any
            pattern with a tag part) lists `name.tag`.
        exclude: patterns to leave out.
        task: only models of this task, e.g. `"image-classification"`.
        family: only models of this family.
        pretrained: only models with published weights, as `name.tag`.

    Raises:
        UnknownNameError: no family or task of that name.
    """
    if family is not None:
        get_family(family)
    tasks = {m.task for m in models().values()}
    if task is not None and task not in tasks:
        raise UnknownNameError(unknown("task", task, tasks))
    patterns = [filter] if isinstance(filter, str) else list(filter)
    patterns = [p for p in patterns if p] or ["*"]
    without = [exclude] if isinstance(exclude, str) else list(exclude)
    names = []
    for model in models().values():
        if (task and model.task != task) or (family and model.family != family):
            continue
        tagged = [f"{model.name}.{tag}" for tag in model.tags]
        candidates = tagged if pretrained else [model.name, *tagged]
        for candidate in candidates:
            keep = any(
                fnmatch.fnmatchcase(candidate, p) and (pretrained or ("." in candidate) == ("." in p)) for p in patterns
            )
            if keep and not any(fnmatch.fnmatchcase(candidate, p) for p in without):
                names.append(candidate)
    return names


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def register_auto_configs() -> None:
    """Tell transformers' AutoConfig every family's config class. Called right after AutoConfig is imported."""
    from transformers import AutoConfig

    for family in families().values():
        AutoConfig.register(family.model_type, resolve(family.config_class), exist_ok=True)


def register_timm_models() -> None:
    """Tell timm every family's backbones. Called right after timm is imported."""
    for family in families().values():
        if family.timm:
            importlib.import_module(family.timm)


_auto_registered: set[str] = set()


def register_auto_models(model_type: str) -> None:
    """Tell the Auto classes the model classes of one family, when its first config is made (so: late and cheap)."""
    if model_type in _auto_registered:
        return
    _auto_registered.add(model_type)
    family = next((f for f in families().values() if f.model_type == model_type), None)
    if family is None:  # a config class outside the registry (a test's, a subclass'): nothing to tell
        return
    import transformers

    config_class = resolve(family.config_class)
    for task, auto_name in family.auto_classes.items():
        getattr(transformers, auto_name).register(config_class, resolve(family.model_classes[task]), exist_ok=True)
    if family.image_processor:
        classes = {"torchvision": resolve(family.image_processor)}
        transformers.AutoImageProcessor.register(config_class, image_processor_classes=classes, exist_ok=True)
