"""Backbones between the zoo's names and those of torchvision (ResNet), Microsoft, mmdet (Swin) and Sense-X (ViT)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import ConfigError

OURS = "backbone.net."
_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
_RESNET = (
    (r"conv1\.(.*)", r"embedder.embedder.convolution.\1"),
    (r"bn1\.(.*)", r"embedder.embedder.normalization.\1"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.(.*)", r"encoder.stages.{0}.layers.\2.shortcut.convolution.\3"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(.*)", r"encoder.stages.{0}.layers.\2.shortcut.normalization.\3"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.(.*)", r"encoder.stages.{0}.layers.\2.layer.{1}.convolution.\4"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(.*)", r"encoder.stages.{0}.layers.\2.layer.{1}.normalization.\4"),
)
_SWIN = (
    (r"patch_embed\.proj\.(.*)", r"swin.embeddings.patch_embeddings.projection.\1"),
    (r"patch_embed\.norm\.(.*)", r"swin.embeddings.norm.\1"),
    (_BLOCK + r"norm1\.(.*)", r"swin.encoder.layers.\1.blocks.\2.layernorm_before.\3"),
    (_BLOCK + r"norm2\.(.*)", r"swin.encoder.layers.\1.blocks.\2.layernorm_after.\3"),
    (
        _BLOCK + r"attn\.(relative_position_bias_table)",
        r"swin.encoder.layers.\1.blocks.\2.attention.relative_position_bias.\3",
    ),
    (_BLOCK + r"attn\.proj\.(.*)", r"swin.encoder.layers.\1.blocks.\2.attention.o_proj.\3"),
    (_BLOCK + r"mlp\.(.*)", r"swin.encoder.layers.\1.blocks.\2.mlp.\3"),
    (r"layers\.(\d+)\.downsample\.(.*)", r"swin.encoder.layers.\1.downsample.\2"),
)
_MMDET_SWIN = (
    (r"patch_embed\.projection\.(.*)", r"patch_embed.proj.\1"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.(.*)", r"layers.\1.blocks.\2.attn.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.0\.0\.(.*)", r"layers.\1.blocks.\2.mlp.fc1.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.1\.(.*)", r"layers.\1.blocks.\2.mlp.fc2.\3"),
    (r"stages\.(.*)", r"layers.\1"),
)
_VIT = (
    (r"patch_embed\.proj\.(.*)", r"patch_embed.\1"),
    (r"blocks\.(\d+)\.attn\.([qv])_bias", r"blocks.\1.attn.\2_proj.bias"),
    (r"blocks\.(\d+)\.mlp\.ffn_ln\.(.*)", r"blocks.\1.mlp.norm.\2"),
    (r"out_norm\.(.*)", r"norm.\1"),
)
TABLES = re.compile(r".*(relative_position_index|relative_coords_table|attn_mask|rope(_win|_glb)?\.freqs_(cos|sin))")


def backbone_from_original(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Keys `backbone.*` of the original's -> `backbone.net.*`; tables that follow from the sizes are left out.

    Args:
        state: `backbone.*` key -> tensor.
        kind: "resnet", "swin" or "vit".

    Raises:
        ConfigError: a timm backbone, which no original checkpoint has.
    """
    if kind not in _CONVERTERS:
        raise ConfigError(f"backbone={kind!r}: the original has ResNet, Swin and ViT backbones only")
    plain = {k.removeprefix("backbone."): v for k, v in state.items() if not TABLES.fullmatch(k)}
    return {OURS + k: v for k, v in _CONVERTERS[kind](plain).items()}


