"""Original checkpoint -> save_pretrained folder, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridzoo.errors import CheckpointError, ConfigError
from hybridzoo.export._atomic import move_files, move_folder, staging_folder


@dataclass(frozen=True)
class Converted:
    """What `convert_checkpoint` wrote."""

    path: Path
    tensors: int
    parameters: int


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    *,
    model: str | None = None,
    config: str | Path | None = None,
    to_original: bool = False,
    overwrite: bool = False,
) -> Converted:
    """Convert a checkpoint between the original implementation's layout and a zoo folder.

    Args:
        source: a weights file in the original's layout; with `to_original` a folder, name.tag or hub id of a zoo model.
        target: folder to write; with `to_original` a `.safetensors`, `.pth`, `.pt` or `.bin` file.
        model: registered model or family that an original checkpoint belongs to; with `to_original` optional, and then
            only checked.
        config: JSON file with the original's own configuration, where it differs from the registered model's.
        to_original: write the original's layout.
        overwrite: replace an existing target.

    Raises:
        CheckpointError: the target exists, the source cannot be read, or a key finds no place.
        ConfigError: the JSON file is not an object.
    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target} exists; give another place or overwrite=True (--overwrite)")
    if to_original:
        return _to_original(str(source), target, model)
    if model is None:
        raise CheckpointError(f"say which model {source} belongs to: --model NAME (`hybridzoo list` shows the names)")
    return _from_original(Path(source), target, model, _read_config(config))


def _read_config(path: str | Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config {path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path} holds a {type(values).__name__}; expected an object of option: value")
    return values


def _from_original(source: Path, target: Path, name: str, config: dict[str, Any] | None) -> Converted:
    from hybridzoo import load_original

    built = load_original(name, source, config)
    with staging_folder(target) as folder:
        whole = folder / target.name
        built.save_pretrained(whole, card={"name": target.name, "text": f"Converted from `{source.name}` ({name})."})
        move_folder(whole, target)
    return _report(target, built.state_dict())


def _to_original(source: str, target: Path, name: str | None) -> Converted:
    import torch
    from safetensors.torch import save_file

    from hybridzoo import build_model, registry

    built = build_model(source, pretrained=True) if registry.is_model(source) else build_model(source)
    if name is not None:
        family = name if name in registry.families() else registry.get_model(name)[0].family
        if built.family != family:
            raise CheckpointError(
                f"{source} holds a {built.family!r} model, not {name!r}; leave --model out or correct it"
            )
    state = {key: value.detach().cpu().contiguous() for key, value in built.to_original().items()}
    with staging_folder(target) as folder:
        part = folder / target.name
        if target.suffix == ".safetensors":
            # clone: safetensors refuses tensors that share memory, and the original may store tied ones twice
            save_file({key: value.clone() for key, value in state.items()}, part)
        elif target.suffix in (".pth", ".pt", ".bin"):
            torch.save(state, part)
        else:
            raise CheckpointError(f"cannot tell the format of {target}: end it in .safetensors, .pth, .pt or .bin")
        move_files(folder, target.parent, last=target.name)
    return _report(target, state)


def _report(path: Path, state: dict[str, Any]) -> Converted:
    return Converted(path=path, tensors=len(state), parameters=sum(v.numel() for v in state.values()))
