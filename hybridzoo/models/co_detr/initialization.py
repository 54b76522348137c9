"""Sense-X's initialisation of everything above the backbone.

Inside the transformer every matrix is Xavier-uniform, the deformable attentions start with fixed sampling directions
and uniform weights, and biases keep torch's default. Every layer carries an `init_rule` that names its own:
transformers skips modules that hold no parameters themselves. (mmdetection 3 never calls its own initialisation: there
the level embeddings start as whatever the memory held.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from hybridzoo.models.co_detr.attention import DeformableAttention, SelfAttention, offset_bias

FOCAL_BIAS = -math.log((1 - 0.01) / 0.01)


def set_transformer_rules(part: Any) -> None:
    """Name the rules of the layers of a part of the transformer."""
    for module in part.modules():
        if isinstance(module, nn.Linear):
            module.init_rule = "xavier"  # type: ignore[assignment]
    for module in part.modules():  # after the linear layers: these replace some of their rules
        if isinstance(module, DeformableAttention):
            module.value_proj.init_rule = module.output_proj.init_rule = "xavier_zero"  # type: ignore[assignment]
            module.attention_weights.init_rule = "zero"  # type: ignore[assignment]
            module.sampling_offsets.init_rule = "offsets"  # type: ignore[assignment]
            module.sampling_offsets.grid = module.num_heads, module.num_levels, module.num_points  # type: ignore[assignment]
        elif isinstance(module, SelfAttention):
            module.init_rule = "self_attention"  # type: ignore[assignment]
            module.out_proj.init_rule = "xavier_zero"  # type: ignore[assignment]
    for name in ("level_embed", "head_embed"):
        if hasattr(part, name):
            part.init_rule = name


def init_weights(module: Any) -> None:
    """Initialise the parameters that a module itself holds."""
    rule = getattr(module, "init_rule", None)
    if rule is None:
        return
    if rule == "focal":
        _default_linear(module)
        nn.init.constant_(module.bias, FOCAL_BIAS)
    elif rule == "zero":
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    elif rule == "normal":
        nn.init.normal_(module.weight)
    elif rule == "level_embed":
        nn.init.normal_(module.level_embed)
    elif rule == "head_embed":  # Xavier of the original's (2, 1) table
        nn.init.uniform_(module.head_embed, -math.sqrt(2), math.sqrt(2))
    elif rule == "self_attention":
        nn.init.xavier_uniform_(module.in_proj_weight)
        nn.init.zeros_(module.in_proj_bias)
    elif rule == "offsets":
        nn.init.zeros_(module.weight)
        if not getattr(module.bias, "_is_hf_initialized", False):
            with torch.no_grad():
                module.bias.copy_(offset_bias(*module.grid))
    elif rule.startswith("xavier"):
        nn.init.xavier_uniform_(module.weight)
        if rule == "xavier_zero":
            nn.init.zeros_(module.bias)
    elif rule.startswith("normal_"):
        nn.init.normal_(module.weight, std=float(rule.split("_")[1]))
        if module.bias is not None:
            nn.init.constant_(module.bias, FOCAL_BIAS if rule.endswith("focal") else 0.0)


def _default_linear(module: Any) -> None:
    """What `nn.Linear` does itself, again: a head of another size is initialised after it was built empty."""
    bound = 1 / math.sqrt(module.in_features)
    nn.init.uniform_(module.weight, -bound, bound)
