"""MaskMamba: masked image generation with Mamba and attention layers.

Paper: Chen et al. 2024, "MaskMamba: A Hybrid Mamba-Transformer Model for Masked Image Generation",
https://arxiv.org/abs/2409.19937. There is no public code and there are no weights: this is re-implemented from the
paper's description. Every choice that the description leaves open is a field of `MaskMambaConfig`;
docs/models/maskmamba.md lists them. Codes come from LlamaGen's tokenizer (family `llamagen_vq`), decoding is
MaskGIT's (`decoding.py`).

    codes (B, N), some masked -> embedding + position --+
    class or text -> C tokens + position ---------------+-> [first half | condition | second half] -> layers -> norm
                                                                        -> logits (B, N, K) at the tokens' places

Legend: B batch, N image tokens, C condition tokens, D width, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from hybridzoo.errors import InputError
from hybridzoo.modeling import ZooModel
from hybridzoo.models.maskmamba.blocks import ClassCondition, LayerStack, TextCondition, make_norm
from hybridzoo.models.maskmamba.configuration import MaskMambaConfig
from hybridzoo.models.maskmamba.inputs import check_classes, check_codes, check_texts
from hybridzoo.models.maskmamba.masking import Masking
from hybridzoo.models.maskmamba.mixers import MambaBase
from hybridzoo.models.maskmamba.sampling import generate

INITIAL_STD = 0.02


@dataclass
class MaskMambaOutput(ModelOutput):
    """`loss` (scalar, with labels) and `logits` (B, N, K)."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class MaskMambaForImageGeneration(ZooModel):
    """Predicts the codes of masked tokens, and generates images' codes with that.

    Args:
        config: sizes and open choices.
    """

    config_class = MaskMambaConfig
    main_input_name = "input_ids"
    family = "maskmamba"
    task = "image-generation"
    head_names = ("condition.embedding_table",)
    _no_split_modules: ClassVar[list[str]] = ["MaskMambaBlock"]
    _supports_sdpa = True

    config: MaskMambaConfig

    def __init__(self, config: MaskMambaConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.num_classes: int = config.num_labels or 1
        self.token_embedding = nn.Embedding(config.codebook_size + 1, width)
        self.token_position = nn.Parameter(torch.empty(config.grid_size**2, width))
        self.condition_position = nn.Parameter(torch.empty(config.num_condition_tokens, width))
        self.condition = (
            ClassCondition(self.num_classes, width)
            if config.condition == "class"
            else TextCondition(config.text_dim, width, config.text_length)
        )
        self.drop = nn.Dropout(config.dropout)
        self.stack = LayerStack(config)
        self.norm = make_norm(width, config)
        self.head = None if config.tie_head else nn.Linear(width, config.codebook_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Normal of 0.02 for matrices and tables, zero biases; the scans have Mamba's own initial values."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            nn.init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (MambaBase, TextCondition)):
            module.set_initial_values()
        elif module is self:
            nn.init.trunc_normal_(self.token_position, std=INITIAL_STD)
            nn.init.trunc_normal_(self.condition_position, std=INITIAL_STD)

    # Forward -------------------------------------------------------------------------------------------------------

    def features(
        self,
        input_ids: Tensor,
        class_labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        condition_drop: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Normalised features of the image tokens, (B, N, D). Arguments as in `forward`.

        `positions` is `self.positions(h, w)`, from callers that want features of one grid many times.
        """
        ids, grid = check_codes(input_ids, self.config)
        x = self.token_embedding(ids) + (self.positions(*grid) if positions is None else positions)
        condition = self._condition(len(ids), class_labels, text_embeds, condition_drop)
        x, at = self._join(x, condition.to(x.dtype) + self.condition_position)
        x = self.stack(self.drop(x))
        x = torch.cat((x[:, : at[0]], x[:, at[1] :]), dim=1)
        return self.norm(x)

    def logits(self, features: Tensor) -> Tensor:
        """(…, D) -> (…, K)."""
        if self.head is not None:
            return self.head(features)
        return F.linear(features, self.token_embedding.weight[: self.config.codebook_size])

    def forward(
        self,
        input_ids: Tensor,
        class_labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        condition_drop: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> MaskMambaOutput | tuple[Any, ...]:
        """Logits of every token's code.

        Args:
            input_ids: (B, N) integers, codes 0 to K - 1 and K where masked, row-major over the configured grid; or
                (B, h, w) for a grid of any size.
            class_labels: (B,) classes; `config.num_labels` is the null class. Of a class-conditional model.
            text_embeds: (B, up to text_length, text_dim) features of the text encoder; shorter texts are filled up
                with zeros from the left. Of a text-conditional model.
            condition_drop: (B,) bool, rows that get the null condition instead.
            labels: (B, N) or (B, h, w) codes; -100 is not counted. With them a loss is returned: cross-entropy, mean
                over the masked tokens (others have the weight `config.unmasked_loss_weight`).
            return_dict: False gives a plain tuple.

        Returns:
            `MaskMambaOutput`.

        Raises:
            InputError: codes, classes or features of the wrong shape, type or range, or the wrong kind of condition.
        """
        logits = self.logits(self.features(input_ids, class_labels, text_embeds, condition_drop))
        loss = None if labels is None else self._loss(logits, labels, input_ids)
        output = MaskMambaOutput(loss=loss, logits=logits)
        return output if (return_dict if return_dict is not None else self.config.return_dict) else output.to_tuple()

    def positions(self, height: int, width: int) -> Tensor:
        """(h * w, D) position table; a grid other than the configured one gets it resized (bicubic)."""
        side = self.config.grid_size
        if (height, width) == (side, side):
            return self.token_position
        table = self.token_position.float().view(1, side, side, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, (height, width), mode="bicubic", antialias=False)
        return table.flatten(2).squeeze(0).t().to(self.token_position.dtype)

    def _condition(
        self, batch: int, class_labels: Tensor | None, text_embeds: Tensor | None, drop: Tensor | None
    ) -> Tensor:
        """(B, C, D)"""
        if isinstance(self.condition, ClassCondition):
            labels = check_classes(class_labels, text_embeds, batch, self.condition.num_classes)
            return self.condition(labels.to(self.token_position.device), drop)
        texts = check_texts(text_embeds, class_labels, batch, self.config)
        return self.condition(texts.to(self.token_position.device, self.token_position.dtype), drop)

    def _join(self, tokens: Tensor, condition: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens and condition in one sequence, and where the condition begins and ends in it."""
        length, count = tokens.shape[1], condition.shape[1]
        start = {"head": 0, "middle": length // 2, "tail": length}[self.config.condition_position]
        joined = torch.cat((tokens[:, :start], condition, tokens[:, start:]), dim=1)
        return joined, (start, start + count)

    def _loss(self, logits: Tensor, labels: Tensor, input_ids: Tensor) -> Tensor:
        c = self.config
        labels, ids = labels.flatten(1), input_ids.flatten(1)
        if labels.shape != ids.shape or labels.is_floating_point():
            raise InputError(
                f"labels must be integer codes of shape {tuple(ids.shape)}, got {labels.dtype} {tuple(labels.shape)}"
            )
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
            low, high = int(labels.min()), int(labels.max())
            if high >= c.codebook_size or (low < 0 and low != -100):
                raise InputError(f"labels run from {low} to {high}; codes are 0 to {c.codebook_size - 1}, or -100")
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = F.cross_entropy(
            wide.flatten(0, 1), labels.flatten().long(), reduction="none", label_smoothing=c.label_smoothing
        )
        weight = torch.where(ids == c.mask_token_id, 1.0, float(c.unmasked_loss_weight)) * (labels != -100)
        return (each * weight.flatten()).sum() / weight.sum().clamp_min(1e-6)

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:
        """Codes of new images; see `hybridzoo.models.maskmamba.sampling.generate` for all options.

        Args:
            class_labels: (B,) classes, or text_embeds: (B, C, text_dim).
            steps, schedule, temperature, cfg_scale, cfg_schedule, generator, …: how they are decoded.

        Returns:
            (B, h, w) int64 codes for the tokenizer's `decode_code`.
        """
        return generate(self, *args, **kwargs)

    # The zoo's conventions -------------------------------------------------------------------------------------------

    def example_inputs(self, batch_size: int = 1, *, labels: bool = False) -> dict[str, Any]:
        """Seeded codes, half of them masked, with classes or text features."""
        c, device, generator = self.config, self.token_position.device, torch.Generator().manual_seed(0)
        codes = torch.randint(c.codebook_size, (batch_size, c.grid_size**2), generator=generator)
        masked = torch.rand(codes.shape, generator=generator) < 0.5
        masked[:, 0] = True
        inputs: dict[str, Any] = {"input_ids": codes.masked_fill(masked, c.mask_token_id).to(device)}
        if c.condition == "class":
            inputs["class_labels"] = (torch.arange(batch_size) % self.num_classes).to(device)
        else:
            texts = torch.randn(batch_size, c.text_length, c.text_dim, generator=generator)
            inputs["text_embeds"] = texts.to(device, self.token_position.dtype)
        return inputs | ({"labels": codes.to(device)} if labels else {})

    def output_shape(self, inputs: Mapping[str, Any]) -> tuple[int, ...]:
        """(B, N, K) of the logits."""
        return (*inputs["input_ids"].flatten(1).shape, self.config.codebook_size)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay: tables of positions and tokens, and the scans' A and D."""
        names = {"token_position", "condition_position", "token_embedding.weight", "condition.embedding_table.weight"}
        scans = {n for n, _ in self.named_parameters() if n.endswith(("A_log", "A_b_log", ".D", ".D_b"))}
        return scans | {n for n, _ in self.named_parameters() if n in names}

    def masking(self, *, training: bool = True) -> Masking:
        """What turns codes into training batches."""
        return Masking.of(self.config, training=training)

    def class_names(self) -> Sequence[str]:
        """Names of the classes in the order of `class_labels`."""
        return [self.config.id2label[i] for i in range(self.config.num_labels)]  # type: ignore[index]
