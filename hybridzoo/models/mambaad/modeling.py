"""MambaAD: anomalies are where a Mamba decoder fails to reconstruct a frozen teacher's features.

Paper: "MambaAD: Exploring State Space Models for Multi-class Unsupervised Anomaly Detection", He, Bai, Zhang, He, Chen,
Gan, Wang, Li, Tian and Xie, NeurIPS 2024, https://arxiv.org/abs/2404.06564
Original code: https://github.com/lewandofskee/MambaAD (no licence stated; nothing of it is copied).

    image -> teacher (frozen) -> three maps -> half pyramid -> Mamba decoder -> three maps of the same shapes
    loss: mean squared error between the pairs; anomaly map: their cosine distances, upsampled, summed and smoothed

How this differs from the original, at equal weights and equal output at 256 x 256: images of any height and width (the
original's scan tables hold one size); CPU and GPU; tables are made from the config and not part of the weights; the
smoothing runs on the device; the released weights load.

Legend: B batch, H W image, C_i H_i W_i maps of scale i (strides 4, 8, 16).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from hybridzoo.errors import InputError
from hybridzoo.modeling import ZooModel
from hybridzoo.models.mambaad.blocks import SS2D, LSSModule
from hybridzoo.models.mambaad.bottleneck import HalfFPN
from hybridzoo.models.mambaad.configuration import MambaADConfig
from hybridzoo.models.mambaad.decoder import MambaDecoder, ScanTables
from hybridzoo.models.mambaad.folded import teacher_maps
from hybridzoo.models.mambaad.maps import anomaly_map, feature_loss, smooth
from hybridzoo.models.mambaad.teacher import build_teacher, load_teacher, teacher_strides


@dataclass
class AnomalyOutput(ModelOutput):
    """What an anomaly detector returns.

    Args:
        loss: () how badly the teacher's features are reconstructed.
        anomaly_map: (B, H, W) fp32, larger where the image is less normal.
        score: (B,) the map's maximum.
        teacher_features, student_features: (B, C_i, H_i, W_i), finest first, if asked for.
    """

    loss: Tensor | None = None
    anomaly_map: Tensor | None = None
    score: Tensor | None = None
    teacher_features: tuple[Tensor, ...] | None = None
    student_features: tuple[Tensor, ...] | None = None


class MambaADForAnomalyDetection(ZooModel):
    """MambaAD with its teacher.

    Args:
        config: sizes, preprocessing, thresholds.
    """

    config_class = MambaADConfig
    config: MambaADConfig
    family = "mambaad"
    task = "anomaly-detection"
    main_input_name = "pixel_values"
    main_output_name = "anomaly_map"
    export_outputs = ("anomaly_map", "score")
    loss_needs_labels = False
    head_names = ()
    _no_split_modules: ClassVar[list[str]] = ["LSSModule"]

    def __init__(self, config: MambaADConfig) -> None:
        super().__init__(config)
        self.teacher = build_teacher(
            config.teacher, config.teacher_indices, config.teacher_channels, config.num_channels
        )
        self.bottleneck = HalfFPN(config.teacher_channels, config.dims[0], config.bottleneck_width)
        sides = [-(-config.image_size // stride) for stride in teacher_strides(self.teacher)[::-1]]
        grids = [(side, side) for side in (-(-sides[0] // 2), *sides)]
        self.decoder = MambaDecoder(**config.decoder_arguments(), grids=grids)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The original's: normal by fan-out for convolutions, truncated normal for linear layers, scans' own."""
        if isinstance(module, ScanTables):
            module.reset()
        elif isinstance(module, SS2D):
            module.reset_scans()
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)):
            if module.weight is not None:
                init.ones_(module.weight)
                init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                init.zeros_(cast(Tensor, module.running_mean))
                init.ones_(cast(Tensor, module.running_var))
                init.zeros_(cast(Tensor, module.num_batches_tracked))
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, LSSModule):
            module.reset_convolutions()

    def train(self, mode: bool = True) -> Self:
        """Train mode for all but the teacher, which stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self,
        pixel_values: Tensor,
        masks: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> AnomalyOutput | tuple[Any, ...]:
        """Reconstruct the teacher's features and compare.

        Args:
            pixel_values: (B, num_channels, H, W), normalised floats; more than 32 pixels on one side.
            masks: (B, H, W) or (B, 1, H, W); above 0 where a pixel is known to be anomalous. Such pixels do not count
                in the loss (training images that are not all normal).
            labels: (B,); above 0 for images known to be anomalous, which then do not count in the loss.
            output_hidden_states: also return both networks' feature maps.
            return_dict: False gives a plain tuple.

        Returns:
            `AnomalyOutput` with loss, anomaly_map (B, H, W) and score (B,).

        Raises:
            InputError: images, masks or labels of the wrong shape or type.
        """
        self._check(pixel_values, masks, labels)
        batch, _, height, width = pixel_values.shape
        weight = self.bottleneck.conv1.weight
        with torch.no_grad():
            teacher = [f.detach() for f in teacher_maps(self.teacher, pixel_values.to(weight.dtype))]
        student = self.decoder(
            self.bottleneck([f.contiguous() for f in teacher]), [(f.shape[2], f.shape[3]) for f in teacher[::-1]]
        )
        excluded = None
        if masks is not None or labels is not None:
            excluded = torch.zeros(batch, height, width, dtype=torch.bool, device=pixel_values.device)
            if masks is not None:
                excluded = excluded | (masks.reshape(batch, height, width) > 0)
            if labels is not None:
                excluded = excluded | (labels > 0)[:, None, None]
        loss = feature_loss(teacher, student, self.config.loss_weight, excluded)
        with torch.no_grad():
            maps = smooth(anomaly_map(teacher, student, (height, width)), self.config.gaussian_sigma)
        features = output_hidden_states if output_hidden_states is not None else self.config.output_hidden_states
        output = AnomalyOutput(
            loss=loss,
            anomaly_map=maps,
            score=maps.flatten(1).amax(1),
            teacher_features=tuple(teacher) if features else None,
            student_features=tuple(student) if features else None,
        )
        return output if (return_dict if return_dict is not None else self.config.return_dict) else output.to_tuple()

    def _check(self, pixel_values: Tensor, masks: Tensor | None, labels: Tensor | None) -> None:
        channels = self.config.num_channels
        if not isinstance(pixel_values, Tensor) or pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            shape = tuple(pixel_values.shape) if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
            raise InputError(f"pixel_values must be (B, {channels}, H, W), got {shape}; make grey images RGB first")
        if not pixel_values.is_floating_point() or 0 in pixel_values.shape:
            raise InputError(
                f"pixel_values must be normalised floats and not empty, got {pixel_values.dtype} "
                f"{tuple(pixel_values.shape)}"
            )
        batch, _, height, width = pixel_values.shape
        smallest = 2 * teacher_strides(self.teacher)[2]
        if max(height, width) <= smallest:
            raise InputError(f"images of {height} x {width} pixels are too small: one side must exceed {smallest}")
        if masks is not None and tuple(masks.shape) not in ((batch, height, width), (batch, 1, height, width)):
            raise InputError(f"masks must be ({batch}, {height}, {width}) like the images, got {tuple(masks.shape)}")
        if labels is not None and tuple(labels.shape) != (batch,):
            raise InputError(f"labels must be ({batch},), one per image, got {tuple(labels.shape)}")

    def output_shape(self, inputs: Mapping[str, Any]) -> tuple[int, ...]:
        """(B, H, W) of the anomaly map."""
        batch, _, height, width = inputs["pixel_values"].shape
        return (batch, height, width)

    def example_inputs(self, batch_size: int = 1, *, labels: bool = False) -> dict[str, Any]:
        """Seeded images of the configured size; labels (all normal) if asked for."""
        weight, side = self.bottleneck.conv1.weight, self.config.image_size
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(batch_size, self.config.num_channels, side, side, generator=generator)
        inputs = {"pixel_values": pixels.to(weight.device, weight.dtype)}
        if labels:
            inputs["labels"] = torch.zeros(batch_size, dtype=torch.long, device=weight.device)
        return inputs

    @classmethod
    def from_backbone(cls, source: str | Path, **values: Any) -> Self:
        """A model in train mode whose teacher has trained weights.

        Args:
            source: see `load_teacher`.
            **values: configuration values.
        """
        model = cls(MambaADConfig(**values))
        load_teacher(model.teacher, model.config.teacher, source)
        return model.train()
