"""`build_model`, `load_original` and `build_from_backbone`: from a name, a hub id, a folder or a file to a model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hybridzoo import registry
from hybridzoo._paths import asset_root
from hybridzoo.checkpoint_io import (
    INDEX_SUFFIX,
    WEIGHT_SUFFIXES,
    common_dtype,
    read_state_dict,
    sha256_file,
    unwrap_state_dict,
)
from hybridzoo.errors import CheckpointError, ConfigError, UnknownNameError, unknown
from hybridzoo.loading_options import LoadOptions, as_device, as_dtype, with_overrides
from hybridzoo.original_folder import is_original, read_original_folder
from hybridzoo.registry import Family, Model, Weights

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")


LONGEST_NAME = 1024  # characters; longer ones make the operating system raise errors of its own


def build_model(
    name_or_path: str | Path,
    *,
    pretrained: bool = False,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: Any = None,
    strict: bool = True,
    name: str | None = None,
    **config_overrides: Any,
) -> Any:
    """Build a model from a registered name, a hub repository, a local folder or a single weights file.

    Args:
        name_or_path: `"iformer_small"`, `"iformer_small.sail_in1k"`, `"hf-hub:org/repo@rev"`, `"org/repo"`,
            a folder written by `save_pretrained` (also as `"local-dir:PATH"`), or a `.safetensors`/`.pth` file.
        pretrained: for a registered name, load the tag's weights (the model's first tag if none is named).
            Never downloads unless set. Folders, hub ids and files always bring their weights.
        revision: branch, tag or commit of a hub repository.
        dtype: `torch.dtype` or its name; float32 if left out, `"auto"` keeps the file's. Random weights are made in
            float32 and then cast.
        device: where the model is put; `"meta"` allocates nothing. Random weights are drawn on that device.
        device_map: for folders and hub ids, as in transformers' `from_pretrained` (`"auto"` needs accelerate).
        strict: missing, unexpected or mis-shaped keys raise, naming themselves.
        name: for a single weights file, the registered model that it belongs to (without it, config.json beside it).
        **config_overrides: configuration values; an unknown key raises with the nearest names. `num_labels`,
            `num_classes` or `id2label` give loaded weights a new head where its size changes, and nothing else.

    Returns:
        The family's `ZooModel`: in train mode with random weights, in eval mode with loaded ones.

    Raises:
        UnknownNameError, ConfigError, CheckpointError, SourceError: each names what was given and the fix.
    """
    text = str(name_or_path)
    if not text or text in ("hf-hub:", "local-dir:"):
        raise UnknownNameError(
            f"an empty model name {text!r}; give a registered name (`hybridzoo list`), folder or hub id"
        )
    if len(text) > LONGEST_NAME or "\0" in text:
        raise UnknownNameError(
            f"a name of {len(text)} characters ({text[:40]!r}…) is no registered name, hub id or path"
        )
    options = LoadOptions(revision, as_dtype(dtype), as_device(device), device_map, strict, config_overrides)
    if device is not None and device_map is not None:
        raise ConfigError(f"device={device!r} and device_map={device_map!r} exclude each other; give one")
    if text.startswith("hf-hub:"):
        return _from_hub(text.removeprefix("hf-hub:"), options)
    if text.startswith("local-dir:"):
        return _from_folder(Path(text.removeprefix("local-dir:")).expanduser(), options)
    path = Path(text).expanduser()
    is_weights = path.suffix in WEIGHT_SUFFIXES or path.name.endswith(INDEX_SUFFIX)
    if is_weights and (path.is_file() or _looks_like_path(text) or name is not None):
        return _from_file(path, name, options)
    if path.is_dir() and (isinstance(name_or_path, Path) or "/" in text or not registry.is_model(text)):
        return _from_folder(path, options)
    if isinstance(name_or_path, Path) or _looks_like_path(text):
        return _from_folder(path, options)
    if registry.is_model(text) or not HUB_ID.fullmatch(text):
        return _from_name(text, pretrained, options)
    return _from_hub(text, options)


def load_original(
    family: str,
    weights: str | Path | Mapping[str, torch.Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    strict: bool = True,
) -> Any:
    """A zoo model from a checkpoint in the original implementation's layout.

    Args:
        family: a family (`"iformer"`) or a registered model of it (`"iformer_small"`).
        weights: path to a file, or a state dict with the original's key names.
        config: the original's own configuration dictionary; left out, it is read from the shapes where possible.
        strict: missing, unexpected or mis-shaped keys raise, naming themselves.

    Returns:
        The model, in eval mode.

    Raises:
        UnknownNameError, ConfigError, CheckpointError: each names what was given and the fix.
    """
    if family in registry.families():
        entry, task, base = registry.get_family(family), None, {}
    elif family.partition(".")[0] in registry.models():
        model, _ = registry.get_model(family)
        entry, task, base = registry.get_family(model.family), model.task, dict(model.config)
    else:
        choices = [*registry.families(), *registry.models()]
        raise UnknownNameError(unknown("family", family, choices, "(hybridzoo.list_families() lists them)"))
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(f"config must be the original's configuration as a dictionary, got {type(config).__name__}")
    if entry.convert is None:
        raise CheckpointError(f"family {entry.name!r} has no original implementation to convert from")
    where = str(weights) if isinstance(weights, (str, Path)) else "the original weights"
    state = read_state_dict(weights) if isinstance(weights, (str, Path)) else unwrap_state_dict(weights)
    model_class = registry.resolve(entry.model_classes[task or next(iter(entry.model_classes))])
    if config is None and base:
        values = base
    else:
        try:
            values = registry.resolve(entry.convert).config_from_original(dict(config) if config else None, state)
        except (KeyError, IndexError, TypeError) as error:
            raise CheckpointError(
                f"{where} does not look like a checkpoint of the original {entry.name!r}, so that its size cannot be "
                f"read from it ({type(error).__name__}: {error}); give config=, or a registered model, not the family"
            ) from error
    zoo_config = make_config(entry.name, values)
    converted = model_class.convert_original(state, zoo_config, where=where)
    return model_class(zoo_config).load_strict(converted, where=where, strict=strict).eval()


def build_from_backbone(name: str, source: str | Path, **overrides: Any) -> Any:
    """A registered model whose encoder or backbone starts from the weights of another model; its head is random.

    Args:
        name: a registered model of a family that supports it (`"roberta_bilstm_base"`).
        source: folder or hub id of the backbone, for transformers' AutoModel; for an image teacher also a weights file.
        **overrides: configuration values.

    Returns:
        The model, in train mode.

    Raises:
        UnknownNameError: no such model.
        ConfigError: the family has no exchangeable backbone, or a wrong configuration value.
        CheckpointError, SourceError: the backbone cannot be read.
    """
    from hybridzoo.hub import hub_errors

    model, _ = registry.get_model(name)
    model_class = registry.resolve(registry.get_family(model.family).model_classes[model.task])
    if not hasattr(model_class, "from_backbone"):
        raise ConfigError(
            f"{name!r} has no exchangeable backbone; start from its own weights with build_model({name!r})"
        )
    values = with_overrides(model.config, overrides)
    if _looks_like_path(str(source)) and not Path(source).expanduser().exists():
        raise CheckpointError(f"no folder or file {source} to read a backbone from")
    with hub_errors(str(source)):
        return model_class.from_backbone(
            str(Path(source).expanduser()) if Path(source).exists() else str(source), **values
        )


def make_config(family: str, values: Mapping[str, Any]) -> Any:
    """A config of `family`; unknown keys, wrong types and values raise ConfigError."""
    return registry.resolve(registry.get_family(family).config_class)(**values)


def _looks_like_path(text: str) -> bool:
    """Relative (`./x`, `../x`, `~/x`), absolute, Windows (`C:\\x`, `..\\x`) or deeper than a hub id can be."""
    return text.startswith((".", "/", "~")) or "\\" in text or text.partition("@")[0].count("/") > 1


def _from_name(text: str, pretrained: bool, options: LoadOptions) -> Any:
    model, tag = registry.get_model(text)
    tag = tag or (model.default_tag if pretrained else None)
    if pretrained and tag is None:
        have = registry.list_models(family=model.family, pretrained=True)
        raise UnknownNameError(
            f"{model.name!r} has no published weights; of this family these have: {', '.join(have) or 'none'}. "
            "Leave out pretrained=True for random weights, or give a folder or hub id that holds trained ones."
        )
    weights = model.tags[tag] if tag else None
    if pretrained and weights is not None:
        return _from_tag(model, weights, options)
    if options.device_map is not None:
        raise ConfigError(f"device_map places loaded weights; {text!r} is built with random ones: use device=")
    values = with_overrides({**model.config, **(weights.config if weights else {})}, options.overrides)
    return _random(model, values, options)


def _random(model: Model, values: Mapping[str, Any], options: LoadOptions) -> Any:
    config = make_config(model.family, values)
    model_class = registry.resolve(registry.get_family(model.family).model_classes[model.task])
    with torch.device(options.device if options.device is not None else "cpu"):
        built = model_class(config)
    return built.to(options.dtype) if isinstance(options.dtype, torch.dtype) else built


def _from_tag(model: Model, weights: Weights, options: LoadOptions) -> Any:
    scheme, _, rest = weights.uri.partition(":")
    if scheme == "checkpoints":
        return _from_folder(asset_root("checkpoints") / rest, options)
    if scheme != "hf-hub":
        raise CheckpointError(f"{model.name}: cannot read weights from {weights.uri!r}")
    repo, _, filename = rest.partition(":")
    if not filename:
        return _from_hub(repo, options)
    from hybridzoo.hub import download

    path = download(repo, filename, revision=options.revision)
    if weights.sha256 and options.revision is None and sha256_file(path) != weights.sha256:
        raise CheckpointError(
            f"{path} is not the published file (sha256 {weights.sha256} expected); delete it and retry"
        )
    values = {**model.config, **weights.config}
    return _load_state(path, model, values, options, original=weights.original)


def _from_file(path: Path, name: str | None, options: LoadOptions) -> Any:
    if name is not None:
        entry, tag = registry.get_model(name)
        values = {**entry.config, **(entry.tags[tag].config if tag else {})}
        return _load_state(path, entry, values, options)
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}")
    if not (path.parent / "config.json").is_file():
        raise CheckpointError(
            f"{path} holds weights only: say which model they belong to, e.g. "
            f"build_model({str(path)!r}, name='iformer_small'), or put its config.json beside it"
        )
    family, values = _read_config(path.parent, str(path.parent))
    task = next(iter(family.model_classes))
    entry = Model(name=family.name, family=family.name, task=task, config={}, summary="", tags={})
    return _load_state(path, entry, values, options)


def _load_state(
    path: Path, entry: Model, values: Mapping[str, Any], options: LoadOptions, original: bool | None = None
) -> Any:
    state = read_state_dict(path)
    if options.device_map is not None:
        raise ConfigError(f"device_map needs a folder or hub id, and {path} is a single file; use device=")
    model = _random(entry, with_overrides(values, options.overrides), LoadOptions())
    own = model.state_dict()
    if original is None:  # the zoo's own layout, unless most keys are not ours and the family has a converter
        ours = sum(key in own for key in state)
        original = 2 * ours < len(state) and registry.get_family(entry.family).convert is not None
    if original:
        state = type(model).convert_original(state, model.config, where=str(path))
    if options.new_head:
        other_size = {k for k, v in state.items() if model.is_head_key(k) and k in own and v.shape != own[k].shape}
        state = {k: own[k] if k in other_size else v for k, v in state.items()}
    model.load_strict(state, where=str(path), strict=options.strict)
    return _place(model, common_dtype(state) if options.dtype == "auto" else options.dtype, options.device)


def _from_hub(repo: str, options: LoadOptions) -> Any:
    from hybridzoo.hub import snapshot, split_revision

    folder = snapshot(repo, revision=options.revision)
    model = _from_folder(folder, options, shown=f"hf-hub:{repo}")
    model.config.name_or_path = split_revision(repo)[0]
    return model


def _read_config(folder: Path, shown: str) -> tuple[Family, dict[str, Any]]:
    """The family and the values of a folder's config.json. Plain JSON: nothing that it names is imported or run."""
    path = folder / "config.json"
    if not path.is_file():
        if not folder.is_dir():
            raise CheckpointError(
                f"no model folder {shown}; expected a folder written by save_pretrained, a hub id 'org/name', or a "
                "registered name (`hybridzoo list`)"
            )
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8])
        raise CheckpointError(
            f"{shown} is not a model folder: it has no config.json ({inside or 'empty'}). Expected a folder written by "
            "save_pretrained, or a registered name (`hybridzoo list`)."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{shown}/config.json cannot be read as JSON ({error}); it is damaged: fetch it again"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{shown}/config.json holds a {type(values).__name__}, expected an object")
    model_type = values.get("model_type")
    names = {f.model_type: f for f in registry.families().values()}
    names |= {f.original_model_type: f for f in registry.families().values() if f.original_model_type}
    family = names.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        known = ", ".join(f.model_type for f in registry.families().values())
        raise CheckpointError(
            f"{shown} holds a {model_type!r} model, which is not one of the zoo's ({known}). Load it with "
            "transformers' AutoModel, or convert the original's weights with load_original."
        )
    return family, values


