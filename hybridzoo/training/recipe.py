"""Recipes: YAML files that say what is trained, on what, and how.

    recipe = load_recipe("iformer/fashion_mnist_mini", ["training.epochs=2"])

Order of precedence: the defaults of `schema.py`, the file named by `base:` (if any), the recipe, the overrides.
An unknown key, a wrong type or an impossible value raises ConfigError with the key's path.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from hybridzoo._paths import asset_root
from hybridzoo.errors import ConfigError, UnknownNameError, unknown
from hybridzoo.training.objectives import check_metric
from hybridzoo.training.schema import Recipe

TRACKERS = ("tensorboard", "trackio", "wandb")
INTERPOLATIONS = ("random", "bilinear", "bicubic", "nearest", "lanczos")
_EVERY = re.compile(r"(\d+)\s*steps?|(\d+(?:\.\d+)?)\s*(?:epochs?)?")


def list_recipes(pattern: str = "") -> list[str]:
    """Names of the zoo's recipes, `family/name`, sorted; `pattern` is a part of the name or a wildcard."""
    from fnmatch import fnmatchcase

    root = asset_root("recipes")
    names = sorted(p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml"))
    wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    return [n for n in names if fnmatchcase(n, wanted)]


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe: an existing path (`.yaml` may be left out), else a name such as `iformer/small_imagenet1k`.

    Raises:
        UnknownNameError: neither; the nearest names are given.
    """
    text = str(name_or_path)
    for candidate in (Path(text).expanduser(), Path(f"{text}.yaml").expanduser()):
        if candidate.is_file():
            return candidate
    inside = asset_root("recipes") / f"{text.removesuffix('.yaml')}.yaml"
    if inside.is_file():
        return inside
    if text.endswith((".yaml", ".yml")):
        raise UnknownNameError(
            f"no recipe file at {text}; {unknown('recipe', text.removesuffix('.yaml'), list_recipes())}"
        )
    raise UnknownNameError(unknown("recipe", text, list_recipes(), "(`hybridzoo recipes list` shows all)"))


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and merge it over the defaults.

    Args:
        name_or_path: see `find_recipe`.
        overrides: `key=value` texts, the key with dots and the value in YAML: `training.learning_rate=3e-4`,
            `model.config.num_labels=3`, `training.augment.scale=[0.5,1.0]`.

    Returns:
        The complete recipe.

    Raises:
        UnknownNameError: no such recipe or base file.
        ConfigError: unreadable YAML, an unknown key (with the nearest), a wrong type, an impossible value.
    """
    path = find_recipe(name_or_path)
    layers = []
    values = _read(path)
    base = values.pop("base", None)
    if base is not None:
        base_path = _find_base(base, path)
        base_values = _read(base_path)
        if "base" in base_values:
            raise ConfigError(f"{path}: its base {base_path} has a base of its own; only one level is allowed")
        layers.append((str(base_path), base_values))
    layers.append((str(path), values))
    layers += [(f"override {text!r}", _parse_override(text)) for text in overrides]
    return _merge(layers)


def portable_text(path: Path) -> str:
    """A recipe's text with a `base:` that still points to the same file when the text lies elsewhere."""
    text = path.read_text(encoding="utf-8")
    base = _read(path).get("base")
    if base is None:
        return text
    base_path, root = _find_base(base, path).resolve(), asset_root("recipes").resolve()
    inside = base_path.is_relative_to(root)
    name = base_path.relative_to(root).with_suffix("").as_posix() if inside else str(base_path)
    return re.sub(r"(?m)^base:.*$", lambda _: f"base: {name}", text, count=1)


def recipe_from_dict(values: Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from a nested dictionary; raises as `load_recipe`."""
    layers: list[tuple[str, Any]] = [("the recipe", dict(values))]
    return _merge(layers + [(f"override {text!r}", _parse_override(text)) for text in overrides])


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain nested dictionaries, every key present."""
    return dataclasses.asdict(recipe)


def recipe_to_yaml(recipe: Recipe) -> str:
    """YAML that `load_recipe` reads back to an equal recipe."""
    return OmegaConf.to_yaml(OmegaConf.create(recipe_to_dict(recipe)))


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write `recipe_to_yaml` to a file."""
    Path(path).write_text(recipe_to_yaml(recipe), encoding="utf-8")


def parse_every(value: int | float | str, key: str) -> tuple[float, str]:
    """`eval_every` and `save_every`: `1` or `"0.5 epochs"` -> (1.0, "epochs"), `"200 steps"` -> (200.0, "steps").

    Raises:
        ConfigError: neither.
    """
    found = _EVERY.fullmatch(str(value).strip())
    if not found:
        raise ConfigError(
            f"{key}: {value!r} is neither a number of epochs (1, 0.5) nor of steps ('200 steps'); 0 = only at the end"
        )
    return (float(found[1]), "steps") if found[1] else (float(found[2]), "epochs")


# Reading -----------------------------------------------------------------------------------------------------------


def _find_base(base: Any, path: Path) -> Path:
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base must be the name or path of one recipe, not {base!r}")
    for beside in (path.parent / base, path.parent / f"{base}.yaml"):
        if beside.is_file():
            return beside
    try:
        return find_recipe(base)
    except UnknownNameError as error:
        raise UnknownNameError(f"{path}: base: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}); a recipe is a YAML file") from error
    except OSError as error:
        # OmegaConf says "Invalid loaded object type" for a file that holds a bare text or number.
        raise ConfigError(
            f"{path} cannot be read as a recipe: {error}; expected sections model, data, training"
        ) from error
    except (OmegaConfBaseException, RecursionError, ValueError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else _first_line(error)
        raise ConfigError(f"{path} cannot be read as a recipe: {what[:300]}") from error
    if not OmegaConf.is_dict(loaded):
        raise ConfigError(
            f"{path} holds a list; a recipe is a mapping with the sections model, data, training, evaluation"
        )
    try:
        return _plain(OmegaConf.to_container(loaded, resolve=True))
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply for a recipe") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from error


def _plain(container: Any) -> dict[str, Any]:
    return {str(k): v for k, v in container.items()}


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {text!r} is not key=value; example: training.learning_rate=3e-4")
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=True)["value"]  # type: ignore[index]
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
        raise ConfigError(f"override {text!r}: the value is not valid YAML: {_first_line(error)}") from error
    for part in reversed(parts):
        parsed = {part: parsed}
    return parsed


def _merge(layers: list[tuple[str, Any]]) -> Recipe:
    merged = OmegaConf.structured(Recipe)
    for where, values in layers:
        values = _check_keys(values, Recipe, (), where)
        try:
            merged = OmegaConf.merge(merged, values)
        except OmegaConfBaseException as error:
            raise _type_error(error, where) from error
    try:
        recipe: Recipe = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or "model.name or data.name"
        raise ConfigError(f"{layers[0][0]}: {key} is missing; a recipe names its model and its data set") from error
    except OmegaConfBaseException as error:
        raise _type_error(error, layers[0][0]) from error
    _check_values(recipe, layers[0][0] if len(layers) == 1 else " + ".join(where for where, _ in layers))
    return recipe


def _check_keys(values: Any, section: type, path: tuple[str, ...], where: str) -> dict[str, Any]:
    """Name an unknown key with its path before OmegaConf sees it, so that the nearest key can be given.

    Returns:
        The values, an empty section (`training:` with nothing below it) as {}.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where}: {'.'.join(path) or 'the recipe'} must be a section of key: value lines, not {values!r}"
        )
    hints = get_type_hints(section)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        here = (*path, str(key))
        if key not in hints:
            elsewhere = [".".join(p) for p in _all_keys(Recipe) if p[-1] == key]
            if elsewhere:
                raise ConfigError(
                    f"{where}: unknown key {'.'.join(here)!r}; did you mean {' or '.join(map(repr, elsewhere))}?"
                )
            message = unknown("key" if path else "section", str(key), hints)
            raise ConfigError(
                f"{where}: {message} (in {'.'.join(path) or 'the top level'}; full path {'.'.join(here)!r})"
            )
        nested = dataclasses.is_dataclass(hints[key])
        checked[key] = _check_keys({} if value is None else value, hints[key], here, where) if nested else value
    return checked


