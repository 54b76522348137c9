"""Configuration of Co-DETR. The defaults are Co-DINO with a ResNet-50 and five scales on COCO."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict

from hybridzoo.configuration import ZooConfig
from hybridzoo.errors import ConfigError, unknown
from hybridzoo.layers.boxes import NMS_ORDERS
from hybridzoo.models.co_detr.backbone_config import BACKBONES, backbone_facts, complete

VARIANTS = ("dino", "deformable_detr")
_POSITIVE = (
    *("d_model", "num_queries", "encoder_layers", "decoder_layers", "num_heads", "num_points", "ffn_dim"),
    *("num_feature_levels", "roi_fc_dim", "roi_fcs", "atss_topk", "rpn_nms_pre", "rpn_max_proposals"),
    *("rpn_samples", "roi_samples", "max_positive_queries", "max_detections", "num_dn_queries", "pad_divisor"),
)


@strict
class CoDetrConfig(ZooConfig):
    """Sizes, losses and inference settings of a collaborative DETR.

    Args:
        variant: "dino" (Co-DINO) or "deformable_detr" (Co-Deformable-DETR).
        backbone: "resnet", "swin" (transformers' networks), "vit" (windowed RoPE ViT) or "timm" (any features_only
        model). backbone_config: what the backbone's sizes are; see `backbone_config.py`. Missing values have its
        defaults. drop_path_rate: short for `backbone_config["drop_path_rate"]`, where it ends up. num_channels: image
        channels.
        num_feature_levels: maps of the encoder; those beyond the backbone's are made by stride-2 convolutions.
        freeze_batch_norm: batch norms use their stored statistics, and their parameters are not trained.
        d_model, num_heads, num_points, ffn_dim, encoder_layers, decoder_layers, num_queries: of the transformer.
        position_temperature, position_offset: of the encoder's sine positions; None: 20 and 0 for "dino", 10000 and
        -0.5. use_padding_mask: padded pixels are masked and boxes are relative to the image. False (large-scale
            jitter): every image is taken to fill the padded canvas.
        use_denoising: contrastive denoising queries in training ("dino").
        num_dn_queries, dn_label_noise, dn_box_noise: of the denoising.
        use_roi_head: RPN and RoI head on the encoder's output in training.
        use_atss_head: ATSS head on the encoder's output in training.
        use_aux_queries: customised positive queries from those heads in training.
        aux_loss_weight: lambda 2 of the paper; times decoder_layers it scales the losses of the auxiliary heads.
        aux_query_loss_weight: lambda 1 of the paper, of the losses of the customised queries.
        max_positive_queries: most positives that become customised queries, per head and image.
        rpn_nms_pre, rpn_max_proposals, rpn_nms_iou: proposals per level before NMS, per image after it, its threshold.
        rpn_samples, rpn_positive_fraction, roi_samples, roi_positive_fraction: random samples of an image for the
        losses. roi_convs, roi_fcs, roi_fc_dim: of the RoI head.
        roi_class_agnostic: one box for all classes.
        roi_box_stds: scale of the RoI head's box deltas.
        atss_convs, atss_topk: of the ATSS head.
        max_detections, score_threshold, soft_nms_iou, nms_order: see `hybridzoo.layers.boxes.select_detections`.
        image_mean, image_std: per channel, of values in [0, 1].
        shortest_edge, longest_edge: images are resized to fit both.
        pad_divisor: batches are padded to multiples of it.
        pad_size: side of the square that images are fitted into and padded to (large-scale jitter), or None.

    Raises:
        ConfigError: values that do not fit together.
    """

    model_type = "co_detr"

    variant: str = "dino"
    backbone: str = "resnet"
    backbone_config: dict[str, Any] | None = None
    drop_path_rate: float | None = None
    num_channels: int = 3
    num_feature_levels: int = 5
    freeze_batch_norm: bool = True
    d_model: int = 256
    num_heads: int = 8
    num_points: int = 4
    ffn_dim: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_queries: int = 900
    position_temperature: float | None = None
    position_offset: float | None = None
    use_padding_mask: bool = True
    use_denoising: bool | None = None
    num_dn_queries: int = 100
    dn_label_noise: float = 0.5
    dn_box_noise: float = 1.0
    use_roi_head: bool = True
    use_atss_head: bool = True
    use_aux_queries: bool = True
    aux_loss_weight: float = 2.0
    aux_query_loss_weight: float = 1.0
    max_positive_queries: int = 300
    rpn_nms_pre: int = 4000
    rpn_max_proposals: int = 1000
    rpn_nms_iou: float = 0.7
    rpn_samples: int = 256
    rpn_positive_fraction: float = 0.5
    roi_samples: int = 512
    roi_positive_fraction: float = 0.25
    roi_convs: int = 0
    roi_fcs: int = 2
    roi_fc_dim: int = 1024
    roi_class_agnostic: bool = False
    roi_box_stds: list[float] | tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    atss_convs: int = 1
    atss_topk: int = 9
    max_detections: int = 300
    score_threshold: float = 0.0
    soft_nms_iou: float | None = None
    nms_order: str = "sensex"
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    shortest_edge: int = 800
    longest_edge: int = 1333
    pad_divisor: int = 1
    pad_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None:
            given = kwargs.pop("num_classes", None)
            kwargs.setdefault("num_labels", 80 if given is None else given)
        if self.variant in VARIANTS:  # else validate_values says so
            dino = self.variant == "dino"
            self.position_temperature = self.position_temperature or (20.0 if dino else 10000.0)
            if self.position_offset is None:
                self.position_offset = 0.0 if dino else -0.5
            if self.use_denoising is None:
                self.use_denoising = dino
        if self.backbone in BACKBONES:
            short = {} if self.drop_path_rate is None else {"drop_path_rate": self.drop_path_rate}
            self.backbone_config = complete(self.backbone, {**(self.backbone_config or {}), **short})
            self.drop_path_rate = None
        super().__post_init__(**kwargs)

    def validate_values(self) -> None:
        for name, choices in (("variant", VARIANTS), ("backbone", BACKBONES), ("nms_order", NMS_ORDERS)):
            if getattr(self, name) not in choices:
                raise ConfigError(unknown(name, getattr(self, name), choices))
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.d_model % self.num_heads or self.d_model % 4:
            raise ConfigError(
                f"d_model={self.d_model} must be a multiple of num_heads={self.num_heads} and of 4 (sine positions)"
            )
        if self.d_model % self.norm_groups:
            raise ConfigError(f"d_model={self.d_model}: its group norms need a multiple of 32 (or less than 64)")
        if self.variant == "deformable_detr" and self.use_denoising:
            raise ConfigError(
                "use_denoising=True: Co-Deformable-DETR has no denoising queries; only variant='dino' has"
            )
        if self.use_aux_queries and not (self.use_roi_head or self.use_atss_head):
            raise ConfigError(
                "use_aux_queries=True needs use_roi_head or use_atss_head, whose positives it turns into queries"
            )
        backbone_levels = len(self.feature_channels)
        if not backbone_levels <= self.num_feature_levels <= backbone_levels + 3:
            raise ConfigError(
                f"num_feature_levels={self.num_feature_levels}: the backbone gives {backbone_levels} maps, so it can "
                f"be {backbone_levels} to {backbone_levels + 3}"
            )
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.num_channels:
                raise ConfigError(
                    f"{name} has {len(getattr(self, name))} values, one per channel is needed: {self.num_channels}"
                )
        if min(self.image_std) <= 0:
            raise ConfigError(f"image_std={list(self.image_std)}: every value must be above 0")
        for name in ("dn_label_noise", "dn_box_noise", "score_threshold", "rpn_nms_iou", "rpn_positive_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: give a number from 0 to 1")
        if self.soft_nms_iou is not None and not 0 < self.soft_nms_iou <= 1:
            raise ConfigError(
                f"soft_nms_iou={self.soft_nms_iou}: give an overlap above 0 and up to 1, or None for no NMS"
            )
        if len(self.roi_box_stds) != 4 or min(self.roi_box_stds) <= 0:
            raise ConfigError(f"roi_box_stds={list(self.roi_box_stds)}: give four numbers above 0")

    @property
    def label_count(self) -> int:
        """How many classes there are: `num_labels`."""
        return len(self.id2label or ())

    @property
    def feature_channels(self) -> list[int]:
        """Channels of the backbone's maps."""
        return backbone_facts(self.backbone, self.backbone_config or {}).channels

    @property
    def feature_strides(self) -> list[int]:
        """Strides of the encoder's maps."""
        strides = list(backbone_facts(self.backbone, self.backbone_config or {}).strides)
        while len(strides) < self.num_feature_levels:
            strides.append(2 * strides[-1])
        return strides

    @property
    def norm_groups(self) -> int:
        """Groups of the group norms: 32, or fewer of two channels each in a narrower network."""
        return min(32, self.d_model // 2)

    @property
    def has_auxiliary_heads(self) -> bool:
        """Whether the model has parts that only training uses."""
        return bool(self.use_roi_head or self.use_atss_head or self.use_denoising)
