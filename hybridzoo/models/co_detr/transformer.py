"""Deformable encoder, two-stage proposals, and the decoder that refines boxes layer by layer.

DINO (https://arxiv.org/abs/2203.03605) and Deformable DETR (https://arxiv.org/abs/2010.04159) as Co-DETR uses them:
mixed query selection (learned content, proposed boxes) and look forward twice (a layer's box loss reaches the layer
before).

Shapes: B images, L levels, S tokens, Q queries, C = d_model, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hybridzoo.models.co_detr.attention import DeformableAttention, FeedForward, SelfAttention
from hybridzoo.models.co_detr.configuration import CoDetrConfig
from hybridzoo.models.co_detr.geometry import (
    Canvas,
    box_positions,
    encoder_references,
    inverse_sigmoid,
    map_positions,
    token_proposals,
)

DINO_EPS, DEFORMABLE_EPS = 1e-3, 1e-5  # of the inverse sigmoid in decoder and heads


class EncoderLayer(GradientCheckpointingLayer):
    """Deformable self-attention over all maps, feed-forward; post-norm."""

    def __init__(self, config: CoDetrConfig) -> None:
        super().__init__()
        dim = config.d_model
        self.attention = DeformableAttention(dim, config.num_heads, config.num_feature_levels, config.num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, config.ffn_dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, pos: Tensor, references: Tensor, canvas: Canvas) -> Tensor:
        x = self.norm1(self.attention(x, pos, x, references, canvas.shapes, canvas.map_sizes, canvas.padding))
        return self.norm2(self.ffn(x))


class Encoder(nn.Module):
    """The maps, with sine positions and an embedding of their level, through the encoder layers."""

    def __init__(self, config: CoDetrConfig) -> None:
        super().__init__()
        self.dim = config.d_model
        assert config.position_temperature is not None
        assert config.position_offset is not None
        self.temperature, self.offset = config.position_temperature, config.position_offset
        self.level_embed = nn.Parameter(torch.randn(config.num_feature_levels, config.d_model))
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def positions(self, canvas: Canvas) -> Tensor:
        """(B, S, C), or (1, S, C) where nothing is masked."""
        sines = map_positions(canvas, self.dim, self.temperature, self.offset)
        # not by index: its gradient would add the tokens of a level one after the other
        embed = [e.expand(h * w, -1) for e, (h, w) in zip(self.level_embed.float(), canvas.shapes, strict=True)]
        return (sines + torch.cat(embed)).to(self.level_embed.dtype)

    def forward(self, maps: list[Tensor], canvas: Canvas) -> tuple[Tensor, list[Tensor]]:
        """Maps (B, C, H_l, W_l) -> memory (B, S, C), and the states before and after each layer."""
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        pos, references = self.positions(canvas), encoder_references(canvas)
        states = [x]
        for layer in self.layers:
            x = layer(x, pos, references, canvas)
            states.append(x)
        return x, states


class Heads(nn.Module):
    """Class and box heads: one pair per decoder layer, and the last for the encoder's proposals."""

    def __init__(self, config: CoDetrConfig) -> None:
        super().__init__()
        dim, count = config.d_model, config.decoder_layers + 1
        self.classify = nn.ModuleList(nn.Linear(dim, config.label_count) for _ in range(count))
        self.regress = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4))
            for _ in range(count)
        )
        for classify, regress in zip(self.classify, self.regress):
            classify.init_rule = "focal"  # type: ignore[assignment]
            regress[-1].init_rule = "zero"  # type: ignore[index,union-attr]


@dataclass
class Proposals:
    """The encoder's proposals.

    Attributes:
        logits: (B, Q, K) of the selected tokens; of all tokens for Co-Deformable.
        boxes: (B, Q, 4) or (B, S, 4) cxcywh, with gradient.
        references: (B, Q, 4) cxcywh where the decoder starts, without gradient.
        query_pos: (B, Q, C) fixed position of the queries (Co-Deformable), else None.
        tokens: (B, Q) which tokens were selected.
    """

    logits: Tensor
    boxes: Tensor
    references: Tensor
    query_pos: Tensor | None
    tokens: Tensor


