"""The named sizes of Co-DETR, as data; imports neither torch nor timm."""

from __future__ import annotations

from typing import Any


def _swin(embed_dim: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, drop_path: float) -> Any:
    sizes = {"embed_dim": embed_dim, "depths": depths, "num_heads": heads, "window_size": window}
    return {"backbone": "swin", "backbone_config": sizes | {"drop_path_rate": drop_path}}


SWIN_T = _swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 0.2)
SWIN_S = _swin(96, (2, 2, 18, 2), (3, 6, 12, 24), 7, 0.2)
SWIN_B = _swin(128, (2, 2, 18, 2), (4, 8, 16, 32), 12, 0.2)
SWIN_L = _swin(192, (2, 2, 18, 2), (6, 12, 24, 48), 12, 0.3)


def _three_maps(base: dict[str, Any]) -> dict[str, Any]:
    """The last three stages of a backbone."""
    return base | {"backbone_config": {**base.get("backbone_config", {}), "out_stages": (2, 3, 4)}}


DINO = {"soft_nms_iou": 0.8}
DEFORMABLE = {"variant": "deformable_detr", "num_feature_levels": 4, "num_queries": 300, "max_detections": 100}
# Large-scale jitter: images fill one square, whose padding is not masked.
LSJ_1024 = {"use_padding_mask": False, "pad_size": 1024, "shortest_edge": 1024, "longest_edge": 1024}
LSJ_1280 = LSJ_1024 | dict.fromkeys(("pad_size", "shortest_edge", "longest_edge"), 1280)
LSJ_1536 = LSJ_1024 | dict.fromkeys(("pad_size", "shortest_edge", "longest_edge"), 1536)
O365_DENOISING = {"dn_box_noise": 0.4, "num_dn_queries": 500}
VIT_L = {
    "backbone": "vit",
    "backbone_config": {"drop_path_rate": 0.4},
    "num_queries": 1500,
    "roi_convs": 4,
    "roi_fcs": 1,
    "roi_class_agnostic": True,
    "roi_box_stds": (0.05, 0.05, 0.1, 0.1),
    "dn_box_noise": 0.4,
    "num_dn_queries": 300,
    "shortest_edge": 1280,
    "longest_edge": 2048,
    "pad_divisor": 32,
    "max_detections": 1000,
}
VIT_L_LVIS = {
    "backbone": "vit",
    "backbone_config": {
        "drop_path_rate": 0.3,
        "window_size": 16,
        "global_blocks": tuple(range(2, 24, 3)),
        "rope_grid": 96,
    },
    "num_labels": 1203,
    "dn_box_noise": 0.4,
    "num_dn_queries": 300,
    "max_detections": 1000,
}

MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "co_dino_r50": (DINO, "Co-DINO, ResNet-50, five scales"),
    "co_dino_r50_4scale": (DINO | _three_maps({}) | {"num_feature_levels": 4}, "Co-DINO, ResNet-50, four scales"),
    "co_dino_r50_lsj": (DINO | LSJ_1024, "Co-DINO, ResNet-50, large-scale jitter 1024"),
    "co_dino_r50_9enc_lsj": (DINO | LSJ_1024 | {"encoder_layers": 9}, "as co_dino_r50_lsj, nine encoder layers"),
    "co_dino_swin_l": (DINO | SWIN_L, "Co-DINO, Swin-L"),
    "co_dino_swin_l_lsj": (DINO | SWIN_L | LSJ_1280, "Co-DINO, Swin-L, large-scale jitter 1280"),
    "co_dino_swin_l_o365": (
        DINO | SWIN_L | O365_DENOISING | {"shortest_edge": 1280, "longest_edge": 2048, "pad_divisor": 32},
        "Co-DINO, Swin-L, for fine-tuning from Objects365 at 1280 x 2048",
    ),
    "co_dino_swin_l_lvis": (
        DINO | SWIN_L | LSJ_1280 | {"num_labels": 1203, "max_detections": 1000},
        "Co-DINO, Swin-L, LVIS, large-scale jitter 1280",
    ),
    "co_dino_swin_l_lvis_o365": (
        DINO | SWIN_L | LSJ_1536 | O365_DENOISING | {"num_labels": 1203, "max_detections": 1000},
        "Co-DINO, Swin-L, LVIS, for fine-tuning from Objects365, large-scale jitter 1536",
    ),
    "co_dino_vit_l": (DINO | VIT_L, "Co-DINO, ViT-L in windows with a simple feature pyramid"),
    "co_dino_vit_l_lvis": (DINO | LSJ_1536 | VIT_L_LVIS, "Co-DINO, ViT-L, LVIS, large-scale jitter 1536"),
    "co_deformable_detr_r50": (DEFORMABLE | _three_maps({}), "Co-Deformable-DETR, ResNet-50"),
    "co_deformable_detr_swin_t": (DEFORMABLE | _three_maps(SWIN_T), "Co-Deformable-DETR, Swin-T"),
    "co_deformable_detr_swin_s": (DEFORMABLE | _three_maps(SWIN_S), "Co-Deformable-DETR, Swin-S"),
    "co_deformable_detr_swin_b": (DEFORMABLE | _three_maps(SWIN_B), "Co-Deformable-DETR, Swin-B"),
    "co_deformable_detr_swin_l": (DEFORMABLE | _three_maps(SWIN_L), "Co-Deformable-DETR, Swin-L"),
    "co_deformable_detr_swin_l_900q": (
        DEFORMABLE | _three_maps(SWIN_L) | {"num_queries": 900, "max_detections": 300},
        "Co-Deformable-DETR, Swin-L, 900 queries",
    ),
}

TEST: dict[str, Any] = {
    "backbone_config": {"stem_channels": 8, "channels": (16, 32, 48, 64), "depths": (1, 1, 1, 1)},
    "d_model": 32,
    "num_heads": 4,
    "num_points": 2,
    "ffn_dim": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_queries": 60,
    "num_dn_queries": 8,
    "num_labels": 5,
    "roi_fc_dim": 16,
    "rpn_nms_pre": 100,
    "rpn_max_proposals": 30,
    "rpn_samples": 64,
    "roi_samples": 64,
    "max_detections": 20,
    "shortest_edge": 96,
    "longest_edge": 128,
}

# EfficientNet-Lite0 up to stride 16: 2.0 M parameters without the auxiliary heads, trained in minutes.
MINI: dict[str, Any] = {
    "backbone": "timm",
    "backbone_config": {
        "name": "tf_efficientnet_lite0",
        "out_indices": (2, 3),
        "channels": (40, 112),
        "strides": (8, 16),
    },
    "image_mean": (127 / 255,) * 3,
    "image_std": (128 / 255,) * 3,
    "num_feature_levels": 4,
    "d_model": 128,
    "ffn_dim": 384,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_queries": 300,
    "num_labels": 1,
    "roi_fc_dim": 256,
    "rpn_nms_pre": 1000,
    "rpn_max_proposals": 300,
    "roi_samples": 256,
    "max_positive_queries": 150,
    "shortest_edge": 448,
    "longest_edge": 448,
}
# The ablation, from plain DINO to everything. Names end in what is left of the collaboration.
MINI_ABLATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "dino": (
        {"use_roi_head": False, "use_atss_head": False, "use_aux_queries": False},
        "plain DINO: no auxiliary head, no customised queries",
    ),
    "atss": ({"use_roi_head": False, "use_aux_queries": False}, "an ATSS head, no customised queries"),
    "roi": ({"use_atss_head": False, "use_aux_queries": False}, "an RoI head, no customised queries"),
    "heads": ({"use_aux_queries": False}, "both auxiliary heads, no customised queries"),
}