def _all_keys(section: type, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    keys = []
    for key, hint in get_type_hints(section).items():
        keys.append((*path, key))
        if dataclasses.is_dataclass(hint):
            keys += _all_keys(hint, (*path, key))  # type: ignore[arg-type]
    return keys


def _type_error(error: OmegaConfBaseException, where: str) -> ConfigError:
    key = getattr(error, "full_key", None)
    expected = _expected(key) if key else None
    text = f"{where}: {key or 'the recipe'}: {_first_line(error)}"
    return ConfigError(f"{text}; expected {expected}" if expected else text)


def _expected(key: str) -> str | None:
    section: Any = Recipe
    for part in key.split("."):
        part = part.partition("[")[0]
        if not dataclasses.is_dataclass(section):
            return None
        section = get_type_hints(section).get(part)  # type: ignore[arg-type]
    return re.sub(r"typing\.|<class '(\w+)'>", lambda m: m[1] or "", str(section)) if section is not None else None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


# Values that a type cannot express -----------------------------------------------------------------------------------


def _check_values(recipe: Recipe, where: str) -> None:
    t, e, m, a = recipe.training, recipe.evaluation, recipe.model, recipe.training.augment

    def need(ok: bool, key: str, text: str) -> None:
        if not ok:
            section: Any = recipe
            for part in key.split("."):
                section = getattr(section, part)
            raise ConfigError(f"{where}: {key} = {section!r}; {text}")

    sources = [k for k in ("pretrained", "weights", "backbone") if getattr(m, k)]
    if len(sources) > 1:
        raise ConfigError(
            f"{where}: model.{' and model.'.join(sources)} are both set; the first weights come from one place"
        )
    need(math.isfinite(t.epochs) and t.epochs > 0, "training.epochs", "must be above 0")
    need(t.max_steps is None or t.max_steps > 0, "training.max_steps", "must be above 0, or null")
    for key in ("batch_size", "gradient_accumulation", "log_every"):
        need(getattr(t, key) >= 1, f"training.{key}", "must be at least 1")
    need(e.batch_size >= 1, "evaluation.batch_size", "must be at least 1")
    need(t.learning_rate > 0 and math.isfinite(t.learning_rate), "training.learning_rate", "must be above 0")
    for key in ("min_learning_rate", "warmup_learning_rate"):
        need(0 <= getattr(t, key) <= t.learning_rate, f"training.{key}", "must lie between 0 and learning_rate")
    steps = t.milestones
    need(
        not steps or (t.scheduler == "step" and list(steps) == sorted(steps) and steps[0] > 0 and steps[-1] < t.epochs),
        "training.milestones",
        "must be rising epochs between 0 and training.epochs, and belong to scheduler: step",
    )
    need(t.scheduler != "step" or bool(steps), "training.milestones", "scheduler: step needs at least one, in epochs")
    need(t.dpo_beta > 0, "training.dpo_beta", "must be above 0")
    need(0 < t.gamma < 1, "training.gamma", "must lie in (0, 1)")
    need(0 < t.warmup_power < 100, "training.warmup_power", "must be above 0; 1 is linear")
    need(all(v >= 0 and math.isfinite(v) for v in t.lr_scales.values()), "training.lr_scales", "must not be negative")
    for key in ("warmup_epochs", "cooldown_epochs", "weight_decay", "mixup", "cutmix", "num_workers", "seed"):
        need(getattr(t, key) >= 0, f"training.{key}", "must not be negative")
    for key in ("warmup_ratio", "label_smoothing", "decay_ratio"):
        need(0 <= getattr(t, key) < 1, f"training.{key}", "must lie in [0, 1)")
    for key in ("mixup_prob", "mixup_switch_prob", "augment.hflip", "augment.random_erasing"):
        value = a.__dict__[key[8:]] if key.startswith("augment.") else getattr(t, key)
        need(0 <= value <= 1, f"training.{key}", "is a probability and must lie in [0, 1]")
    need(
        not (t.warmup_epochs and t.warmup_ratio), "training.warmup_ratio", "warmup_epochs is set too; keep one of them"
    )
    need(
        t.max_steps is not None or t.warmup_epochs <= t.epochs,
        "training.warmup_epochs",
        "is longer than training.epochs",
    )
    betas = t.optimizer.betas
    need(
        len(betas) == 2 and all(0 <= b < 1 for b in betas), "training.optimizer.betas", "must be two numbers in [0, 1)"
    )
    need(t.optimizer.eps > 0, "training.optimizer.eps", "must be above 0")
    need(t.layer_decay is None or 0 < t.layer_decay <= 1, "training.layer_decay", "must lie in (0, 1], or be null")
    need(
        t.clip_grad_norm is None or t.clip_grad_norm > 0, "training.clip_grad_norm", "must be above 0, or null for none"
    )
    need(t.ema_decay is None or 0 < t.ema_decay < 1, "training.ema_decay", "must lie in (0, 1), or be null for none")
    need(
        t.save_total_limit is None or t.save_total_limit >= 1,
        "training.save_total_limit",
        "must be at least 1, or null",
    )
    patience = t.early_stopping_patience
    need(patience is None or patience >= 1, "training.early_stopping_patience", "must be at least 1, or null")
    for key in ("scale", "ratio"):
        pair = getattr(a, key)
        good = pair is None or (len(pair) == 2 and 0 < pair[0] <= pair[1] and (key == "ratio" or pair[1] <= 1))
        need(
            good,
            f"training.augment.{key}",
            "must be [low, high] with 0 < low <= high" + (" <= 1" if key == "scale" else ""),
        )
    need(
        a.interpolation is None or a.interpolation in INTERPOLATIONS,
        "training.augment.interpolation",
        f"choose one of {', '.join(INTERPOLATIONS)}, or null",
    )
    need(a.padding_crop >= 0, "training.augment.padding_crop", "must not be negative")
    need(a.repeats >= 0, "training.augment.repeats", "must not be negative")
    for key in ("eval_every", "save_every"):
        parse_every(getattr(t, key), f"{where}: training.{key}")
    check_metric(recipe, where)
    for name in t.report_to:
        if name not in TRACKERS:
            raise ConfigError(f"{where}: training.report_to: {unknown('tracker', name, TRACKERS)}")
    if recipe.data.tokenizer is not None and recipe.data.tokenizer.startswith("train:"):
        size = recipe.data.tokenizer[6:]
        need(
            size.isdigit() and int(size) > 256,
            "data.tokenizer",
            "train:N needs a vocabulary of more than 256, e.g. train:8000",
        )