class TwoStage(nn.Module):
    """Scores and boxes at every token of the encoder; the best become the decoder's first boxes."""

    def __init__(self, config: CoDetrConfig) -> None:
        super().__init__()
        self.dim, self.num_queries = config.d_model, config.num_queries
        self.dino = config.variant == "dino"
        self.project = nn.Linear(self.dim, self.dim)
        self.norm = nn.LayerNorm(self.dim)
        if not self.dino:
            self.position = nn.Linear(2 * self.dim, 2 * self.dim)
            self.position_norm = nn.LayerNorm(2 * self.dim)

    def forward(self, memory: Tensor, canvas: Canvas, heads: Heads) -> Proposals:
        proposals, counts = token_proposals(canvas)
        kept = memory.masked_fill(~counts[..., None], 0.0)
        x = self.norm(self.project(kept))
        logits = heads.classify[-1](x)  # (B, S, K)
        score = logits.amax(-1) if self.dino else logits[..., 0]
        count = min(self.num_queries, score.shape[1])
        tokens = score.topk(count, dim=1).indices
        proposals = proposals.expand(memory.shape[0], -1, -1)
        if self.dino:  # only the chosen tokens need a box
            boxes = heads.regress[-1](pick(x, tokens)).float() + pick(proposals, tokens)
            return Proposals(pick(logits, tokens), boxes.sigmoid(), boxes.detach().sigmoid(), None, tokens)
        boxes = heads.regress[-1](x).float() + proposals  # logits of cxcywh
        references = pick(boxes, tokens).detach().sigmoid()
        features = box_positions(references, self.dim).to(self.position.weight.dtype)
        pos = self.position_norm(self.position(features))[..., : self.dim]
        return Proposals(logits, boxes.sigmoid(), references, pos, tokens)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Rows of (B, N, C) by (B, M) -> (B, M, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class DecoderLayer(GradientCheckpointingLayer):
    """Self-attention of the queries, deformable attention into memory, feed-forward; post-norm."""

    def __init__(self, config: CoDetrConfig) -> None:
        super().__init__()
        dim = config.d_model
        self.self_attention = SelfAttention(dim, config.num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(dim, config.num_heads, config.num_feature_levels, config.num_points)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, config.ffn_dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, pos: Tensor, memory: Tensor, references: Tensor, canvas: Canvas, allowed: Tensor | None
    ) -> Tensor:
        x = self.norm1(self.self_attention(x, pos, allowed))
        where = canvas.shapes, canvas.map_sizes, canvas.padding
        x = self.norm2(self.cross_attention(x, pos, memory, references, *where))
        return self.norm3(self.ffn(x))


@dataclass
class Decoded:
    """What the decoder made of a set of queries, per layer.

    Attributes:
        states: D tensors (B, Q, C), normed for Co-DINO.
        logits: D tensors (B, Q, K); the last layer's only, if only that was asked for.
        boxes: as many tensors (B, Q, 4) cxcywh.
        references: D tensors (B, Q, 4): where each layer started.
    """

    states: list[Tensor]
    logits: list[Tensor]
    boxes: list[Tensor]
    references: list[Tensor]


class Decoder(nn.Module):
    """Refines boxes layer by layer.

    Co-DINO derives the queries' positions from the current boxes in each layer, and reads classes and boxes from normed
    states; Co-Deformable-DETR keeps the positions and has no norm.
    """

    def __init__(self, config: CoDetrConfig) -> None:
        super().__init__()
        self.dim, self.dino = config.d_model, config.variant == "dino"
        self.eps = DINO_EPS if self.dino else DEFORMABLE_EPS
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        if self.dino:
            self.query_position = nn.Sequential(
                nn.Linear(2 * self.dim, self.dim), nn.ReLU(), nn.Linear(self.dim, self.dim)
            )
            self.norm = nn.LayerNorm(self.dim)

    def forward(
        self,
        content: Tensor,
        query_pos: Tensor | None,
        references: Tensor,
        memory: Tensor,
        canvas: Canvas,
        heads: Heads,
        *,
        allowed: Tensor | None = None,
        all_layers: bool = True,
    ) -> Decoded:
        """Args:
        content: (B, Q, C).
        query_pos: (B, Q, C), or None for Co-DINO.
        references: (B, Q, 4) cxcywh, relative to the image.
        memory: (B, S, C).
        canvas: of the batch.
        heads: class and box heads.
        allowed: (Q, Q) bool mask of the self-attention, True where a row may look.
        all_layers: predictions of every layer, or of the last.
        """
        ratios = canvas.valid_ratios.repeat(1, 1, 2)[:, None]  # (B, 1, L, 4)
        # `start` is where a layer begins, without gradient; `base` the same with the gradient of the layer before it,
        # to which the layer's predicted offset is added (look forward twice).
        start = base = references
        x, result = content, Decoded([], [], [], [references])
        for i, layer in enumerate(self.layers):
            on_maps = start[:, :, None] * ratios
            if self.dino:
                features = box_positions(on_maps[:, :, 0], self.dim, rows_first=True)
                query_pos = self.query_position(features.to(x.dtype))
            assert query_pos is not None
            x = layer(x, query_pos, memory, on_maps, canvas, allowed)
            last = i == len(self.layers) - 1
            state = self.norm(x) if self.dino else x
            result.states.append(state)
            at = None
            offset = heads.regress[i](state).float() if all_layers or last or not self.dino else None
            if all_layers or last:
                assert offset is not None
                result.logits.append(heads.classify[i](state))
                at = inverse_sigmoid(base, self.eps)
                result.boxes.append((offset + at).sigmoid())
            if not last:
                step = heads.regress[i](x).float() if self.dino else offset
                assert step is not None
                if at is None or base.requires_grad:  # else it is the same number without a gradient
                    at = inverse_sigmoid(start, self.eps)
                refined = (step + at).sigmoid()
                base, start = refined, refined.detach()
                result.references.append(refined)
        return result
