"""Co-DETR: DETRs with Collaborative Hybrid Assignments Training (Zong, Song and Liu, https://arxiv.org/abs/2211.12860).

Two detectors: Co-DINO and Co-Deformable-DETR. Backbone, neck, deformable encoder, proposals, decoder; in training also
denoising queries (Co-DINO), an RoI branch and an ATSS head on the encoder's output, and decoder queries of their
positives. Original code: Sense-X/Co-DETR (mmdet 2.25) and its port in mmdetection 3; here without mmcv, with the same
numbers. Different from the original:

- an image that gives too few samples for customised queries makes the batch use fewer, where the original stops;
- an encoder with fewer tokens than queries (tiny images) gives as many queries as tokens;
- boxes of models without padding mask (large-scale jitter) are given relative to the image as well;
- the parameters have names of their own; `convert.py` translates.

Shapes: B images, C = d_model, S tokens of all levels, Q queries, K classes, D decoder layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from hybridzoo.modeling import ZooModel
from hybridzoo.models.co_detr.anchors import from_host
from hybridzoo.models.co_detr.backbone_weights import load_backbone, read_backbone
from hybridzoo.models.co_detr.backbones import Backbone
from hybridzoo.models.co_detr.collaborative import Collaborative, KnownQueries
from hybridzoo.models.co_detr.configuration import CoDetrConfig
from hybridzoo.models.co_detr.denoising import Denoising, DenoisingQueries
from hybridzoo.models.co_detr.geometry import Canvas, make_canvas
from hybridzoo.models.co_detr.initialization import init_weights, set_transformer_rules
from hybridzoo.models.co_detr.inputs import check_images, check_mask, read_labels
from hybridzoo.models.co_detr.losses import Objects, Predictions, match, query_losses
from hybridzoo.models.co_detr.necks import ChannelMapper, SimpleFeaturePyramid
from hybridzoo.models.co_detr.transformer import Decoded, Decoder, Encoder, Heads, Proposals, TwoStage

LOSS_NAMES = ("loss_cls", "loss_bbox", "loss_iou")


@dataclass
class CoDetrObjectDetectionOutput(ModelOutput):
    """What the model returns.

    Attributes:
        loss: scalar fp32, the sum of every entry of `loss_dict` whose name contains "loss".
        loss_dict: name -> scalar, the original's names; losses per level are summed.
        logits: (B, Q, K), a sigmoid each; there is no class for background.
        pred_boxes: (B, Q, 4) cxcywh relative to the image, in [0, 1].
        encoder_last_hidden_state: (B, S, C), if hidden states are asked for.
        hidden_states: D tensors (B, Q, C) of the decoder, if asked for.
        auxiliary_logits: (D, B, Q, K) of every decoder layer, if hidden states are asked for or in training.
        auxiliary_boxes: (D, B, Q, 4) with them.
        enc_outputs_class: logits of the encoder's proposals, (B, Q, K), or (B, S, K) for Co-Deformable-DETR; with them.
        enc_outputs_coord: their boxes (B, Q or S, 4) cxcywh; with them.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    auxiliary_logits: Tensor | None = None
    auxiliary_boxes: Tensor | None = None
    enc_outputs_class: Tensor | None = None
    enc_outputs_coord: Tensor | None = None


