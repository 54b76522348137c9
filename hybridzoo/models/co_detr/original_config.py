"""`CoDetrConfig` values for an original checkpoint: sizes from the shapes, the rest from the original's configuration.

The original's `model` dictionary (Sense-X's mmdetection 2 files and mmdetection 3's) is understood, and a flat one with
the keys of `FLAT`. What neither tells has the published models' values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hybridzoo.errors import CheckpointError, ConfigError, unknown
from hybridzoo.models.co_detr.configuration import CoDetrConfig
from hybridzoo.models.co_detr.original_backbone import backbone_config_from_shapes

POINTS = 4  # of every published model; heads follow from it
# Flat keys -> ours. `()`: known, and without influence (facts of the data, or sizes that the shapes tell).
FLAT: dict[str, str | tuple[()]] = {
    "num_classes": "num_labels",
    "embed_dims": "d_model",
    "num_query": "num_queries",
    "num_queries": "num_queries",
    "enc": "encoder_layers",
    "dec": "decoder_layers",
    "ffn": "ffn_dim",
    "heads": "num_heads",
    "levels": "num_feature_levels",
    "fc_out": "roi_fc_dim",
    "loss_lambda": "aux_loss_weight",
    "max_pos_coords": "max_positive_queries",
    **dict.fromkeys(("backbone", "in_channels", "note", "versions", "padded", "img_shapes", "ori_shapes"), ()),
    **dict.fromkeys(("scale_factor", "gt_boxes", "gt_labels", "aux_weight", "strides"), ()),
}
SECTIONS = ("dn", "dn_cfg", "pos_enc", "positional_encoding", "test", "test_cfg", "train_cfg", "anchors", "roi")
FLAGS = ("use_lsj", "with_attn_mask")
MMDET = ("type", "neck", "query_head", "rpn_head", "roi_head", "bbox_head", "data_preprocessor", "eval_module")


def config_from_original(config: Mapping[str, Any] | None, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Values of `CoDetrConfig` for a checkpoint in one of the original's layouts.

    Args:
        config: the original's `model` dictionary, a whole configuration with `model` in it, or flat values (`FLAT`, or
            fields of `CoDetrConfig`). None: from the shapes alone.
        state: the checkpoint.

    Raises:
        ConfigError: an unknown key, or what the zoo cannot express (other anchors).
        CheckpointError: not a Co-DETR checkpoint.
    """
    from hybridzoo.models.co_detr.convert import plain_state

    values = _from_shapes(plain_state(state))
    given = dict(config or {})
    for wrapper in ("model", "config"):
        if isinstance(given.get(wrapper), Mapping):
            given = dict(given[wrapper])
    reader = _from_mmdet if isinstance(given.get("query_head"), Mapping) else _from_flat
    backbone = values.pop("backbone_config")
    values |= reader(given, values)
    if isinstance(given.get("backbone_config"), Mapping):
        backbone |= given["backbone_config"]
    drop_path = given["backbone"].get("drop_path_rate") if isinstance(given.get("backbone"), Mapping) else None
    if drop_path is not None and values["backbone"] != "resnet":
        backbone["drop_path_rate"] = float(drop_path)
    return values | {"backbone_config": backbone}


