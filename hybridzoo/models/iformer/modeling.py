"""iFormer for image classification, as a transformers model around the timm-style backbone.

See `backbone.py` for the architecture, its paper and the original code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from hybridzoo.errors import InputError
from hybridzoo.modeling import ZooModel
from hybridzoo.models.iformer.backbone import InceptionTransformer, init_weights
from hybridzoo.models.iformer.configuration import IFormerConfig
from hybridzoo.models.iformer.sizes import NUM_STAGES


class IFormerForImageClassification(ZooModel):
    """iFormer with its classifier.

    Args:
        config: sizes, labels and preprocessing.
    """

    config_class = IFormerConfig
    base_model_prefix = "iformer"
    main_input_name = "pixel_values"
    family = "iformer"
    task = "image-classification"
    head_names = ("iformer.head",)
    _no_split_modules: ClassVar[list[str]] = ["InceptionBlock"]
    _supports_sdpa = True
    _supports_attention_backend = False

    def __init__(self, config: IFormerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.iformer = InceptionTransformer(**config.backbone_arguments(), weight_init="skip")
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple[Any, ...]:
        """Classify images.

        Args:
            pixel_values: (B, num_channels, H, W), normalised floats; any H and W above twice the stem's stride. A model
                of grey images also takes (B, 3, H, W), as transformers' processors make it, and averages the channels.
            labels: (B,) integers; or (B, num_labels) floats, class probabilities (mixup), or targets between 0 and 1 if
                `config.problem_type` is "multi_label_classification"; or values if it is "regression".
            output_hidden_states: also return the four stages' maps (B, C_k, H_k, W_k).
            return_dict: False gives a plain tuple.

        Returns:
            `ImageClassifierOutput` with `logits` (B, num_labels), `loss` if labels are given, and `hidden_states` if
            asked for.

        Raises:
            InputError: images or labels of the wrong shape, type or range.
        """
        weight = self.iformer.patch_embed.proj1.weight
        if isinstance(pixel_values, Tensor) and pixel_values.is_floating_point():
            pixel_values = pixel_values.to(weight.dtype)
            if self.config.num_channels == 1 and pixel_values.ndim == 4 and pixel_values.shape[1] == 3:
                pixel_values = pixel_values.mean(1, keepdim=True)
        if output_hidden_states if output_hidden_states is not None else self.config.output_hidden_states:
            features, stages = self.iformer.forward_intermediates(pixel_values)
            hidden_states: tuple[Tensor, ...] | None = tuple(stages)
        else:
            features, hidden_states = self.iformer.forward_features(pixel_values), None
        logits = self.iformer.forward_head(features)
        loss = None if labels is None else self._loss(logits, labels)
        output = ImageClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states)
        return output if (return_dict if return_dict is not None else self.config.return_dict) else output.to_tuple()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        problem = self.config.problem_type
        if problem == "regression":
            return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).view_as(logits.squeeze(-1)))
        if labels.is_floating_point():
            if labels.shape != logits.shape:
                raise InputError(f"expected float labels of shape {tuple(logits.shape)}, got {tuple(labels.shape)}")
            if problem == "multi_label_classification":
                return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
            return F.cross_entropy(logits, labels.to(logits.dtype))
        if labels.shape != logits.shape[:1]:
            raise InputError(
                f"expected integer labels of shape {tuple(logits.shape[:1])} or float labels of shape "
                f"{tuple(logits.shape)}, got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        # Reading values would stop a compiled graph and wait for a GPU; there, torch's own check speaks.
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
            low, high = int(labels.min()), int(labels.max())
            if high >= self.iformer.num_classes or (low < 0 and low != -100):
                raise InputError(
                    f"labels run from {low} to {high}; this model has classes 0 to {self.iformer.num_classes - 1}"
                )
        return F.cross_entropy(logits, labels.long())

    def example_inputs(self, batch_size: int = 1, *, labels: bool = False) -> dict[str, Any]:
        """Seeded images of the configured size, and integer labels if asked for."""
        weight = self.iformer.patch_embed.proj1.weight
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, self.config.num_channels, self.config.image_size, self.config.image_size)
        inputs = {"pixel_values": torch.randn(shape, generator=generator).to(weight.device, weight.dtype)}
        if labels:
            inputs["labels"] = (torch.arange(batch_size) % self.iformer.num_classes).to(weight.device)
        return inputs

    def layer_groups(self) -> list[list[str]]:
        """Prefixes of parameter names from input to output, one group per block, for layer-wise learning rates."""
        groups = [["iformer.patch_embed.", "iformer.pos_embed1"]]
        for k in range(1, NUM_STAGES + 1):
            if k > 1:
                groups.append([f"iformer.patch_embed{k}.", f"iformer.pos_embed{k}"])
            groups += [[f"iformer.blocks{k}.{j}."] for j in range(self.config.depths[k - 1])]
        return [*groups, ["iformer.norm.", "iformer.head."]]

    def no_weight_decay(self) -> set[str]:
        """Parameters that are spared weight decay by name: none (biases and vectors are spared by the optimiser)."""
        return {f"iformer.{name}" for name in self.iformer.no_weight_decay()}

    def freeze_backbone(self) -> None:
        """Train the classifier only. The batch norms' running statistics still follow the mode of the model."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(self.head_names[0] + "."))

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.iformer.get_classifier()

    def save_extras(self, folder: Path) -> None:
        """The evaluation transform, in `preprocessor_config.json`."""
        from hybridzoo.data.image_processor import image_processor

        image_processor(self.config).save_pretrained(folder)
