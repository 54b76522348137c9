"""Reading weights safely: safetensors, sharded safetensors, and torch files with `weights_only=True`."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hybridzoo.errors import CheckpointError

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
INDEX_SUFFIX = ".safetensors.index.json"
WEIGHT_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
# Wrappers that training scripts put around a state dict, in the order in which they are looked for.
WRAPPER_KEYS = ("state_dict_ema", "ema", "state_dict", "model_state_dict", "model", "module", "net")

WRAPPER_PREFIXES = ("module.", "_orig_mod.", "module.")  # DataParallel, torch.compile, and the one around the other


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a `.safetensors` file, its `.index.json`, or a torch file.

    Wrappers such as `{"state_dict": …}`, and a prefix `module.` or `_orig_mod.` on every key, are removed.

    Args:
        path: the file.

    Returns:
        key -> tensor, on the CPU.

    Raises:
        CheckpointError: missing, truncated, holding pickled objects other than tensors, or without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}")
    if path.name.endswith(INDEX_SUFFIX):
        return _read_sharded(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a readable safetensors file ({error}); it is damaged or not fully downloaded: "
                "fetch it again"
            ) from error
    return unwrap_state_dict(_read_torch(path), name=str(path))


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it holds pickled Python objects beyond tensors, which could run code, or is no "
            "torch file. Only tensors are read (weights_only=True). Ask its author for a safetensors file, or save its "
            "state dict alone with torch.save(model.state_dict(), …) on a machine where you trust it."
        ) from error
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to: IndexError, KeyError, …
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{path} is damaged or not a torch file ({what}); fetch it again") from error


def _read_sharded(index: Path) -> dict[str, torch.Tensor]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not a shard index (a JSON object with 'weight_map')") from error
    state: dict[str, torch.Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:  # an index must not reach outside its own folder
            raise CheckpointError(f"{index} names the shard {shard!r} outside its folder")
        state.update(read_state_dict(index.parent / shard))
    missing = sorted(set(weight_map) - set(state))
    if missing:
        raise CheckpointError(f"{index}: {len(missing)} tensors are in no shard: {', '.join(missing[:5])}")
    return state


def unwrap_state_dict(loaded: Any, *, name: str = "the state dict") -> dict[str, torch.Tensor]:
    """Remove the usual wrappers and a common `module.` or `_orig_mod.` prefix from a loaded object.

    Raises:
        CheckpointError: no tensors are found.
    """
    while isinstance(loaded, Mapping):
        if loaded and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in loaded.items()):
            state = dict(loaded)
            for prefix in WRAPPER_PREFIXES:
                if all(k.startswith(prefix) for k in state):
                    state = {k[len(prefix) :]: v for k, v in state.items()}
            return state
        inner = next((loaded[k] for k in WRAPPER_KEYS if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    keys = ", ".join(map(str, list(loaded)[:8])) if isinstance(loaded, Mapping) else type(loaded).__name__
    raise CheckpointError(f"{name} holds no state dict (found: {keys or 'nothing'}); expected key -> tensor")


def common_dtype(state: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The floating-point dtype of most values of a state dict; float32 if there is none."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in state.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else torch.float32


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