def _from_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes tell."""
    transformer = "query_head.transformer."
    if f"{transformer}level_embeds" not in state or "query_head.cls_branches.0.weight" not in state:
        some = ", ".join(list(state)[:4]) or "none"
        raise CheckpointError(
            f"this is no checkpoint of the original Co-DETR: no query_head.transformer.* (its first keys: {some})"
        )
    levels, dim = state[f"{transformer}level_embeds"].shape
    dino = f"{transformer}query_embed.weight" in state
    queries = state[f"{transformer}query_embed.weight" if dino else "query_head.query_embedding.weight"].shape[0]
    weights = state[f"{transformer}decoder.layers.0.attentions.1.attention_weights.bias"].shape[0]
    roi, atss = "roi_head.0.bbox_head.fc_cls.weight" in state, "bbox_head.0.atss_cls.weight" in state
    classes = state["query_head.cls_branches.0.weight"].shape[0]
    values: dict[str, Any] = {
        "variant": "dino" if dino else "deformable_detr",
        "num_feature_levels": levels,
        "d_model": dim,
        "num_queries": queries,
        "num_labels": classes,
        "num_points": POINTS,
        "num_heads": weights // (levels * POINTS),
        "encoder_layers": _count(state, rf"{re.escape(transformer)}encoder\.layers\.(\d+)\."),
        "decoder_layers": _count(state, rf"{re.escape(transformer)}decoder\.layers\.(\d+)\."),
        "ffn_dim": state[f"{transformer}decoder.layers.0.ffns.0.layers.0.0.weight"].shape[0],
        "use_denoising": "query_head.label_embedding.weight" in state,
        "use_roi_head": roi and "rpn_head.rpn_cls.weight" in state,
        "use_atss_head": atss,
        "use_aux_queries": f"{transformer}aux_pos_trans.0.weight" in state and (roi or atss),
        # Published settings: Co-DINO suppresses softly, Co-Deformable-DETR does not.
        "soft_nms_iou": 0.8 if dino else None,
        "max_detections": 300 if dino or queries > 300 else 100,
    }
    if roi:
        at = "roi_head.0.bbox_head."
        agnostic = state[f"{at}fc_reg.weight"].shape[0] == 4 and classes > 1
        values |= {
            "roi_convs": _count(state, re.escape(at) + r"shared_convs\.(\d+)\."),
            "roi_fcs": _count(state, re.escape(at) + r"shared_fcs\.(\d+)\."),
            "roi_fc_dim": state[f"{at}fc_cls.weight"].shape[1],
            "roi_class_agnostic": agnostic,
            "roi_box_stds": (0.05, 0.05, 0.1, 0.1) if agnostic else (0.1, 0.1, 0.2, 0.2),
        }
    if atss:
        values["atss_convs"] = _count(state, r"bbox_head\.0\.cls_convs\.(\d+)\.")
    kind, backbone = backbone_config_from_shapes(state)
    values |= {"backbone": kind, "backbone_config": backbone}
    if backbone.get("rope_grid"):  # fixed to one size: trained with large-scale jitter
        side = backbone["rope_grid"] * backbone["patch_size"]
        values |= {"use_padding_mask": False, "pad_size": side, "shortest_edge": side, "longest_edge": side}
    return values


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(found[1]) for key in state if (found := re.match(pattern, key))), default=-1)


def _from_flat(given: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key in FLAT:
            target = FLAT[key]
            if target:
                values[str(target)] = value
        elif key in CoDetrConfig.zoo_types or key in ("num_labels", "id2label", "label2id"):
            if key != "backbone_config":
                values[key] = value
        elif key not in (*SECTIONS, *FLAGS, *MMDET):
            choices = [*FLAT, *SECTIONS, *FLAGS, *CoDetrConfig.zoo_types]
            raise ConfigError(unknown("key of the original Co-DETR's configuration", key, choices))
    if "aux_weight" in given and "loss_lambda" not in given:
        values["aux_loss_weight"] = given["aux_weight"] / values.get("decoder_layers", shapes["decoder_layers"])
    values |= _positions(given.get("pos_enc") or given.get("positional_encoding") or {})
    values |= _denoising(given.get("dn") or given.get("dn_cfg") or {})
    values |= _testing(given.get("test") or given.get("test_cfg") or {})
    values |= _training(given.get("train_cfg") or ()) | _flags(given)
    anchors = given.get("anchors") or {}
    _check_anchors(anchors.get("rpn"), 4, 3, [0.5, 1.0, 2.0])
    _check_anchors(anchors.get("atss"), 8, 1, [1.0])
    _check_roi(given.get("roi") or {})
    return values


def _from_mmdet(given: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    query = given["query_head"]
    values = _positions(query.get("positional_encoding") or {}) | _denoising(query.get("dn_cfg") or {})
    values |= _testing(given.get("test_cfg") or {}) | _training(given.get("train_cfg") or ()) | _flags(given)
    transformer = query.get("transformer") or {}
    attention = ((transformer.get("decoder") or {}).get("transformerlayers") or {}).get("attn_cfgs") or ()
    for one in attention if isinstance(attention, (list, tuple)) else (attention,):
        if "num_heads" in one:
            values["num_heads"] = one["num_heads"]
        if "num_points" in one:
            values["num_points"] = one["num_points"]
    if "max_pos_coords" in query:
        values["max_positive_queries"] = query["max_pos_coords"]
    if "lambda_1" in query:
        values["aux_query_loss_weight"] = float(query["lambda_1"])
    rpn = given.get("rpn_head") or {}
    _check_anchors(rpn.get("anchor_generator"), 4, 3, [0.5, 1.0, 2.0])
    weight = (rpn.get("loss_cls") or {}).get("loss_weight")
    atss = _first(given.get("bbox_head"))
    if weight is None:
        weight = (atss.get("loss_cls") or {}).get("loss_weight")
    if weight is not None:
        values["aux_loss_weight"] = weight / shapes["decoder_layers"]
    _check_anchors(atss.get("anchor_generator"), 8, 1, [1.0])
    roi = _first(given.get("roi_head"))
    coder = (roi.get("bbox_head") or {}).get("bbox_coder") or {} if isinstance(roi.get("bbox_head"), Mapping) else {}
    if "target_stds" in coder:
        values["roi_box_stds"] = coder["target_stds"]
    preparation = given.get("data_preprocessor") or {}
    for ours, key in (("image_mean", "mean"), ("image_std", "std")):
        if key in preparation:
            values[ours] = [v / 255 for v in preparation[key]]
    if "pad_size_divisor" in preparation:
        values["pad_divisor"] = preparation["pad_size_divisor"]
    return values


def _first(section: Any) -> Mapping[str, Any]:
    if isinstance(section, (list, tuple)):
        section = section[0] if section else {}
    return section if isinstance(section, Mapping) else {}


def _positions(section: Mapping[str, Any]) -> dict[str, Any]:
    names = {"temperature": "position_temperature", "offset": "position_offset"}
    return {ours: float(section[key]) for key, ours in names.items() if key in section}


def _denoising(section: Mapping[str, Any]) -> dict[str, Any]:
    """mmdetection 2's `noise_scale` and `group_cfg`, mmdetection 3's `label_noise_scale` and so on."""
    scale, group = section.get("noise_scale") or {}, section.get("group_cfg") or {}
    found = {
        "dn_label_noise": section.get("label_noise_scale", scale.get("label")),
        "dn_box_noise": section.get("box_noise_scale", scale.get("box")),
        "num_dn_queries": section.get("num_dn_queries", group.get("num_dn_queries")),
    }
    return {k: v for k, v in found.items() if v is not None}


def _testing(section: Any) -> dict[str, Any]:
    """Of the query head: the first of the list."""
    section = _first(section)
    values: dict[str, Any] = {}
    if "max_per_img" in section:
        values["max_detections"] = section["max_per_img"]
    if "score_thr" in section:
        values["score_threshold"] = float(section["score_thr"])
    if "soft_nms_iou" in section:
        values["soft_nms_iou"] = section["soft_nms_iou"]
    elif "max_per_img" in section:  # a section that names no suppression has none
        nms = section.get("nms") or {}
        if nms and nms.get("type") != "soft_nms":
            raise ConfigError(f"test_cfg: nms={dict(nms)}; the query head has soft_nms or none")
        values["soft_nms_iou"] = nms.get("iou_threshold") if nms else None
    return values


def _training(sections: Any) -> dict[str, Any]:
    """Assigners, samplers and proposals of the auxiliary heads, wherever they stand in the list."""
    values: dict[str, Any] = {}
    for section in sections if isinstance(sections, (list, tuple)) else (sections,):
        proposal = section.get("rpn_proposal") or {}
        for key, ours in (("nms_pre", "rpn_nms_pre"), ("max_per_img", "rpn_max_proposals")):
            if key in proposal:
                values[ours] = proposal[key]
        if "iou_threshold" in (proposal.get("nms") or {}):
            values["rpn_nms_iou"] = float(proposal["nms"]["iou_threshold"])
        for head, prefix in (("rpn", "rpn"), ("rcnn", "roi")):
            sampler = (section.get(head) or {}).get("sampler") or {}
            if "num" in sampler:
                values[f"{prefix}_samples"] = sampler["num"]
            if "pos_fraction" in sampler:
                values[f"{prefix}_positive_fraction"] = float(sampler["pos_fraction"])
        assigner = section.get("assigner") or {}
        if assigner.get("type") == "ATSSAssigner" and "topk" in assigner:
            values["atss_topk"] = assigner["topk"]
    return values


def _flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """Large-scale jitter by either name: padding is not masked."""
    if "use_lsj" in given:
        return {"use_padding_mask": not given["use_lsj"]}
    if "with_attn_mask" in given:
        return {"use_padding_mask": bool(given["with_attn_mask"])}
    return {}


def _check_anchors(section: Any, scale: int, count: int, ratios: list[float]) -> None:
    if not section:
        return
    found = section.get("octave_base_scale"), section.get("scales_per_octave"), list(section.get("ratios", ratios))
    if found != (scale, count, ratios):
        raise ConfigError(
            f"anchors of base scale, scales per octave and ratios {found}: the zoo has {(scale, count, ratios)}, those "
            "of every published Co-DETR"
        )


def _check_roi(section: Mapping[str, Any]) -> None:
    expected = {"output": 7, "sampling_ratio": 0, "aligned": True}
    wrong = {k: section[k] for k, v in expected.items() if k in section and section[k] != v}
    strides = section.get("strides")
    if strides and "finest_scale" in section and not math.isclose(section["finest_scale"], 14 * strides[0]):
        wrong["finest_scale"] = section["finest_scale"]
    if wrong:
        raise ConfigError(f"RoI pooling with {wrong}: the zoo has {expected} and finest_scale = 14 x the finest stride")
