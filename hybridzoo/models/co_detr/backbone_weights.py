"""ImageNet weights for a backbone: torchvision's ResNet, Microsoft's Swin, EVA-02's ViT, or any of timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.checkpoint_io import WEIGHT_SUFFIXES, read_state_dict
from hybridzoo.errors import CheckpointError
from hybridzoo.modeling import check_keys
from hybridzoo.models.co_detr.backbones import Backbone
from hybridzoo.models.co_detr.convert_backbone import OURS, backbone_from_original

# Layers of classifiers and pretraining, which a detector's backbone does not have.
UNUSED = re.compile(r"(fc|head|norm|fc_norm|mask_token|cls_token|lm_head|rope)(\..*|$)")
_EVA = (
    (".mlp.fc1_g.", ".mlp.w1."),
    (".mlp.fc1_x.", ".mlp.w2."),
    (".mlp.fc2.", ".mlp.w3."),
    (".mlp.norm.", ".mlp.ffn_ln."),
)


def read_backbone(backbone: Backbone, source: str | Path) -> dict[str, Tensor]:
    """The state dict that `load_backbone` takes.

    Args:
        backbone: whose weights are wanted.
        source: a weights file; for ResNet and timm backbones also what `timm.create_model(..., pretrained=True)`
            takes, such as `resnet50.tv_in1k` or `hf-hub:timm/tf_efficientnet_lite0.in1k`.

    Raises:
        CheckpointError: it cannot be read.
    """
    text = str(source)
    path = Path(text).expanduser()
    if path.suffix in WEIGHT_SUFFIXES or path.is_file():
        return read_state_dict(path)
    if backbone.kind not in ("resnet", "timm"):
        raise CheckpointError(f"no file {text!r}: the weights of a {backbone.kind} backbone are read from a file")
    import timm

    hub = text if text.startswith("hf-hub:") or timm.is_model(text.partition(".")[0]) else f"hf-hub:{text}"
    try:
        return timm.create_model(hub, pretrained=True).state_dict()
    except Exception as error:  # whatever the hub, the network or an unknown tag raise
        raise CheckpointError(
            f"the backbone's weights {text!r} cannot be loaded ({type(error).__name__}: {error}); give a weights file, "
            "or a timm name with its tag such as 'resnet50.tv_in1k' on a machine that reaches the hub"
        ) from error


def load_backbone(backbone: Backbone, state: Mapping[str, Tensor], *, where: str = "the backbone's weights") -> None:
    """Copy ImageNet weights into a backbone.

    What only a classifier needs, and stages that the backbone leaves out, are passed over. Norms that a detector adds
    (Swin's of the maps, the ViT's last) keep their initial values.

    Args:
        backbone: it is changed in place.
        state: key -> tensor in the layout of torchvision (ResNet), Microsoft (Swin), EVA-02 or timm (ViT), timm or the
            `efficientnet_pytorch` package (timm).
        where: the source's name for errors.

    Raises:
        CheckpointError: a missing, unknown or mis-shaped key.
    """
    own = backbone.net.state_dict()
    if backbone.kind == "timm":
        found = _of_timm(backbone, state, own, where)
    else:
        plain = {k.removeprefix("backbone."): v for k, v in state.items()}
        plain = {k: v for k, v in plain.items() if not UNUSED.fullmatch(k)}
        if backbone.kind == "vit":
            plain = _of_eva(plain, backbone)
        converted = backbone_from_original({f"backbone.{k}": v for k, v in plain.items()}, backbone.kind)
        found = {k.removeprefix(OURS): v for k, v in converted.items()}
        added = ("hidden_states_norms.", "norm.")
        found |= {k: v for k, v in own.items() if k.startswith(added) and k not in found}
    mismatched = [(k, v.shape, own[k].shape) for k, v in found.items() if k in own and v.shape != own[k].shape]
    check_keys(where, (k for k in own if k not in found), (k for k in found if k not in own), mismatched)
    backbone.net.load_state_dict({k: v.to(own[k]) for k, v in found.items()})


def _of_timm(
    backbone: Backbone, state: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    if "_conv_stem.weight" in state:  # efficientnet_pytorch: other names, the same tensors in the same order
        import timm

        with torch.device("meta"):
            whole = timm.create_model(backbone.name, pretrained=False).state_dict()
        if [tuple(v.shape) for v in state.values()] != [tuple(v.shape) for v in whole.values()]:
            raise CheckpointError(f"{where} has the names of efficientnet_pytorch, but is not a {backbone.name}")
        state = dict(zip(whole, state.values(), strict=True))
    flat = {k.replace(".", "_"): v for k, v in state.items()}  # features_only writes stages.0 as stages_0
    found = {k: flat[k.replace(".", "_")] for k in own if k.replace(".", "_") in flat}
    return {k: v for k, v in own.items() if k.endswith("num_batches_tracked")} | found


def _of_eva(state: Mapping[str, Tensor], backbone: Any) -> dict[str, Tensor]:
    """EVA-02 for patches of another size and another grid: bicubic, in fp32."""
    converted = {}
    for key, value in state.items():
        for theirs, ours in _EVA:
            key = key.replace(theirs, ours)
        key = re.sub(r"\.attn\.([qv])_proj\.bias$", r".attn.\1_bias", key)
        converted[key] = value
    kernel, table = converted.get("patch_embed.proj.weight"), converted.get("pos_embed")
    patch, wanted = backbone.net.patch_size, backbone.net.pos_embed
    if kernel is not None and kernel.shape[-1] != patch:
        size = (patch, patch)
        converted["patch_embed.proj.weight"] = F.interpolate(kernel.float(), size=size, mode="bicubic").to(kernel.dtype)
    if table is not None and table.shape[1] != wanted.shape[1]:
        old, new = (round((t.shape[1] - 1) ** 0.5) for t in (table, wanted))
        grid = table[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(new, new), mode="bicubic").flatten(2).transpose(1, 2)
        converted["pos_embed"] = torch.cat((table[:, :1].float(), grid), 1).to(table.dtype)
    return converted
