"""`build_model` and `load_original`: from a name, a hub id, a folder or a file to a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from hybridzoo import registry
from hybridzoo._paths import asset_root
from hybridzoo.checkpoint_io import WEIGHT_SUFFIXES, read_state_dict, sha256_file, unwrap_state_dict
from hybridzoo.errors import CheckpointError, ConfigError, UnknownNameError, unknown
from hybridzoo.modeling import ZooModel
from hybridzoo.registry import Model, Weights

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def build_model(
    name_or_path: str | Path,
    *,
    pretrained: bool = False,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
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
        dtype: `torch.dtype` or its name; random weights are made in fp32 and then cast.
        device: where the model is put; `"meta"` allocates nothing.
        strict: missing, unexpected or mis-shaped keys raise, naming themselves.
        name: for a single weights file, the registered model that it belongs to.
        **config_overrides: configuration values; an unknown key raises with the nearest names.

    Returns:
        The family's `ZooModel`: in train mode with random weights, in eval mode with loaded ones.

    Raises:
        UnknownNameError, ConfigError, CheckpointError, SourceError: each names what was given and the fix.
    """
    text = str(name_or_path)
    dtype = _as_dtype(dtype)
    if text.startswith("hf-hub:"):
        return _from_hub(text[len("hf-hub:") :], revision, dtype, device, strict, config_overrides)
    if text.startswith("local-dir:"):
        return _from_folder(Path(text[len("local-dir:") :]), dtype, device, strict, config_overrides)
    path = Path(text).expanduser()
    if path.suffix in WEIGHT_SUFFIXES and (path.is_file() or "/" in text or name is not None):
        return _from_file(path, name, dtype, device, strict, config_overrides)
    if path.is_dir() and (isinstance(name_or_path, Path) or "/" in text or not registry.is_model(text)):
        return _from_folder(path, dtype, device, strict, config_overrides)
    if registry.is_model(text) or not HUB_ID.fullmatch(text):
        return _from_name(text, pretrained, revision, dtype, device, strict, config_overrides)
    return _from_hub(text, revision, dtype, device, strict, config_overrides)


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
        config: the original's own configuration dictionary; left out, it is read from the shapes where that is possible.
        strict: missing, unexpected or mis-shaped keys raise, naming themselves.

    Returns:
        The model, in eval mode.

    Raises:
        UnknownNameError, ConfigError, CheckpointError: each names what was given and the fix.
    """
    state = read_state_dict(weights) if isinstance(weights, (str, Path)) else unwrap_state_dict(weights)
    if family in registry.models() and family not in registry.families():
        model, _ = registry.get_model(family)
        entry, task, base = registry.get_family(model.family), model.task, dict(model.config)
    else:
        entry, task, base = registry.get_family(family), None, {}
    if entry.convert is None:
        raise CheckpointError(f"family {entry.name!r} has no original implementation to convert from")
    convert = registry.resolve(entry.convert)
    if config is None and base:
        values = base
    else:
        values = convert.config_from_original(dict(config) if config is not None else None, state)
    model_class = registry.resolve(entry.model_classes[task or next(iter(entry.model_classes))])
    return model_class.from_original(state, make_config(entry.name, values), strict=strict).eval()


def make_config(family: str, values: Mapping[str, Any]) -> Any:
    """A config of `family`; wrong types and values raise ConfigError."""
    config_class = registry.resolve(registry.get_family(family).config_class)
    try:
        return config_class(**values)
    except StrictDataclassError as error:
        raise ConfigError(f"{config_class.__name__}: {error}") from error


def _as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    short = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "float": "float32"}
    found = getattr(torch, short.get(dtype, str(dtype).removeprefix("torch.")), None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(unknown("dtype", str(dtype), ["float32", "bfloat16", "float16", "float64"]))
    return found


def _from_name(text, pretrained, revision, dtype, device, strict, overrides) -> Any:
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
        return _from_tag(model, weights, revision, dtype, device, strict, overrides)
    values = {**model.config, **(weights.config if weights else {}), **overrides}
    return _random(model, values, dtype, device)


def _random(model: Model, values: Mapping[str, Any], dtype, device) -> Any:
    config = make_config(model.family, values)
    model_class = registry.resolve(registry.get_family(model.family).model_classes[model.task])
    with torch.device(device if device is not None else "cpu"):
        built = model_class(config)
    return built.to(dtype) if dtype is not None else built


def _from_tag(model: Model, weights: Weights, revision, dtype, device, strict, overrides) -> Any:
    scheme, _, rest = weights.uri.partition(":")
    if scheme == "checkpoints":
        return _from_folder(asset_root("checkpoints") / rest, dtype, device, strict, overrides)
    if scheme != "hf-hub":
        raise CheckpointError(f"{model.name}: cannot read weights from {weights.uri!r}")
    repo, _, filename = rest.partition(":")
    if not filename:
        return _from_hub(repo, revision, dtype, device, strict, overrides)
    from hybridzoo.hub import download

    path = download(repo, filename, revision=revision)
    if weights.sha256 and sha256_file(path) != weights.sha256:
        raise CheckpointError(
            f"{path} is not the published file (sha256 {weights.sha256} expected); delete it and retry"
        )
    values = {**model.config, **weights.config, **overrides}
    return _from_file(path, model.name, dtype, device, strict, values, original=weights.original)


def _from_file(path: Path, name, dtype, device, strict, overrides, original: bool | None = None) -> Any:
    state = read_state_dict(path)
    if name is None:
        raise CheckpointError(
            f"{path} holds weights only: say which model they belong to, e.g. build_model({str(path)!r}, name='iformer_small')"
        )
    entry, tag = registry.get_model(name)
    values = {**entry.config, **(entry.tags[tag].config if tag else {}), **overrides}
    model = _random(entry, values, None, None)
    own = set(model.state_dict())
    if original is None:  # the zoo's own layout, unless not all keys are ours and the family has a converter
        original = not set(state) <= own and registry.get_family(entry.family).convert is not None
    if original:
        state = model._convert_module().from_original(state, model.config)
    if "num_labels" in overrides or "num_classes" in overrides:
        heads = tuple(f"{h}." for h in type(model).head_names)
        fits = model.state_dict()
        state = {
            k: v if not (k.startswith(heads or ("\0",)) and v.shape != fits[k].shape) else fits[k]
            for k, v in state.items()
        }
    model.load_strict(state, where=str(path), strict=strict)
    return _place(model, dtype, device)


def _from_folder(folder: Path, dtype, device, strict, overrides) -> Any:
    if not (folder / "config.json").is_file():
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise CheckpointError(
            f"{folder} is not a model folder: it has no config.json ({inside or 'empty'}). Expected a folder written by "
            "save_pretrained, or a registered name (`hybridzoo list`)."
        )
    return _from_pretrained(str(folder), None, dtype, device, strict, overrides)


def _from_hub(repo: str, revision, dtype, device, strict, overrides) -> Any:
    from hybridzoo.hub import hub_errors, split_revision

    repo, in_name = split_revision(repo)
    with hub_errors(repo):
        return _from_pretrained(repo, revision or in_name, dtype, device, strict, overrides)


def _from_pretrained(source: str, revision, dtype, device, strict, overrides) -> Any:
    from transformers import AutoConfig

    try:
        config, unused = AutoConfig.from_pretrained(
            source, revision=revision, return_unused_kwargs=True, trust_remote_code=False
        )
    except StrictDataclassError as error:
        raise ConfigError(f"{source}/config.json: {error}") from error
    family = next((f for f in registry.families().values() if f.model_type == config.model_type), None)
    if family is None:
        known = ", ".join(f.model_type for f in registry.families().values())
        raise CheckpointError(
            f"{source} holds a {config.model_type!r} model, which is not one of the zoo's ({known}). Load it with transformers' "
            "AutoModel, or convert the original's weights with load_original."
        )
    values = {**config.to_dict(), **overrides}
    if "num_labels" in overrides or "num_classes" in overrides:
        values.pop("id2label", None), values.pop("label2id", None)
    config = make_config(family.name, values)
    model_class = _class_for(family, config)
    extra = {"num_labels": config.num_labels} if {"num_labels", "num_classes"} & set(overrides) else {}
    model: ZooModel = model_class.from_pretrained(
        source,
        config=config,
        revision=revision,
        strict=strict,
        dtype=dtype or torch.float32,
        trust_remote_code=False,
        **extra,
    )
    return _place(model, None, device)


def _class_for(family: registry.Family, config: Any) -> Any:
    classes = {t.partition(":")[2]: t for t in family.model_classes.values()}
    for architecture in config.architectures or ():
        if architecture in classes:
            return registry.resolve(classes[architecture])
    return registry.resolve(next(iter(family.model_classes.values())))


def _place(model: Any, dtype, device) -> Any:
    model = model.to(dtype) if dtype is not None else model
    return (model.to(device) if device is not None else model).eval()
