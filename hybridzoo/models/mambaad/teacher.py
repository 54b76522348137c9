"""The teacher: a timm network that gives three feature maps, frozen, always in eval mode.

The paper's is ResNet-34 with the weights `resnet34.bt_in1k` (resnet34-43635321.pth); timm's plain `resnet34` now means
other weights, so the tag must be named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybridzoo.checkpoint_io import WEIGHT_SUFFIXES, read_state_dict
from hybridzoo.errors import CheckpointError, ConfigError, unknown
from hybridzoo.modeling import check_keys


def build_teacher(name: str, indices: Sequence[int], channels: Sequence[int], in_chans: int = 3) -> nn.Module:
    """The feature network of a timm model with random weights; stages behind the last map are cut off.

    Args:
        name: of timm; a tag is allowed and ignored.
        indices: of the three maps.
        channels: that they must have.
        in_chans: image channels.

    Raises:
        ConfigError: no such timm model, or its maps do not fit.
    """
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise ConfigError(unknown("teacher (a timm model)", name, timm.list_models()))
    try:
        net: Any = timm.create_model(
            name.partition(".")[0],
            pretrained=False,
            features_only=True,
            out_indices=tuple(indices),
            in_chans=in_chans,
        )
    except (RuntimeError, AssertionError, NotImplementedError, IndexError) as error:
        raise ConfigError(f"teacher={name!r} gives no feature maps {list(indices)}: {error}") from error
    info = net.feature_info
    given, strides = info.channels(), info.reduction()
    if list(given) != list(channels):
        raise ConfigError(
            f"teacher={name!r} has maps of {list(given)} channels at teacher_indices={list(indices)}, "
            f"teacher_channels={list(channels)}: set teacher_channels={list(given)} and end dims with {given[::-1]}"
        )
    if strides[1] != 2 * strides[0] or strides[2] != 4 * strides[0]:
        raise ConfigError(
            f"teacher={name!r} has maps of strides {list(strides)} at teacher_indices={list(indices)}; each must have "
            "half the resolution of the one before"
        )
    _cut(net, info.module_name()[-1])
    net.requires_grad_(False)
    for module in net.modules():
        module.is_teacher = True
    return net.eval()


def teacher_strides(teacher: Any) -> list[int]:
    """Pixels per position of the three maps."""
    return list(teacher.feature_info.reduction())


def _cut(net: Any, last: str) -> None:
    """Drop the blocks of an EfficientNet-like network that only later features need."""
    parent, _, index = last.partition(".")
    if parent == "blocks" and index.isdigit() and isinstance(getattr(net, "blocks", None), nn.Sequential):
        net.blocks = net.blocks[: int(index) + 1]


def load_teacher(teacher: nn.Module, name: str, source: str | Path) -> None:
    """Copy ImageNet weights into a teacher.

    Args:
        teacher: from `build_teacher`.
        name: its timm name.
        source: a weights file of the whole timm model (or of the `efficientnet_pytorch` package's EfficientNet, whose
            tensors stand in timm's order), or what `timm.create_model(..., pretrained=True)` takes: a tagged name such
            as `resnet34.bt_in1k`, or `hf-hub:timm/resnet34.bt_in1k`.

    Raises:
        CheckpointError: the weights cannot be read or are of another network.
    """
    import timm

    text = str(source)
    path = Path(text).expanduser()
    if path.suffix in WEIGHT_SUFFIXES or path.is_file():
        state = _timm_names(read_state_dict(path), name, text)
    else:
        hub = text if text.startswith("hf-hub:") or timm.is_model(text.partition(".")[0]) else f"hf-hub:{text}"
        try:
            state = timm.create_model(hub, pretrained=True).state_dict()
        except Exception as error:  # whatever the hub, the network or an unknown tag raise
            raise CheckpointError(
                f"the teacher's weights {text!r} cannot be loaded ({type(error).__name__}: {error}); give a weights "
                "file, or a timm name with its tag such as 'resnet34.bt_in1k' on a machine that reaches the hub"
            ) from error
    copy_teacher(teacher, state, where=text)


def copy_teacher(teacher: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Copy a whole timm model's state dict into its feature network; what only the classifier needs is left out."""
    plain = {key.replace(".", "_"): value for key, value in state.items()}  # timm flattens names like stages.0
    own = teacher.state_dict()
    found = {key: plain[key.replace(".", "_")] for key in own if key.replace(".", "_") in plain}
    mismatched = [(k, v.shape, own[k].shape) for k, v in found.items() if v.shape != own[k].shape]
    missing = [k for k in own if k not in found and not k.endswith("num_batches_tracked")]
    check_keys(where, missing, (), mismatched)
    teacher.load_state_dict(found, strict=False)


def _timm_names(state: dict[str, Tensor], name: str, where: str) -> dict[str, Tensor]:
    """timm's key names for a state dict of the `efficientnet_pytorch` package; others pass through."""
    if "_conv_stem.weight" not in state:
        return state
    import timm

    with torch.device("meta"):
        whole = timm.create_model(name.partition(".")[0], pretrained=False).state_dict()
    shapes = [tuple(v.shape) for v in whole.values()]
    if [tuple(v.shape) for v in state.values()] != shapes:
        raise CheckpointError(f"{where} has the names of efficientnet_pytorch, but is not a {name}")
    return dict(zip(whole, state.values(), strict=True))