def _from_folder(folder: Path, options: LoadOptions, shown: str | None = None) -> Any:
    shown = shown or str(folder)
    family, values = _read_config(folder, shown)
    if is_original(family, values):
        return _from_published(folder, family, values, options, shown)
    try:
        config = make_config(family.name, with_overrides(values, options.overrides))
    except ConfigError as error:
        raise ConfigError(f"{shown}/config.json: {error}") from error
    model = _class_for(family, config).from_pretrained(
        str(folder),
        config=config,
        strict=options.strict,
        new_head=options.new_head,
        dtype=options.dtype if options.dtype is not None else torch.float32,
        device_map=options.device_map,
        local_files_only=True,
    )
    return _place(model, None, options.device)


def _from_published(folder: Path, family: Family, values: dict[str, Any], options: LoadOptions, shown: str) -> Any:
    """A folder as the original's authors published it: their config.json beside their weights."""
    if options.device_map is not None:
        raise ConfigError(f"device_map needs a folder of the zoo's own, and {shown} is converted; use device=")
    values, state = read_original_folder(folder, family, values, shown)
    config = make_config(family.name, with_overrides(values, options.overrides))
    model_class = _class_for(family, config)
    converted = model_class.convert_original(state, config, where=shown)
    model = model_class(config).load_strict(converted, where=shown, strict=options.strict)
    return _place(model, common_dtype(state) if options.dtype == "auto" else options.dtype, options.device)


def _class_for(family: Family, config: Any) -> Any:
    classes = {t.partition(":")[2]: t for t in family.model_classes.values()}
    for architecture in config.architectures or ():
        if architecture in classes:
            return registry.resolve(classes[architecture])
    return registry.resolve(next(iter(family.model_classes.values())))


def _place(model: Any, dtype: torch.dtype | str | None, device: torch.device | str | None) -> Any:
    model = model.to(dtype) if isinstance(dtype, torch.dtype) else model
    return (model.to(device) if device is not None else model).eval()
