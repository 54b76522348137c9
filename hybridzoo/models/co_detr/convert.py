"""Between the original Co-DETR's checkpoints (Sense-X, and the port in mmdetection 3) and the zoo's.

Read are both spellings of the label embedding, both Swins, EMA copies beside the weights, instance variants (their mask
heads are passed over: the zoo detects boxes) and checkpoints without auxiliary heads. `to_original` writes Sense-X's
names, with the tables that its modules store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import CheckpointError
from hybridzoo.models.co_detr.convert_backbone import backbone_from_original, backbone_to_original
from hybridzoo.models.co_detr.original_config import config_from_original

__all__ = ["backbone_from_original", "config_from_original", "from_original", "to_original"]

_T = "query_head.transformer."
# (original, ours); `#` stands for a number. The first that fits counts.
NAMES = (
    ("neck.convs.#.conv.", "neck.projections.#.conv."),
    ("neck.convs.#.gn.", "neck.projections.#.norm."),
    ("neck.extra_convs.#.conv.", "neck.extra.#.conv."),
    ("neck.extra_convs.#.gn.", "neck.extra.#.norm."),
    ("neck.p#.", "neck.p#."),
    (f"{_T}level_embeds", "encoder.level_embed"),
    (f"{_T}encoder.layers.#.attentions.0.", "encoder.layers.#.attention."),
    (f"{_T}encoder.layers.#.ffns.0.layers.0.0.", "encoder.layers.#.ffn.fc1."),
    (f"{_T}encoder.layers.#.ffns.0.layers.1.", "encoder.layers.#.ffn.fc2."),
    (f"{_T}encoder.layers.#.norms.0.", "encoder.layers.#.norm1."),
    (f"{_T}encoder.layers.#.norms.1.", "encoder.layers.#.norm2."),
    (f"{_T}decoder.layers.#.attentions.0.attn.", "decoder.layers.#.self_attention."),
    (f"{_T}decoder.layers.#.attentions.1.", "decoder.layers.#.cross_attention."),
    (f"{_T}decoder.layers.#.ffns.0.layers.0.0.", "decoder.layers.#.ffn.fc1."),
    (f"{_T}decoder.layers.#.ffns.0.layers.1.", "decoder.layers.#.ffn.fc2."),
    (f"{_T}decoder.layers.#.norms.0.", "decoder.layers.#.norm1."),
    (f"{_T}decoder.layers.#.norms.1.", "decoder.layers.#.norm2."),
    (f"{_T}decoder.layers.#.norms.2.", "decoder.layers.#.norm3."),
    (f"{_T}decoder.ref_point_head.", "decoder.query_position."),
    (f"{_T}decoder.norm.", "decoder.norm."),
    (f"{_T}enc_output.", "two_stage.project."),
    (f"{_T}enc_output_norm.", "two_stage.norm."),
    (f"{_T}pos_trans.", "two_stage.position."),
    (f"{_T}pos_trans_norm.", "two_stage.position_norm."),
    (f"{_T}aux_pos_trans.#.", "collaborative.queries.position.#."),
    (f"{_T}aux_pos_trans_norm.#.", "collaborative.queries.position_norm.#."),
    (f"{_T}pos_feats_trans.#.", "collaborative.queries.feature.#."),
    (f"{_T}pos_feats_norm.#.", "collaborative.queries.feature_norm.#."),
    ("query_head.downsample.", "collaborative.downsample."),
    ("query_head.cls_branches.#.", "heads.classify.#."),
    ("query_head.reg_branches.#.", "heads.regress.#."),
    ("query_head.label_embedding.", "denoising.label_embedding."),
    ("rpn_head.", "collaborative.rpn."),
    ("roi_head.0.bbox_head.shared_convs.#.conv.", "collaborative.roi.convs.#.conv."),
    ("roi_head.0.bbox_head.shared_convs.#.gn.", "collaborative.roi.convs.#.norm."),
    ("roi_head.0.bbox_head.shared_fcs.", "collaborative.roi.fcs."),
    ("roi_head.0.bbox_head.fc_", "collaborative.roi.fc_"),
    ("bbox_head.0.cls_convs.#.conv.", "collaborative.atss.cls_convs.#.conv."),
    ("bbox_head.0.cls_convs.#.gn.", "collaborative.atss.cls_convs.#.norm."),
    ("bbox_head.0.reg_convs.#.conv.", "collaborative.atss.reg_convs.#.conv."),
    ("bbox_head.0.reg_convs.#.gn.", "collaborative.atss.reg_convs.#.norm."),
    ("bbox_head.0.atss_", "collaborative.atss.atss_"),
)
QUERIES = {"dino": f"{_T}query_embed.weight", "deformable_detr": "query_head.query_embedding.weight"}
HEAD_EMBED, SCALE = f"{_T}head_pos_embed.weight", "bbox_head.0.scales.{}.scale"
PER_HEAD = re.compile(r"(collaborative\.queries\.\w+\.)(\d+)(\..*)")
# Heads of the instance segmentation variants, and counts of the federated loss.
_MASKS = r"mask_head|mask_iou_head"
UNUSED = re.compile(rf"({_MASKS}|roi_head\.0\.({_MASKS}|semantic_head))\.|.*fed_loss_weight")
AUXILIARY = ("rpn_head.", "roi_head.", "bbox_head.", "query_head.downsample.", f"{_T}aux_pos_trans", f"{_T}pos_feats_")


def from_original(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Any of the original layouts -> the zoo's keys; keys that have no counterpart pass through unchanged."""
    state = plain_state(state)
    heads = _head_numbers(config)
    converted, backbone, scales = {}, {}, {}
    for key, value in state.items():
        if key.startswith("backbone."):
            backbone[key] = value
        elif key == QUERIES[config.variant]:
            converted["query_embedding.weight"] = value
        elif _is_left_out(key, config):
            continue
        elif key == HEAD_EMBED:
            converted["collaborative.queries.head_embed"] = value.reshape(-1)[heads]
        elif found := re.fullmatch(r"bbox_head\.0\.scales\.(\d+)\.scale", key):
            scales[int(found[1])] = value
        else:
            name = _rename(key, _FORWARD)
            if per_head := PER_HEAD.fullmatch(name):
                number = int(per_head[2])
                if number not in heads:
                    continue
                name = f"{per_head[1]}{heads.index(number)}{per_head[3]}"
            converted[name] = value
    if scales:
        converted["collaborative.atss.scales"] = torch.stack([scales[i] for i in sorted(scales)])
    return converted | backbone_from_original(backbone, config.backbone)


