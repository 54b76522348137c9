"""CHELA classifiers of tokens, of pairs of texts, and of images read pixel by pixel.

Paper: Liu et al., "Short-Long Convolutions Help Hardware-Efficient Linear Attention to Focus on Long Sequences", ICML
2024, https://arxiv.org/abs/2406.08128. There is no official code and there are no weights: this is a re-implementation
from the paper's public description, and every point that it leaves open is a switch (docs/models/chela.md).

Legend: B rows, T positions, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from hybridzoo.errors import InputError
from hybridzoo.layers.chela.block import merge_convolutions, undecayed
from hybridzoo.modeling import ZooModel
from hybridzoo.models.chela.configuration import ChelaConfig
from hybridzoo.models.chela.encoder import ChelaEncoder, init_module


class ChelaPreTrainedModel(ZooModel):
    """What all heads share."""

    config_class = ChelaConfig
    config: ChelaConfig
    family = "chela"
    base_model_prefix = "encoder"
    pixels: ClassVar[bool] = False
    _no_split_modules: ClassVar[list[str]] = ["ChelaLayer"]
    _supports_sdpa = True

    def __init__(self, config: ChelaConfig) -> None:
        super().__init__(config)
        self.encoder = ChelaEncoder(config, pixels=self.pixels or config.inputs == "pixels")

    def _init_weights(self, module: nn.Module) -> None:
        init_module(module, self.config)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.embed = value

    def reparameterize(self) -> Self:
        """Merge parallel convolutions for deployment, in place; outputs stay the same within 1e-4.

        A second call does nothing. The configuration notes it, so that the merged model saves and loads as any other.

        Raises:
            InputError: in training mode, where batch norms still follow the batches.
        """
        if self.training:
            raise InputError("reparameterize() merges running statistics: call eval() first")
        merge_convolutions(self, self.config)
        return self

    def _valid(self, input_ids: Tensor | None, mask: Tensor | None, embeds: Tensor | None) -> Tensor | None:
        """(B, T) bool, True at tokens; None where nothing is padding."""
        given = input_ids if input_ids is not None else embeds
        if given is None or (input_ids is not None and embeds is not None):
            raise InputError("give either input_ids (B, T) or inputs_embeds (B, T, D), not both and not neither")
        if input_ids is not None and (input_ids.dim() != 2 or input_ids.is_floating_point()):
            raise InputError(f"input_ids must be (B, T) integers, got {tuple(input_ids.shape)} {input_ids.dtype}")
        if 0 in given.shape:
            raise InputError(f"no tokens: the inputs are {tuple(given.shape)}")
        if given.shape[1] > self.config.max_length:
            raise InputError(
                f"{given.shape[1]} tokens are more than max_length={self.config.max_length} of this model; "
                "truncate, or build it with a larger max_length"
            )
        if mask is None:
            pad = self.config.pad_token_id
            if input_ids is None or pad is None:
                return None
            valid = input_ids != pad
        elif tuple(mask.shape) != tuple(given.shape[:2]):
            raise InputError(
                f"attention_mask must be {tuple(given.shape[:2])} like the tokens, got {tuple(mask.shape)}"
            )
        else:
            valid = mask.to(given.device) != 0
        if not torch.compiler.is_compiling() and valid.device.type == "cpu":
            empty = (~valid.any(1)).nonzero().flatten().tolist()
            if empty:
                raise InputError(f"rows {empty[:5]} hold nothing but padding: leave them out or give them a token")
            if input_ids is not None:
                low, high = (int(v) for v in input_ids.aminmax())
                if low < 0 or high >= self.config.vocab_size:
                    raise InputError(
                        f"input_ids hold {low if low < 0 else high}, outside the vocabulary of "
                        f"{self.config.vocab_size}; the tokenizer is not the one that belongs to this model"
                    )
        return valid

    def _encode(
        self, input_ids: Tensor | None, mask: Tensor | None, embeds: Tensor | None, all_states: bool
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
        """States (B, T, D), their mean (B, D), and the states around every layer if asked for.

        Padding goes to the end of its row meanwhile, because convolutions see what lies between tokens.
        """
        valid = self._valid(input_ids, mask, embeds)
        if valid is None or mask is None:
            inputs = input_ids if input_ids is not None else embeds
            assert inputs is not None
            return self.encoder(inputs, valid, embeds=embeds, all_states=all_states)
        # a stable sort without a sort, which ONNX does not have: the tokens' new places, and what stands at each place
        counts = valid.sum(1, keepdim=True)
        back = torch.where(valid, valid.cumsum(1), counts + valid.logical_not().cumsum(1)) - 1
        places = torch.arange(valid.shape[1], device=valid.device).expand_as(back)
        order = torch.zeros_like(back).scatter(1, back, places)
        valid = places < counts
        if input_ids is not None:
            inputs = input_ids = input_ids.gather(1, order)
        else:
            assert embeds is not None
            inputs = embeds = embeds.gather(1, order.unsqueeze(2).expand_as(embeds))

        def put_back(x: Tensor) -> Tensor:
            return x.gather(1, back.unsqueeze(2).expand_as(x))

        states, pooled, every = self.encoder(inputs, valid, embeds=embeds, all_states=all_states)
        return put_back(states), pooled, None if every is None else tuple(put_back(x) for x in every)

    def layer_groups(self) -> list[list[str]]:
        """Prefixes of parameter names from input to output, for layer-wise learning rates."""
        count = self.config.num_hidden_layers
        rest = [["encoder.final_norm.", "classifier."]]
        return [["encoder.embed."], *[[f"encoder.layers.{i}."] for i in range(count)], *rest]

    def no_weight_decay(self) -> set[str]:
        """Kernels of the long convolutions have none in SGConv's recipes, nor have decay rates, scales and shifts."""
        return undecayed(self)

    def example_inputs(self, batch_size: int = 1, *, labels: bool = False) -> dict[str, Any]:
        """Seeded tokens of full and shorter rows, up to 64 long and below the limit, which export takes for fixed."""
        steps = max(1, min(64, self.config.max_length - 1))
        generator = torch.Generator().manual_seed(0)
        pad = self.config.pad_token_id or 0
        ids = torch.randint(pad + 1, self.config.vocab_size, (batch_size, steps), generator=generator)
        lengths = torch.tensor([steps - (row * 7) % max(steps // 2, 1) for row in range(batch_size)])
        mask = torch.arange(steps)[None, :] < lengths[:, None]
        inputs = {"input_ids": ids.masked_fill(~mask, pad), "attention_mask": mask.long()}
        if labels:
            inputs["labels"] = torch.arange(batch_size) % int(self.config.num_labels or 2)
        return {name: value.to(self.device) for name, value in inputs.items()}


class Classifier(nn.Module):
    """Linear, SiLU, dropout, linear without bias: (B, features) -> (B, K)."""

    def __init__(self, config: ChelaConfig, features: int) -> None:
        super().__init__()
        width = config.classifier_hidden_size or config.value_width
        self.dense = nn.Linear(features, width)
        self.dropout = nn.Dropout(config.classifier_dropout)
        assert config.num_labels is not None
        self.out_proj = nn.Linear(width, config.num_labels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, features) -> (B, K)"""
        return self.out_proj(self.dropout(F.silu(self.dense(x))))


class ChelaModel(ChelaPreTrainedModel):
    """The encoder alone: states and their mean."""

    task = "feature-extraction"
    main_input_name = "input_ids"
    main_output_name = "last_hidden_state"

    def __init__(self, config: ChelaConfig) -> None:
        super().__init__(config)
        self.post_init()

    def output_shape(self, inputs: Any) -> tuple[int, ...]:
        return (*inputs["input_ids"].shape[:2], self.config.hidden_size)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode.

        Args:
            input_ids: (B, T) tokens, or with `config.inputs="pixels"` (B, T) or (B, T, num_channels) floats.
            attention_mask: (B, T), 1 at tokens; padding may lie anywhere, and its states mean nothing.
            inputs_embeds: (B, T, D) in place of input_ids.
            output_hidden_states: also the states before the first and after every layer.

        Returns:
            `last_hidden_state` (B, T, D) and `pooler_output` (B, D), its mean over the tokens.
        """
        if self.config.inputs == "pixels" and input_ids is not None:
            pixels = input_ids if input_ids.dim() == 3 else input_ids.unsqueeze(2)
            inputs_embeds, input_ids = self.encoder.embed(pixels.to(self.dtype)), None
        states, pooled, every = self._encode(input_ids, attention_mask, inputs_embeds, bool(output_hidden_states))
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled, hidden_states=every)  # type: ignore[arg-type]


class ChelaForSequenceClassification(ChelaPreTrainedModel):
    """Classifies rows of tokens: ListOps, text byte by byte."""

    task = "text-classification"
    main_input_name = "input_ids"
    head_names = ("classifier.out_proj",)

    def __init__(self, config: ChelaConfig) -> None:
        super().__init__(config)
        self.classifier = Classifier(config, config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Logits, and the loss where labels are given.

        Args:
            input_ids: (B, T) integers, T up to `config.max_length`.
            attention_mask: (B, T), 1 at tokens; padding may lie anywhere. Left out: 1 at what is not `pad_token_id`.
            inputs_embeds: (B, T, D) in place of input_ids.
            labels: (B,) int64 classes.
            output_hidden_states: also the states before the first and after every layer.

        Raises:
            InputError: shapes, lengths or ids that do not fit; a row of padding alone.
        """
        _, pooled, every = self._encode(input_ids, attention_mask, inputs_embeds, bool(output_hidden_states))
        return _finish(self, self.classifier(pooled), labels, every)


class ChelaForPairClassification(ChelaPreTrainedModel):
    """Compares two texts, each encoded by itself with the same weights (retrieval).

    The head sees [a, b, a - b, a b] as natural language inference does, the choice of S4's numbers.
    """

    task = "text-pair-classification"
    main_input_name = "input_ids"
    suite_exceptions: ClassVar[Mapping[str, str]] = {"auto_classes": "transformers has no Auto class for two texts"}
    head_names = ("classifier.out_proj",)

    def __init__(self, config: ChelaConfig) -> None:
        super().__init__(config)
        self.classifier = Classifier(config, 4 * config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        pair_input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pair_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """As `ChelaForSequenceClassification.forward`, for two rows of tokens each."""
        if input_ids.shape[0] != pair_input_ids.shape[0]:
            raise InputError(
                f"pairs need as many second texts as first ones, got {pair_input_ids.shape[0]} and {input_ids.shape[0]}"
            )
        a = self._encode(input_ids, attention_mask, None, False)[1]
        b = self._encode(pair_input_ids, pair_attention_mask, None, False)[1]
        return _finish(self, self.classifier(torch.cat([a, b, a - b, a * b], 1)), labels, None)

    def example_inputs(self, batch_size: int = 1, *, labels: bool = False) -> dict[str, Any]:
        """As for single texts, and the rows in reverse as the second texts."""
        inputs = super().example_inputs(batch_size, labels=labels)
        inputs["pair_input_ids"] = inputs["input_ids"].flip(0)
        inputs["pair_attention_mask"] = inputs["attention_mask"].flip(0)
        return inputs


class ChelaForImageClassification(ChelaPreTrainedModel):
    """Classifies images read row by row as a sequence of pixels: Pathfinder, grey CIFAR-10, Fashion-MNIST."""

    task = "image-classification"
    main_input_name = "pixel_values"
    head_names = ("classifier.out_proj",)
    pixels = True

    def __init__(self, config: ChelaConfig) -> None:
        super().__init__(config)
        self.classifier = Classifier(config, config.hidden_size)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, output_hidden_states: bool | None = None
    ) -> SequenceClassifierOutput:
        """Logits, and the loss where labels are given.

        Args:
            pixel_values: (B, num_channels, H, W) normalised floats, H * W up to `config.max_length`; a model of grey
                images also takes three channels and averages them.
            labels: (B,) int64 classes, or (B, K) floats.
            output_hidden_states: also the states before the first and after every layer.

        Raises:
            InputError: images of another shape, or too many pixels.
        """
        channels = self.config.num_channels
        if pixel_values.dim() != 4 or not pixel_values.is_floating_point():
            raise InputError(
                f"pixel_values must be (B, {channels}, H, W) floats, got {tuple(pixel_values.shape)} "
                f"{pixel_values.dtype}"
            )
        if channels == 1 and pixel_values.shape[1] == 3:
            pixel_values = pixel_values.mean(1, keepdim=True)
        if pixel_values.shape[1] != channels or 0 in pixel_values.shape:
            raise InputError(f"expected images (B, {channels}, H, W), got {tuple(pixel_values.shape)}")
        rows = pixel_values.flatten(2).transpose(1, 2).to(self.classifier.dense.weight.dtype)
        if rows.shape[1] > self.config.max_length:
            raise InputError(
                f"{pixel_values.shape[2]} x {pixel_values.shape[3]} pixels are more than "
                f"max_length={self.config.max_length}; resize the images or build the model with a larger max_length"
            )
        _, pooled, every = self.encoder(rows, None, all_states=bool(output_hidden_states))
        return _finish(self, self.classifier(pooled), labels, every)

    def example_inputs(self, batch_size: int = 1, *, labels: bool = False) -> dict[str, Any]:
        """Seeded images of the configured size."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, self.config.num_channels, self.config.image_size, self.config.image_size)
        weight = self.classifier.dense.weight
        inputs = {"pixel_values": torch.randn(shape, generator=generator).to(weight.device, weight.dtype)}
        if labels:
            inputs["labels"] = (torch.arange(batch_size) % int(self.config.num_labels or 2)).to(weight.device)
        return inputs

    def save_extras(self, folder: Path) -> None:
        """The evaluation transform, in `preprocessor_config.json`."""
        from hybridzoo.data.image_processor import image_processor

        image_processor(self.config).save_pretrained(folder)


def _finish(
    model: ChelaPreTrainedModel, logits: Tensor, labels: Tensor | None, states: tuple[Tensor, ...] | None
) -> SequenceClassifierOutput:
    """Loss and temperature."""
    loss = None
    if labels is not None:
        wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if labels.is_floating_point():
            if labels.shape != logits.shape:
                raise InputError(f"float labels must be {tuple(logits.shape)}, got {tuple(labels.shape)}")
            loss = F.cross_entropy(wide, labels.to(wide.dtype))
        else:
            if labels.shape != logits.shape[:1]:
                raise InputError(f"labels must be ({logits.shape[0]},) classes, got {tuple(labels.shape)}")
            if labels.device.type == "cpu" and not torch.compiler.is_compiling():
                known = labels[labels != -100]
                if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < logits.shape[1]:
                    raise InputError(
                        f"labels run from {int(known.min())} to {int(known.max())}; this model has classes 0 to "
                        f"{logits.shape[1] - 1}"
                    )
            loss = F.cross_entropy(wide, labels.long())
    if not model.training and model.config.temperature != 1.0:
        logits = logits / model.config.temperature
    return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=states)  # type: ignore[arg-type]