def backbone_to_original(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Keys `backbone.net.*` -> Sense-X's `backbone.*` with its tables.

    Raises:
        ConfigError: a timm backbone.
    """
    if config.backbone == "timm":
        name = config.backbone_config["name"]
        raise ConfigError(f"backbone {name!r} of timm: the original has ResNet, Swin and ViT backbones only")
    plain = {k.removeprefix(OURS): v for k, v in state.items()}
    back = {"resnet": _resnet_back, "swin": _swin_back, "vit": _vit_back}[config.backbone]
    return {f"backbone.{k}": v for k, v in back(plain, config.backbone_config).items()}


def _replace(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, target in rules:
        if found := re.fullmatch(pattern, key):
            return found.expand(target)
    return key


def _resnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    converted = {}
    for key, value in state.items():
        for pattern, target in _RESNET:
            if found := re.fullmatch(pattern, key):
                # the original counts stages and convolutions from 1
                numbers = [int(g) - 1 for g in found.groups() if g.isdigit()]
                first, last = numbers[:1], numbers[2:]
                key = found.expand(target.format(*first, *last))
                break
        converted[key] = value
    for key in [k for k in converted if k.endswith(".running_mean")]:  # converters drop the counts, which mean nothing
        count = key.replace("running_mean", "num_batches_tracked")
        converted.setdefault(count, torch.zeros((), dtype=torch.long, device=converted[key].device))
    return converted


def _resnet_back(state: dict[str, Tensor], values: Any) -> dict[str, Tensor]:
    original = {}
    for key, value in state.items():
        part = "conv" if ".convolution." in key else "bn"
        tail = key.rsplit(".", 1)[-1]
        if found := re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(shortcut|layer\.(\d+))\.", key):
            at = f"layer{int(found[1]) + 1}.{found[2]}"
            if found[3] == "shortcut":
                key = f"{at}.downsample.{0 if part == 'conv' else 1}.{tail}"
            else:
                key = f"{at}.{part}{int(found[4]) + 1}.{tail}"
        else:
            key = f"{part}1.{tail}"
        original[key] = value
    return original


def _swin(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if any(k.startswith("stages.") for k in state):
        state = _swin_from_mmdet(state)
    converted = {}
    for key, value in state.items():
        if found := re.fullmatch(_BLOCK + r"attn\.qkv\.(\w+)", key):
            at = f"swin.encoder.layers.{found[1]}.blocks.{found[2]}.attention."
            for name, part in zip("qkv", value.chunk(3), strict=True):
                converted[f"{at}{name}_proj.{found[3]}"] = part.clone()
        elif found := re.fullmatch(r"norm(\d)\.(\w+)", key):
            converted[f"hidden_states_norms.stage{int(found[1]) + 1}.{found[2]}"] = value
        else:
            converted[_replace(key, _SWIN)] = value
    return converted


def _swin_from_mmdet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmdetection 3's Swin in Microsoft's names. Its merging reads 2x2 patches channel by channel: columns move."""
    converted = {}
    for key, value in state.items():
        if ".downsample." in key:
            value = value.unflatten(-1, (-1, 2, 2)).transpose(-1, -2).movedim(-3, -1).flatten(-3)
        converted[_replace(key, _MMDET_SWIN)] = value
    return converted


def _swin_back(state: dict[str, Tensor], values: Any) -> dict[str, Tensor]:
    original: dict[str, Tensor] = {}
    back = [(re.compile(r"swin\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.(.*)"), "layers.{}.blocks.{}.")]
    names = {"layernorm_before": "norm1", "layernorm_after": "norm2", "attention.o_proj": "attn.proj"}
    for key, value in state.items():
        if found := back[0][0].fullmatch(key):
            at, rest = back[0][1].format(found[1], found[2]), found[3]
            if rest.startswith("attention.q_proj."):
                tail = rest.rsplit(".", 1)[-1]
                parts = [state[key.replace("q_proj", f"{name}_proj")] for name in "qkv"]
                original[f"{at}attn.qkv.{tail}"] = torch.cat(parts)
            elif rest.startswith(("attention.k_proj.", "attention.v_proj.")):
                continue
            elif rest.endswith("relative_position_bias_table"):
                original[f"{at}attn.relative_position_bias_table"] = value
                index = relative_position_index(values["window_size"]).to(value.device)
                original[f"{at}attn.relative_position_index"] = index
            else:
                name, tail = rest.rsplit(".", 1)
                original[f"{at}{names.get(name, name)}.{tail}"] = value
        elif found := re.fullmatch(r"hidden_states_norms\.stage(\d)\.(\w+)", key):
            original[f"norm{int(found[1]) - 1}.{found[2]}"] = value
        else:
            key = key.replace("swin.embeddings.patch_embeddings.projection.", "patch_embed.proj.")
            key = key.replace("swin.embeddings.norm.", "patch_embed.norm.")
            original[key.replace("swin.encoder.", "")] = value
    return original


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of places of a window, (w * w, w * w) int64."""
    place = torch.arange(window)
    y, x = (p.flatten() for p in torch.meshgrid(place, place, indexing="ij"))
    dy, dx = (p[:, None] - p[None] + window - 1 for p in (y, x))
    return dy * (2 * window - 1) + dx


def _vit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {_replace(k, _VIT): v for k, v in state.items()}


def _vit_back(state: dict[str, Tensor], values: Any) -> dict[str, Tensor]:
    from hybridzoo.models.co_detr.vit import rotary_angles

    original = {}
    for key, value in state.items():
        key = re.sub(r"^patch_embed\.", "patch_embed.proj.", key)
        key = re.sub(r"\.attn\.([qv])_proj\.bias$", r".attn.\1_bias", key)
        key = re.sub(r"\.mlp\.norm\.", ".mlp.ffn_ln.", key)
        original[re.sub(r"^norm\.", "out_norm.", key)] = value
    window, grid, points = values["window_size"], values["rope_grid"], values["rope_points"]
    width = values["embed_dim"] // values["num_heads"]
    device = state["pos_embed"].device

    def table(at: str, side: int) -> None:
        angles = rotary_angles(side, side, width, points, torch.device("cpu"))
        original[f"{at}.freqs_cos"] = angles.cos().to(device)
        original[f"{at}.freqs_sin"] = angles.sin().to(device)

    table("rope_win", window)
    if grid is not None:
        table("rope_glb", grid)
    for i in range(values["depth"]):
        if i not in values["global_blocks"]:
            table(f"blocks.{i}.attn.rope", window)
        elif grid is not None:
            table(f"blocks.{i}.attn.rope", grid)
    return original


_CONVERTERS = {"resnet": _resnet, "swin": _swin, "vit": _vit}