def to_original(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The zoo's keys -> Sense-X's, with the index and angle tables that its backbones store.

    Raises:
        ConfigError: a backbone that the original does not have.
    """
    heads, original = _head_numbers(config), {}
    backbone = {k: v for k, v in state.items() if k.startswith("backbone.")}
    original |= backbone_to_original(backbone, config)
    for key, value in state.items():
        if key.startswith("backbone."):
            continue
        if key == "query_embedding.weight":
            original[QUERIES[config.variant]] = value
        elif key == "collaborative.queries.head_embed":
            both = value.new_zeros(2, 1)
            original[HEAD_EMBED] = both.index_copy(0, torch.tensor(heads, device=value.device), value[:, None])
        elif key == "collaborative.atss.scales":
            original |= {SCALE.format(i): one.clone() for i, one in enumerate(value)}
        else:
            if per_head := PER_HEAD.fullmatch(key):
                key = f"{per_head[1]}{heads[int(per_head[2])]}{per_head[3]}"
            original[_rename(key, _BACKWARD)] = value
    return original


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One spelling for all layouts: without EMA copies, mask heads and the second name of the label embedding.

    The hooks that keep `ema_*` copies exchange them with the weights before a checkpoint is written, so that the
    weights are the averaged ones. Only where those look untrained (box heads that still are the zeros of their first
    step) are the copies taken.
    """
    copies = {k: v for k, v in state.items() if k.startswith("ema_")}
    plain = {k: v for k, v in state.items() if k not in copies and not UNUSED.match(k)}
    averaged = {k: copies["ema_" + k.replace(".", "_")] for k in plain if "ema_" + k.replace(".", "_") in copies}
    if averaged and _looks_untrained(plain) and not _looks_untrained(averaged):
        plain |= averaged
    elif copies and not plain:
        raise CheckpointError("the checkpoint holds only EMA copies (ema_*), whose names do not tell the parameters'")
    old, new = "query_head.dn_generator.label_embedding.", "query_head.label_embedding."
    return {k.replace(old, new): v for k, v in plain.items()}


def _looks_untrained(state: Mapping[str, Tensor]) -> bool:
    last = [v for k, v in state.items() if re.fullmatch(r"query_head\.reg_branches\.\d+\.4\.(weight|bias)", k)]
    return bool(last) and all(v.device.type != "meta" and not v.any() for v in last)


def _head_numbers(config: Any) -> list[int]:
    """The original's numbers of the auxiliary heads that the model has: 0 for RoI, 1 for ATSS."""
    return [i for i, on in enumerate((config.use_roi_head, config.use_atss_head)) if on]


def _is_left_out(key: str, config: Any) -> bool:
    """Whether a key belongs to a part for training that the configuration has switched off."""
    if key.startswith(("rpn_head.", "roi_head.")):
        return not config.use_roi_head
    if key.startswith("bbox_head."):
        return not config.use_atss_head
    if key.startswith("query_head.downsample."):
        return not (config.use_roi_head or config.use_atss_head)
    if key.startswith((f"{_T}aux_pos_trans", f"{_T}pos_feats_", HEAD_EMBED)):
        return not config.use_aux_queries
    return key.startswith("query_head.label_embedding.") and not config.use_denoising


def _compile(pairs: Any) -> list[tuple[re.Pattern[str], str]]:
    rules = []
    for old, new in pairs:
        pattern = re.escape(old).replace(r"\#", r"(\d+)")
        target = "".join(rf"\g<{new[:i].count('#') + 1}>" if c == "#" else c for i, c in enumerate(new))
        rules.append((re.compile(pattern), target))
    return rules


_FORWARD = _compile(NAMES)
_BACKWARD = _compile((new, old) for old, new in NAMES)


def _rename(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, target in rules:
        if found := pattern.match(key):
            return found.expand(target) + key[found.end() :]
    return key
