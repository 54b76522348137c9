"""Configuration of MambaAD: a frozen teacher, a half pyramid, a Mamba decoder, and how images are prepared."""

from __future__ import annotations

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from hybridzoo.configuration import ZooConfig
from hybridzoo.errors import ConfigError, unknown

SCAN_TYPES = ("sweep", "scan", "zorder", "zigzag", "hilbert")
DIRECTIONS = (1, 2, 4, 8)
NUM_SCALES = 3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@strict
class MambaADConfig(ZooConfig):
    """Sizes of the network, its anomaly map, and its images. The defaults are the paper's.

    Args:
        image_size: side that images are stretched to. Images of any height and width run through the network.
        teacher: name of a timm model that supports `features_only`; its weights are loaded by `from_backbone` or come
            with the checkpoint, never by the name alone.
        teacher_indices: its three feature maps, finest first; each must have half the resolution of the one before.
        teacher_channels: of these three maps.
        dims: widths of the decoder's four stages, coarsest first. The last three are `teacher_channels` reversed.
        depths: HSS blocks per stage: multiples of 3 (modules of 3 blocks) or even (modules of 2).
        d_state, expand, dt_rank: of the scans: states per channel, inner width / width, rank of the step sizes (None:
            width / 16, rounded up).
        scan_type: the curve: "hilbert" as in the paper, "scan", "sweep", "zigzag" or "zorder".
        num_directions: 8, 4 or 2 as in the original, or 1: the forward path alone.
        mixer: "scan", or "conv" for the ablation that puts a convolution of as many parameters in place of the scans.
        bottleneck_width: inner width of the three bottlenecks that follow the half pyramid.
        drop_path_rate: stochastic depth of the first block; it falls to 0 at the last one.
        loss_weight: factor of the summed mean squared errors.
        gaussian_sigma: of the filter over the anomaly map, in pixels; 0: none.
        threshold: image score from which an image counts as anomalous; None: not chosen yet.
        pixel_threshold: map value from which a pixel counts as anomalous; None: not chosen yet.
        image_mean, image_std: per channel, of values in [0, 1].
        interpolation: bilinear, bicubic, nearest or lanczos.

    Raises:
        ConfigError: values that do not fit together.
    """

    model_type = "mambaad"

    image_size: int = 256
    teacher: str = "resnet34"
    teacher_indices: list[int] | tuple[int, ...] = (1, 2, 3)
    teacher_channels: list[int] | tuple[int, ...] = (64, 128, 256)
    dims: list[int] | tuple[int, ...] = (512, 256, 128, 64)
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    d_state: int = 16
    expand: int = 2
    dt_rank: int | None = None
    scan_type: str = "hilbert"
    num_directions: int = 8
    mixer: Literal["scan", "conv"] = "scan"
    bottleneck_width: int = 128
    drop_path_rate: float | int = 0.2
    loss_weight: float | int = 5.0
    gaussian_sigma: float | int = 4.0
    threshold: float | int | None = None
    pixel_threshold: float | int | None = None
    num_channels: int = 3
    image_mean: list[float] | tuple[float, ...] = IMAGENET_MEAN
    image_std: list[float] | tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    def validate_values(self) -> None:
        check_decoder(self.dims, self.depths, self.scan_type, self.num_directions)
        if len(self.dims) != NUM_SCALES + 1:
            raise ConfigError(f"dims={list(self.dims)}: give four widths, coarsest first")
        for name in ("teacher_indices", "teacher_channels"):
            if len(getattr(self, name)) != NUM_SCALES:
                raise ConfigError(f"{name}={list(getattr(self, name))}: give three, finest first")
        if list(self.dims[1:]) != list(self.teacher_channels)[::-1]:
            raise ConfigError(
                f"dims={list(self.dims)} must end with teacher_channels reversed, {list(self.teacher_channels)[::-1]}: "
                "the student's maps are compared with the teacher's channel by channel"
            )
        for name in ("image_size", "d_state", "expand", "bottleneck_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.dt_rank is not None and self.dt_rank < 1:
            raise ConfigError(f"dt_rank={self.dt_rank} must be at least 1, or None for width / 16")
        if not 0 <= self.drop_path_rate < 1:
            raise ConfigError(f"drop_path_rate={self.drop_path_rate}: give a probability, 0 or more and below 1")
        for name in ("loss_weight", "gaussian_sigma", "threshold", "pixel_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"{name}={value} must be a number, 0 or more")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.num_channels:
                raise ConfigError(f"{name} has {len(getattr(self, name))} values for {self.num_channels} channels")
        if min(self.image_std) <= 0:
            raise ConfigError(f"image_std={list(self.image_std)}: every value must be above 0")
        if self.interpolation not in ("bilinear", "bicubic", "nearest", "lanczos"):
            raise ConfigError(
                unknown("interpolation", self.interpolation, ["bilinear", "bicubic", "nearest", "lanczos"])
            )

    def decoder_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `MambaDecoder` that build this network's decoder."""
        return {
            "dims": tuple(self.dims),
            "depths": tuple(self.depths),
            "d_state": self.d_state,
            "expand": self.expand,
            "dt_rank": self.dt_rank,
            "scan_type": self.scan_type,
            "num_directions": self.num_directions,
            "mixer": self.mixer,
            "drop_path_rate": self.drop_path_rate,
        }


def modules_of(depth: int) -> tuple[int, int]:
    """(LSS modules, HSS blocks in each) of a stage with `depth` HSS blocks: the original's rule."""
    if depth > 0 and depth % 3 == 0:
        return depth // 3, 3
    if depth > 0 and depth % 2 == 0:
        return depth // 2, 2
    raise ConfigError(f"depths holds {depth}: a stage has modules of 3 or of 2 blocks; give a multiple of 3 or of 2")


def check_decoder(
    dims: list[int] | tuple[int, ...], depths: list[int] | tuple[int, ...], scan_type: str, directions: int
) -> None:
    """Refuse decoder sizes that do not fit together; raises ConfigError."""
    if len(dims) != len(depths) or len(dims) < 2 or min(dims) < 1:
        raise ConfigError(f"dims={list(dims)}, depths={list(depths)}: give one positive number per stage to both")
    for depth in depths:
        modules_of(depth)
    if scan_type not in SCAN_TYPES:
        raise ConfigError(unknown("scan_type", scan_type, SCAN_TYPES))
    if directions not in DIRECTIONS:
        raise ConfigError(f"num_directions={directions}: choose one of {', '.join(map(str, DIRECTIONS))}")
