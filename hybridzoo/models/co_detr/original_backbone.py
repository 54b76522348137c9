"""Which backbone an original checkpoint has, and its sizes, from key names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hybridzoo.errors import CheckpointError


def backbone_config_from_shapes(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Kind of the backbone and its `backbone_config`.

    Raises:
        CheckpointError: none of ResNet (bottlenecks), Swin and Sense-X's ViT.
    """
    own = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    inputs = [v.shape[1] for k, v in state.items() if re.fullmatch(r"neck\.convs\.\d+\.conv\.weight", k)]
    if "layer1.0.conv3.weight" in own:
        return "resnet", _resnet(own, inputs)
    if "patch_embed.norm.weight" in own:
        return "swin", _swin(own, inputs)
    if "blocks.0.mlp.w1.weight" in own:
        return "vit", _vit(own)
    some = ", ".join(list(own)[:4]) or "no key"
    raise CheckpointError(
        f"the checkpoint's backbone is neither a ResNet with bottlenecks nor a Swin nor a ViT (its first keys: {some})"
    )


def _indices(state: Mapping[str, Tensor], pattern: str) -> list[int]:
    return sorted({int(found[1]) for key in state if (found := re.match(pattern, key))})


def _stages(widths: list[int], inputs: list[int]) -> list[int]:
    """Numbers of the stages that the neck reads, from 1."""
    return [1 + widths.index(c) for c in inputs] if inputs else list(range(1, len(widths) + 1))


def _resnet(state: Mapping[str, Tensor], inputs: list[int]) -> dict[str, Any]:
    stages = _indices(state, r"layer(\d)\.")
    channels = [state[f"layer{i}.0.conv3.weight"].shape[0] for i in stages]
    return {
        "stem_channels": state["conv1.weight"].shape[0],
        "channels": channels,
        "depths": [len(_indices(state, rf"layer{i}\.(\d+)\.")) for i in stages],
        "out_stages": _stages(channels, inputs),
    }


def _swin(state: Mapping[str, Tensor], inputs: list[int]) -> dict[str, Any]:
    mmdet = any(k.startswith("stages.") for k in state)
    at, table = ("stages", "attn.w_msa") if mmdet else ("layers", "attn")
    stages = _indices(state, rf"{at}\.(\d+)\.")
    tables = [state[f"{at}.{i}.blocks.0.{table}.relative_position_bias_table"] for i in stages]
    width = state["patch_embed.norm.weight"].shape[0]
    hidden = state[f"{at}.0.blocks.0." + ("ffn.layers.0.0.weight" if mmdet else "mlp.fc1.weight")].shape[0]
    return {
        "embed_dim": width,
        "depths": [len(_indices(state, rf"{at}\.{i}\.blocks\.(\d+)\.")) for i in stages],
        "num_heads": [t.shape[1] for t in tables],
        "window_size": (math.isqrt(tables[0].shape[0]) + 1) // 2,
        "mlp_ratio": hidden / width,
        "out_stages": _stages([width * 2**i for i in stages], inputs),
    }


def _vit(state: Mapping[str, Tensor]) -> dict[str, Any]:
    depth = len(_indices(state, r"blocks\.(\d+)\."))
    width, patch = state["patch_embed.proj.weight"].shape[0], state["patch_embed.proj.weight"].shape[-1]
    sizes = {
        "embed_dim": width,
        "depth": depth,
        "mlp_dim": state["blocks.0.mlp.w1.weight"].shape[0],
        "patch_size": patch,
        "pretrain_grid": math.isqrt(state["pos_embed"].shape[1] - 1),
    }
    tables = {i: state.get(f"blocks.{i}.attn.rope.freqs_cos") for i in range(depth)}
    some = next((t for t in tables.values() if t is not None), None)
    if some is None:  # converters drop the tables: EVA-02's head width, and the published model of this depth
        return sizes | {"num_heads": max(width // 64, 1)}
    places = {i: None if t is None else t.shape[0] for i, t in tables.items()}
    window = min(p for p in places.values() if p is not None)
    if (whole := state.get("rope_win.freqs_cos")) is not None:
        window = whole.shape[0]
    whole_grid = sorted({p for p in places.values() if p is not None and p != window})
    return sizes | {
        "num_heads": width // some.shape[1],
        "window_size": math.isqrt(window),
        "global_blocks": [i for i, p in places.items() if p != window],
        "rope_grid": math.isqrt(whole_grid[0]) if whole_grid else None,
    }
