"""Sense-X's initialisation of everything above the backbone.

Inside the transformer every matrix is Xavier-uniform, the deformable attentions start with fixed sampling directions
and uniform weights, and biases keep torch's default. Other layers carry an `init_rule` that names theirs. (mmdetection
3 never calls its own initialisation: there the level embeddings start as whatever the memory held.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from hybridzoo.models.co_detr.attention import DeformableAttention, SelfAttention, offset_bias
from hybridzoo.models.co_detr.collaborative import AuxiliaryQueries
from hybridzoo.models.co_detr.transformer import Decoder, Encoder, TwoStage

FOCAL_BIAS = -math.log((1 - 0.01) / 0.01)


def init_weights(module: nn.Module, config: Any) -> None:
    """Initialise one module; called for children before their parents."""
    rule = getattr(module, "init_rule", None)
    if rule is not None:
        _by_rule(module, rule)
    elif isinstance(module, (Encoder, Decoder, TwoStage, AuxiliaryQueries)):
        _transformer(module)


def _by_rule(module: Any, rule: str) -> None:
    if rule == "focal":
        _default_linear(module)
        nn.init.constant_(module.bias, FOCAL_BIAS)
    elif rule == "zero":
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    elif rule == "normal":
        nn.init.normal_(module.weight)
    elif rule.startswith("xavier"):
        nn.init.xavier_uniform_(module.weight)
    elif rule.startswith("normal_"):
        nn.init.normal_(module.weight, std=float(rule.split("_")[1]))
        if module.bias is not None:
            nn.init.constant_(module.bias, FOCAL_BIAS if rule.endswith("focal") else 0.0)
    if rule == "xavier_zero":
        nn.init.zeros_(module.bias)


def _default_linear(module: Any) -> None:
    """What `nn.Linear` does itself, again: a head of another size is initialised after it was built empty."""
    bound = 1 / math.sqrt(module.in_features)
    nn.init.uniform_(module.weight, -bound, bound)


def _transformer(part: nn.Module) -> None:
    for parameter in part.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    if isinstance(part, Encoder):
        nn.init.normal_(part.level_embed)
    for module in part.modules():
        if isinstance(module, DeformableAttention):
            nn.init.zeros_(module.sampling_offsets.weight)
            nn.init.zeros_(module.attention_weights.weight)
            for layer in (module.attention_weights, module.value_proj, module.output_proj):
                nn.init.zeros_(layer.bias)
            if not getattr(module.sampling_offsets.bias, "_is_hf_initialized", False):
                with torch.no_grad():
                    sizes = module.num_heads, module.num_levels, module.num_points
                    module.sampling_offsets.bias.copy_(offset_bias(*sizes))
        elif isinstance(module, SelfAttention):
            nn.init.zeros_(module.in_proj_bias)
            nn.init.zeros_(module.out_proj.bias)
