"""Between the original MambaAD's checkpoints and the zoo's.

Two original layouts exist (https://github.com/lewandofskee/MambaAD, and the released weights, which its own code does
not load): the released one calls the 7x7 branch's pointwise convolutions `conv1b3` and `conv1a3` and holds a depthwise
3x3 convolution `conv33` that ADer's forward never runs. Both are read; `to_original` writes the first.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from hybridzoo.errors import CheckpointError, ConfigError, unknown
from hybridzoo.modeling import check_keys
from hybridzoo.models.mambaad.configuration import SCAN_TYPES, modules_of
from hybridzoo.ops.scan_paths import scan_order

PREFIXES = {"net_t.": "teacher.", "mff_oce.": "bottleneck.", "net_s.": "decoder."}
TABLES = re.compile(r"(^|.*\.)scans\.index_flat(_inv)?$")
RENAMED = {"conv1b3": "conv1b7", "conv1a3": "conv1a7"}
UNUSED = "conv33"
RESNET34 = {"teacher": "resnet34", "teacher_indices": (1, 2, 3)}
# The original decoder's arguments -> ours; None: without a counterpart here, because it changes nothing.
DECODER_ARGUMENTS = {
    "dims_decoder": "dims",
    "depths_decoder": "depths",
    "d_state": "d_state",
    "drop_path_rate": "drop_path_rate",
    "scan_type": "scan_type",
    "num_direction": "num_directions",
    "expand": "expand",
    "dt_rank": "dt_rank",
    "pretrained": None,
    "checkpoint_path": None,
    "strict": None,
}
MODEL_ARGUMENTS = ("encoder", "model_t", "model_s", "size", "image_size")
Part = TypeVar("Part", bound=nn.Module)


def config_from_original(config: Mapping[str, Any] | None, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Values of `MambaADConfig` for a checkpoint in one of the original's layouts.

    Args:
        config: the original's arguments: those of its decoder, and `encoder` (a timm name, also as
            "timm NAME features_only out_indices [1,2,3]") or ADer's `model_t` and `model_s`. None: read from the shapes
            and the scan tables, which needs a ResNet-34 as the teacher.
        state: the checkpoint.

    Raises:
        ConfigError: an unknown argument, or what the shapes do not tell.
        CheckpointError: not a MambaAD checkpoint.
    """
    given = dict(config or {})
    values: dict[str, Any] = {}
    size = given.pop("image_size", given.pop("size", None))
    if size is not None:
        values["image_size"] = size[0] if isinstance(size, (list, tuple)) else size
    encoder = _encoder(given)
    given = {**_kwargs(given.pop("model_s", None)), **given}
    decoder = {k.removeprefix("net_s."): v for k, v in state.items() if k.startswith("net_s.")}
    if not decoder or not any(k.startswith("mff_oce.") for k in state):
        some = ", ".join(list(state)[:4])
        alone = "; a decoder alone is read by MambaDecoder.from_original" if some.startswith("layers_up.") else ""
        raise CheckpointError(
            f"this is no checkpoint of the original MambaAD: no net_s.*, mff_oce.* (it has {some}){alone}"
        )
    values |= decoder_config_from_original(given, decoder)
    channels = [state[f"mff_oce.{name}.weight"].shape[1] for name in ("conv1", "conv2", "conv31")]
    values["teacher_channels"] = channels
    values["bottleneck_width"] = state["mff_oce.bn_layer.0.conv1.weight"].shape[0]
    values |= encoder or RESNET34
    if encoder is None and ("net_t.layer3.5.conv2.weight" not in state or "net_t.layer1.0.conv3.weight" in state):
        raise ConfigError("the teacher of these weights is no ResNet-34; name it: config={'encoder': 'TIMM_NAME', …}")
    return values


def _kwargs(section: Any) -> dict[str, Any]:
    """The `kwargs` of one of ADer's model sections."""
    return dict(section.get("kwargs", section)) if isinstance(section, Mapping) else {}


def _encoder(given: dict[str, Any]) -> dict[str, Any] | None:
    """Take the teacher out of the original's arguments."""
    section, text = given.pop("model_t", None), given.pop("encoder", None)
    if section is not None:
        text = section.get("name") if isinstance(section, Mapping) else section
        indices = _kwargs(section).get("out_indices", (1, 2, 3))
        return {"teacher": str(text).removeprefix("timm_"), "teacher_indices": tuple(indices)}
    if text is None:
        return None
    words = str(text).replace("timm", " ", 1).split() if str(text).startswith("timm") else str(text).split()
    indices = re.search(r"\[([\d,\s]+)\]", str(text))
    return {
        "teacher": words[0].lstrip("_"),
        "teacher_indices": tuple(int(i) for i in indices[1].split(",")) if indices else (1, 2, 3),
    }


