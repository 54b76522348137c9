"""Configuration of iFormer. The defaults are iFormer-S at 224 pixels."""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from hybridzoo.configuration import ZooConfig
from hybridzoo.errors import ConfigError
from hybridzoo.models.iformer.sizes import check_sizes

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")


@strict
class IFormerConfig(ZooConfig):
    """Sizes of the network, and how its images are prepared.

    Args:
        image_size: side of the square evaluation crop. Images of any height and width run through the network.
        position_size: image side that the position tables are made for; None: `image_size`. The published 384 weights
            keep the tables of 224, which are then resized to the map in each forward.
        num_channels: image channels.
        embed_dims, depths, num_heads: per stage.
        attention_heads: per block of the whole network, how many of the stage's heads do attention.
        mlp_ratio, qkv_bias, norm_eps: see `InceptionTransformer`.
        use_layer_scale: learned scales of the residual branches in stages 3 and 4.
        layer_scale_init_value: where they start.
        stem_stride: 4 as in the paper, 2 or 1 for small images.
        high_mixer: "inception", or "attention" for the ablation that replaces convolution and max-pooling.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout in the MLPs and after the mixers.
        drop_path_rate: stochastic depth of the last block.
        image_mean, image_std: per channel, of values in [0, 1].
        crop_pct: the shorter side is resized to image_size / crop_pct before the central crop.
        interpolation: bicubic, bilinear, nearest or lanczos.

    Raises:
        ConfigError: values that do not fit together.
    """

    model_type = "iformer"
    attribute_map: ClassVar[dict[str, str]] = {"num_classes": "num_labels"}

    image_size: int = 224
    position_size: int | None = None
    num_channels: int = 3
    embed_dims: list[int] | tuple[int, ...] = (96, 192, 320, 384)
    depths: list[int] | tuple[int, ...] = (3, 3, 9, 3)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 10, 12)
    attention_heads: list[int] | tuple[int, ...] = (1, 1, 1, 3, 3, 3, 7, 7, 7, 7, 9, 9, 9, 9, 9, 11, 11, 11)
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    use_layer_scale: bool = True
    layer_scale_init_value: float | int = 1e-6
    stem_stride: int = 4
    high_mixer: str = "inception"
    drop_rate: float | int = 0.0
    proj_drop_rate: float | int = 0.0
    drop_path_rate: float | int = 0.0
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float | int = 0.9
    interpolation: str = "bicubic"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None:
            given = kwargs.pop("num_classes", None)
            kwargs.setdefault("num_labels", 1000 if given is None else given)
        super().__post_init__(**kwargs)

    def validate_values(self) -> None:
        check_sizes(
            self.depths, self.embed_dims, self.num_heads, self.attention_heads, self.stem_stride, self.high_mixer
        )
        for name in ("image_mean", "image_std"):
            given = len(getattr(self, name))
            if given != self.num_channels:
                raise ConfigError(
                    f"{name} has {given} values for num_channels={self.num_channels}: give one per channel"
                )
        if min(self.image_std) <= 0:
            raise ConfigError(f"image_std={list(self.image_std)}: every value must be above 0")
        smallest = 2 * self.stem_stride + 1
        for name in ("image_size", "position_size"):
            size = getattr(self, name)
            if size is not None and size < smallest:
                raise ConfigError(f"{name}={size}: at least {smallest} with stem_stride={self.stem_stride}")
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct={self.crop_pct}: give a share of the image side above 0 and up to 1")
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(f"interpolation={self.interpolation!r}: choose one of {', '.join(INTERPOLATIONS)}")
        for name in ("drop_rate", "proj_drop_rate", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: give a probability, 0 or more and below 1")
        if self.mlp_ratio <= 0:
            raise ConfigError(f"mlp_ratio={self.mlp_ratio}: must be above 0")

    def backbone_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `InceptionTransformer` that build this network."""
        return {
            "img_size": self.position_size or self.image_size,
            "in_chans": self.num_channels,
            "num_classes": self.num_labels,
            "depths": tuple(self.depths),
            "embed_dims": tuple(self.embed_dims),
            "num_heads": tuple(self.num_heads),
            "attention_heads": tuple(self.attention_heads),
            "mlp_ratio": self.mlp_ratio,
            "qkv_bias": self.qkv_bias,
            "norm_eps": self.norm_eps,
            "layer_scale_init_value": self.layer_scale_init_value if self.use_layer_scale else None,
            "stem_stride": self.stem_stride,
            "high_mixer": self.high_mixer,
            "drop_rate": self.drop_rate,
            "proj_drop_rate": self.proj_drop_rate,
            "drop_path_rate": self.drop_path_rate,
        }
