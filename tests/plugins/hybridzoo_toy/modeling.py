from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ImageClassifierOutput

from hybridzoo.errors import InputError
from hybridzoo.modeling import ZooModel

from .configuration import ToyConfig


class ToyBlock(GradientCheckpointingLayer):
    def __init__(self, width_in: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width_in)
        self.linear = nn.Linear(width_in, width_out)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(functional.gelu(self.linear(self.norm(x))))


class ToyForImageClassification(ZooModel):
    config_class = ToyConfig
    family = "toy"
    task = "image-classification"
    head_names = ("classifier",)
    base_model_prefix = "toy"
    main_input_name = "pixel_values"
    _no_split_modules = ("ToyBlock",)

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.stem = nn.Conv2d(config.num_channels, config.widths[0], 4, 4)
        sizes = [config.widths[0], *config.widths]
        self.blocks = nn.ModuleList(ToyBlock(a, b, config.dropout) for a, b in pairwise(sizes))
        self.classifier = nn.Linear(config.widths[-1], config.num_labels)
        if config.tie_blocks:
            self._tied_weights_keys = {"blocks.1.linear.weight": "blocks.0.linear.weight"}
            self.config.tie_word_embeddings = True
        self.post_init()

    def example_inputs(self, batch_size: int = 1, *, labels: bool = False) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        side = self.config.image_size
        pixels = torch.randn(batch_size, self.config.num_channels, side, side, generator=generator)
        inputs = {"pixel_values": pixels.to(self.device)}
        if labels:
            inputs["labels"] = (torch.arange(batch_size) % self.config.num_labels).to(self.device)
        return inputs

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        if pixel_values.ndim != 4:
            raise InputError(f"pixel_values must be (B, C, H, W), got {tuple(pixel_values.shape)}")
        x = self.stem(pixel_values.to(self.stem.weight.dtype)).flatten(2).mean(-1)
        for block in self.blocks:
            x = block(x)
        logits = self.classifier(x)
        loss = functional.cross_entropy(logits.float(), labels) if labels is not None else None
        return ImageClassifierOutput(loss=loss, logits=logits)