def decoder_config_from_original(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keyword arguments of `MambaDecoder` for a state dict `layers_up.*`: the shapes', overridden by `config`.

    Raises:
        ConfigError: an unknown argument; a scan type that is not the tables'.
    """
    values = _decoder_shapes(state)
    read = values.get("scan_type")
    for key, value in config.items():
        if key not in DECODER_ARGUMENTS:
            raise ConfigError(unknown("argument of the original MambaAD", key, [*DECODER_ARGUMENTS, *MODEL_ARGUMENTS]))
        ours = DECODER_ARGUMENTS[key]
        if ours is not None:
            values[ours] = value
    if read is not None and values["scan_type"] != read:
        raise ConfigError(f"scan_type={values['scan_type']!r}, but the tables of these weights are {read!r}")
    return values


def _decoder_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a decoder's shapes and tables tell."""
    stages = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers_up."))
    dims, depths = [], []
    for s in range(stages):
        at = f"layers_up.{s}.blocks."
        names = (k.split(".") for k in state if k.startswith(at) and ".smm_blocks." in k)
        depths.append(len({(name[3], name[5]) for name in names}))  # (module, block)
        dims.append(state[f"{at}0.smm_blocks.0.ln_1.weight"].shape[0])
    scans = "layers_up.0.blocks.0.smm_blocks.0.self_attention."
    directions, rows, inner = state[f"{scans}x_proj_weight"].shape
    d_state = state[f"{scans}A_logs"].shape[1]
    values = {
        "dims": dims,
        "depths": depths,
        "d_state": d_state,
        "expand": inner // dims[0],
        "num_directions": directions,
    }
    rank = rows - 2 * d_state
    if rank != math.ceil(dims[0] / 16):
        values["dt_rank"] = rank
    # the largest table tells the curves apart; a 2 x 2 one would not
    tables = [v for k, v in state.items() if k.endswith("scans.index_flat")]
    curve = _curve_of(max(tables, key=Tensor.numel)) if tables else None
    return values | ({"scan_type": curve} if curve else {})


def _curve_of(table: Tensor) -> str | None:
    side = math.isqrt(table.numel())
    flat = table.flatten().cpu().long()
    if table.device.type == "meta" or side * side != table.numel():
        return None
    return next((c for c in SCAN_TYPES if torch.equal(scan_order(c, side, side), flat)), None)


def part_from_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without scan tables, in the names of the current code. A part (decoder, LSS module, SS2D) has no prefix."""
    state = {k: v for k, v in state.items() if not TABLES.match(k)}
    if not any(f"{old}." in k for k in state for old in RENAMED):
        return state
    _check_unused_kernels(state)
    renamed = {}
    for key, value in state.items():
        if f"{UNUSED}." in key:
            continue
        for old, new in RENAMED.items():
            key = key.replace(f"{old}.", f"{new}.")
        renamed[key] = value
    return renamed


def _check_unused_kernels(state: Mapping[str, Tensor]) -> None:
    """Warn if the 3x3 kernels that the mapping drops look trained: their spread at the start is sqrt(2 / 9)."""
    kernels = [v.flatten().float() for k, v in state.items() if f"{UNUSED}." in k and v.device.type != "meta"]
    if not kernels:
        return
    values = torch.cat(kernels)
    spread, start = float(values.std()), math.sqrt(2 / 9)
    tolerance = max(0.02, 4 / math.sqrt(2 * values.numel()))  # relative; four standard errors of a normal's spread
    if abs(spread / start - 1) > tolerance:
        warnings.warn(
            f"the {UNUSED} kernels of these weights have a spread of {spread:.3f}, and {start:.3f} if they were never "
            "trained. They are dropped, as in ADer's forward; if the training did use them, scores will differ from "
            "the published ones.",
            stacklevel=2,
        )


def load_part(part: Part, state: Mapping[str, Tensor], *, where: str = "the original weights") -> Part:
    """Load the original's state dict of a part (decoder, LSS module, SS2D, half pyramid) strictly, in eval mode."""
    state = part_from_original(state)
    own = part.state_dict()
    mismatched = [(k, v.shape, own[k].shape) for k, v in state.items() if k in own and v.shape != own[k].shape]
    check_keys(where, (k for k in own if k not in state), (k for k in state if k not in own), mismatched)
    part.load_state_dict(dict(state))
    return part.eval()


def from_original(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Either original layout -> the zoo's keys. Scan tables follow from the config and are left out."""
    converted = {}
    for key, value in part_from_original(state).items():
        prefix = next((p for p in PREFIXES if key.startswith(p)), None)
        converted[PREFIXES[prefix] + key.removeprefix(prefix) if prefix else key] = value
    return converted


def to_original(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The zoo's keys -> those of the original's code, with its scan tables for `config.image_size`.

    Raises:
        ConfigError: a network that the original cannot express.
    """
    if config.mixer != "scan" or config.num_directions == 1:
        raise ConfigError(
            f"mixer={config.mixer!r}, num_directions={config.num_directions}: the original has only scans, in 2, 4 or "
            "8 directions"
        )
    back = {new: old for old, new in PREFIXES.items()}
    original = {}
    for key, value in state.items():
        prefix = next(p for p in back if key.startswith(p))
        original[back[prefix] + key.removeprefix(prefix)] = value
    device = next(iter(state.values())).device
    side = math.ceil(config.image_size / 32)
    for s, depth in enumerate(config.depths):
        order = scan_order(config.scan_type, side << s, side << s)
        tables = {"index_flat": order, "index_flat_inv": order.argsort()}
        modules, blocks = modules_of(depth)
        for at in (f"net_s.layers_up.{s}.blocks.{j}.smm_blocks.{i}" for j in range(modules) for i in range(blocks)):
            for name, table in tables.items():
                original[f"{at}.self_attention.scans.{name}"] = cast(Tensor, table.view(1, 1, -1).to(device))
    return original