class CoDetrForObjectDetection(ZooModel):
    """Co-DINO or Co-Deformable-DETR.

    Args:
        config: sizes, losses and labels.
    """

    config_class = CoDetrConfig
    base_model_prefix = "co_detr"
    main_input_name = "pixel_values"
    family = "co_detr"
    task = "object-detection"
    export_outputs = ("logits", "pred_boxes")
    suite_exceptions: ClassVar[Mapping[str, str]] = {
        "bf16_autocast": "the best proposals of random weights are near ties, which bf16 orders otherwise; "
        "tests/models compares from the proposals on"
    }
    head_names = ("heads.classify",)
    _no_split_modules: ClassVar[list[str]] = ["EncoderLayer", "DecoderLayer", "RotaryBlock", "SwinStage"]
    _supports_sdpa = True

    def __init__(self, config: CoDetrConfig) -> None:
        super().__init__(config)
        self.num_labels = config.label_count
        self.backbone = Backbone(config)
        if config.backbone == "vit":
            self.neck: nn.Module = SimpleFeaturePyramid(config.feature_channels[0], config.d_model)
        else:
            self.neck = ChannelMapper(
                config.feature_channels, config.d_model, config.num_feature_levels, config.norm_groups
            )
        self.encoder = Encoder(config)
        self.two_stage = TwoStage(config)
        self.query_embedding = nn.Embedding(config.num_queries, config.d_model)
        self.query_embedding.init_rule = "normal"  # type: ignore[assignment]
        self.decoder = Decoder(config)
        self.heads = Heads(config)
        if config.use_denoising:
            self.denoising = Denoising(config)
        if config.use_roi_head or config.use_atss_head:
            self.collaborative = Collaborative(config)
        parts = [self.encoder, self.two_stage, self.decoder]
        if config.use_aux_queries:
            parts.append(self.collaborative.queries)
        for part in parts:
            set_transformer_rules(part)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module)

    @classmethod
    def is_head_key(cls, key: str) -> bool:
        """Whether a parameter's size follows the number of classes."""
        parts = (
            "heads.classify.",
            "denoising.label_embedding.",
            "collaborative.roi.fc_",
            "collaborative.atss.atss_cls.",
        )
        return key.startswith(parts)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[Mapping[str, Any]] | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CoDetrObjectDetectionOutput | tuple[Any, ...]:
        """Detect objects.

        In training every loss is computed, with denoising queries and auxiliary heads. In eval mode with labels the
        loss is that of the query head alone, which draws no random numbers.

        Args:
            pixel_values: (B, num_channels, H, W) normalised floats, padded at the right and the bottom with zeros.
            pixel_mask: (B, H, W) integers or bool, 1 at the image, 0 at padding; None: no padding.
            labels: per image a dictionary with `class_labels` (n,) int64 and `boxes` (n, 4) cxcywh relative to the
                image (not to the padded canvas); n may be 0, other keys are ignored.
            output_hidden_states: also return the decoder's states and predictions of every layer, and the encoder's.
            return_dict: False gives a plain tuple.

        Returns:
            `CoDetrObjectDetectionOutput`.

        Raises:
            InputError: images, mask or labels of the wrong shape, type or range.
        """
        check_images(pixel_values, self.config.num_channels)
        dtype = self.encoder.level_embed.dtype
        pixel_values = pixel_values.to(dtype)
        batch = pixel_values.shape[0]  # not len(): it would fix the size of an exported graph
        mask = check_mask(pixel_mask, pixel_values)
        pixel_values, mask = self._pad(pixel_values, mask)
        size = pixel_values.shape[-2], pixel_values.shape[-1]
        given = None  # before the network is queued on the device, for the check of the values waits for the device
        if labels is not None:
            given = read_labels(labels, batch, self.config.label_count, pixel_values.device)
        maps = self.neck(self.backbone(pixel_values))
        canvas = make_canvas(mask if self.config.use_padding_mask else None, maps, size)
        # Without a padding mask the network sees one canvas; outside, boxes are relative to the image all the same.
        rescale = None
        if not self.config.use_padding_mask and mask is not None:
            rescale = canvas.limits / make_canvas(mask, maps, size).limits
        objects = None
        if given is not None:  # boxes relative to the canvas
            on_canvas = given[1] if rescale is None else [some / by for some, by in zip(given[1], rescale)]
            objects = Objects(given[0], on_canvas, canvas.limits)
        memory, _ = self.encoder(maps, canvas)
        proposals = self.two_stage(memory, canvas, self.heads)
        wants_states = output_hidden_states if output_hidden_states is not None else self.config.output_hidden_states
        everything = bool(wants_states or objects is not None)
        dn, losses, known = None, cast(dict[str, Any], {}), cast(list[KnownQueries], [])
        count = proposals.references.shape[1]
        if objects is not None and self.training:
            if self.config.use_denoising:
                dn = self.denoising(objects.labels, objects.boxes, count)
            if self.config.use_roi_head or self.config.use_atss_head:
                losses, known = self.collaborative(memory, canvas, objects)
        decoded = self._decode_queries(memory, proposals, canvas, dn, known, all_layers=everything)
        first = 0 if dn is None else dn.content.shape[1]
        matched = slice(first, first + count) if first or known else slice(None)
        logits, boxes = decoded.logits[-1][:, matched], decoded.boxes[-1][:, matched]
        output = CoDetrObjectDetectionOutput(logits=logits, pred_boxes=boxes)
        if objects is not None:
            summed = {k: torch.stack(v).sum() if isinstance(v, list) else v for k, v in losses.items()}
            output.loss_dict = self._losses(proposals, objects, decoded, dn, known) | summed
            output.loss = torch.stack([v for k, v in output.loss_dict.items() if "loss" in k]).sum()
        if rescale is not None:
            output.pred_boxes = boxes * rescale[:, None]
        if wants_states:
            output.encoder_last_hidden_state = memory
            output.hidden_states = tuple(s[:, matched] for s in decoded.states)
            output.auxiliary_logits = torch.stack([x[:, matched] for x in decoded.logits])
            output.auxiliary_boxes = torch.stack([x[:, matched] for x in decoded.boxes])
            output.enc_outputs_class, output.enc_outputs_coord = proposals.logits, proposals.boxes
        return output if (return_dict if return_dict is not None else self.config.return_dict) else output.to_tuple()

    def _pad(self, pixel_values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Zeros at the right and the bottom up to a multiple of what the backbone needs; the mask knows of them."""
        height, width = pixel_values.shape[-2:]
        down, right = -height % self.backbone.multiple, -width % self.backbone.multiple
        if not down and not right:
            return pixel_values, mask
        if mask is None:
            mask = pixel_values.new_ones(pixel_values.shape[0], height, width, dtype=torch.bool)
        return F.pad(pixel_values, (0, right, 0, down)), F.pad(mask, (0, right, 0, down))

    def _decode_queries(
        self,
        memory: Tensor,
        proposals: Proposals,
        canvas: Canvas,
        dn: DenoisingQueries | None,
        known: list[KnownQueries],
        *,
        all_layers: bool,
    ) -> Decoded:
        """The matched queries; in training behind the denoising queries and before the customised ones of each head.

        One pass for all, so that memory is projected once a layer. The mask keeps them apart.
        """
        references, query_pos = proposals.references, proposals.query_pos
        count = references.shape[1]
        content = self.query_embedding.weight[:count].expand(memory.shape[0], -1, -1)
        allowed = None
        if dn is not None:
            content = torch.cat((dn.content.to(content.dtype), content), 1)
            references = torch.cat((dn.references, references), 1)
            allowed = dn.allowed
        if known:
            blocks = [allowed if allowed is not None else memory.new_ones((count, count), dtype=torch.bool)]
            blocks += [memory.new_ones((one.content.shape[1],) * 2, dtype=torch.bool) for one in known]
            allowed = torch.block_diag(*blocks)
            content = torch.cat((content, *(one.content.to(content.dtype) for one in known)), 1)
            references = torch.cat((references, *(one.references for one in known)), 1)
            if query_pos is not None:
                query_pos = torch.cat((query_pos, *(cast(Tensor, one.query_pos) for one in known)), 1)
        return self.decoder(
            content, query_pos, references, memory, canvas, self.heads, allowed=allowed, all_layers=all_layers
        )

    def _losses(
        self,
        proposals: Proposals,
        objects: Objects,
        decoded: Decoded,
        dn: DenoisingQueries | None,
        known: list[KnownQueries],
    ) -> dict[str, Tensor]:
        """Losses of the decoder's queries and of the proposals by their original names."""
        config, quality = self.config, self.config.variant == "dino"
        labels, targets = objects.padded
        sizes = [0 if dn is None else dn.content.shape[1], proposals.references.shape[1]]
        sizes += [one.content.shape[1] for one in known]
        logits, boxes = (torch.stack(x).split(sizes, 2) for x in (decoded.logits, decoded.boxes))
        enc_logits, enc_boxes = proposals.logits[None], proposals.boxes[None]
        if quality:  # there are as many proposals as queries: they are one more layer of the matching
            index = match(torch.cat((logits[1], enc_logits)), torch.cat((boxes[1], enc_boxes)), objects)
            index, enc_index, enc_labels = index[:-1], index[-1:], labels
        else:  # proposals know one class only
            single = Objects([x * 0 for x in objects.labels], objects.boxes, objects.limits)
            index, enc_index = match(logits[1], boxes[1], objects), match(enc_logits, enc_boxes, single)
            enc_labels = single.padded[0]
        named = [
            ("{}{}", 1.0, Predictions(logits[1], boxes[1], index, labels, targets)),
            ("{}enc_{}", 1.0, Predictions(enc_logits, enc_boxes, enc_index, enc_labels, targets)),
        ]
        if dn is not None:
            dn_index = np.broadcast_to(dn.object_index, logits[0].shape[:3])
            named.append(("{}dn_{}", 1.0, Predictions(logits[0], boxes[0], dn_index, labels, targets)))
        for one, some_logits, some_boxes in zip(known, logits[2:], boxes[2:]):
            pattern = "{}{}_" + one.name
            named.append((pattern, config.aux_query_loss_weight, one.predictions(some_logits, some_boxes)))
        values = query_losses([p for _, _, p in named], objects.limits, quality=quality)  # (3, S)
        names, weights = [], []
        for pattern, weight, predictions in named:
            depth = len(predictions.index)
            prefixes = [*(f"d{i}." for i in range(depth - 1)), ""]
            names += [[pattern.format(prefix, name) for name in LOSS_NAMES] for prefix in prefixes]
            weights += [weight] * depth
        values = values * from_host(torch.tensor(weights), values.device)
        losses = dict(zip((name for three in names for name in three), values.t().flatten().unbind()))
        if self.training and config.use_denoising and dn is None:  # no object at all: the embedding stays in the graph
            losses["dn_loss_cls"] = self.denoising.label_embedding.weight[0, 0].float() * 0
        return losses

    def example_inputs(self, batch_size: int = 1, *, labels: bool = False) -> dict[str, Any]:
        """Seeded images as large as the configuration resizes them to, and two objects each if labels are asked for."""
        config, weight = self.config, self.encoder.level_embed
        side = config.pad_size
        height, width = (side, side) if side else (config.shortest_edge, config.longest_edge)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(batch_size, config.num_channels, height, width, generator=generator)
        inputs: dict[str, Any] = {"pixel_values": pixels.to(weight.device, weight.dtype)}
        if labels:
            boxes = torch.tensor([[0.3, 0.4, 0.3, 0.5], [0.6, 0.5, 0.5, 0.4]], device=weight.device)
            inputs["labels"] = [
                {
                    "class_labels": torch.tensor([i % config.label_count, 0], device=weight.device),
                    "boxes": boxes.clone(),
                }
                for i in range(batch_size)
            ]
        return inputs

    def layer_groups(self) -> list[list[str]]:
        """Name prefixes for layer-wise learning rates, from the input on: the backbone's parts, then all else."""
        parts = {
            "vit": (["patch_embed", "pos_embed"], "blocks"),
            "swin": (["swin.embeddings"], "swin.encoder.layers"),
            "resnet": (["embedder"], "encoder.stages"),
        }
        if self.config.backbone not in parts:
            return [["backbone"], []]
        first, layers = parts[self.config.backbone]
        count = len(self.backbone.net.get_submodule(layers))  # type: ignore[arg-type]
        groups = [first, *([f"{layers}.{i}"] for i in range(count))]
        return [*([f"backbone.net.{name}" for name in group] for group in groups), []]

    def no_weight_decay(self) -> set[str]:
        """A ViT's position table."""
        return {"backbone.net.pos_embed"} if self.config.backbone == "vit" else set()

    def load_backbone(self, state: Mapping[str, Tensor], *, where: str = "the backbone's weights") -> None:
        """Start the backbone from ImageNet weights (see `backbone_weights.load_backbone`)."""
        load_backbone(self.backbone, state, where=where)

    @classmethod
    def from_backbone(cls, source: str | Path, **values: Any) -> Self:
        """A model in train mode whose backbone has ImageNet weights; everything above it is random.

        Args:
            source: a weights file, or a name of timm with its tag (see `backbone_weights.read_backbone`).
            **values: configuration values.

        Raises:
            CheckpointError: the weights cannot be read or are of another network.
        """
        model = cls(CoDetrConfig(**values))
        model.load_backbone(read_backbone(model.backbone, source), where=str(source))
        return model.train()

    def without_auxiliary_heads(self) -> Self:
        """This model for inference alone, sharing its weights: no auxiliary heads, no denoising embeddings.

        Its outputs are the same, since nothing of that is read in eval mode; a saved file is a quarter smaller.
        """
        values = self.config.to_dict()
        off = ("use_roi_head", "use_atss_head", "use_aux_queries", "use_denoising")
        config = cast(CoDetrConfig, type(self.config).from_dict(values | dict.fromkeys(off, False)))
        with torch.device("meta"):
            model = type(self)(config)
        state = self.state_dict(keep_vars=True)
        model.load_state_dict({k: state[k] for k in model.state_dict()}, assign=True)
        return model.train(self.training)

    def output_shape(self, inputs: Mapping[str, Any]) -> tuple[int, ...]:
        """(B, Q, K) of the logits."""
        batch, _, height, width = inputs["pixel_values"].shape
        sides = ((-(-height // s), -(-width // s)) for s in self.config.feature_strides)
        return (batch, min(self.config.num_queries, sum(h * w for h, w in sides)), self.config.label_count)

    def save_extras(self, folder: Path) -> None:
        """The image processor, in `preprocessor_config.json`."""
        from hybridzoo.data.detection.processing import processor_for

        processor_for(self.config).save_pretrained(folder)
