"""Collaborative hybrid assignments: auxiliary heads on the encoder's output, decoder queries made of their positives.

Co-DETR (https://arxiv.org/abs/2211.12860), sections 3.2 and 3.3. An RoI branch and an ATSS head supervise the encoder
with one-to-many assignments, and what they call positive enters the decoder as further queries with known targets
("customised positive queries"). Nothing here is used at inference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hybridzoo.layers.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from hybridzoo.models.co_detr.anchors import from_host
from hybridzoo.models.co_detr.atss import ATSSHead
from hybridzoo.models.co_detr.configuration import CoDetrConfig
from hybridzoo.models.co_detr.geometry import Canvas, box_positions, inverse_sigmoid
from hybridzoo.models.co_detr.losses import Objects, Predictions
from hybridzoo.models.co_detr.roi import Positives, RoIHead
from hybridzoo.models.co_detr.rpn import RegionProposals
from hybridzoo.models.co_detr.transformer import DEFORMABLE_EPS, pick

LEAST_QUERIES = 9
Losses = dict[str, Tensor | list[Tensor]]


@dataclass
class KnownQueries:
    """Queries whose targets are known, M per image.

    Attributes:
        name: of the head, in the names of the losses.
        content: (B, M, C).
        query_pos: (B, M, C), or None for Co-DINO.
        references: (B, M, 4) cxcywh.
        labels: (B, M) int64, the number of classes for background.
        targets: (B, M, 4) cxcywh.
        positives: how many queries of each image are positive; they come first.
    """

    name: str
    content: Tensor
    query_pos: Tensor | None
    references: Tensor
    labels: Tensor
    targets: Tensor
    positives: list[int]

    def predictions(self, logits: Tensor, boxes: Tensor) -> Predictions:
        """What the decoder made of them, (D, B, M, K) and (D, B, M, 4), with its targets."""
        place = np.arange(logits.shape[2])
        index = np.where(place < np.array(self.positives)[:, None], place, -1)
        return Predictions(logits, boxes, np.broadcast_to(index, logits.shape[:3]), self.labels, self.targets)


class AuxiliaryQueries(nn.Module):
    """Queries of known boxes for the decoder; one set of projections per head.

    Co-DINO embeds the box alone; Co-Deformable-DETR embeds box, feature and, as one number, the head.

    Args:
        config: sizes.
        heads: how many auxiliary heads there are.
    """

    def __init__(self, config: CoDetrConfig, heads: int) -> None:
        super().__init__()
        dim = self.dim = config.d_model
        self.dino = config.variant == "dino"
        wide = dim if self.dino else 2 * dim
        self.position = nn.ModuleList(nn.Linear(2 * dim, wide) for _ in range(heads))
        self.position_norm = nn.ModuleList(nn.LayerNorm(wide) for _ in range(heads))
        if not self.dino:
            self.feature = nn.ModuleList(nn.Linear(dim, dim) for _ in range(heads))
            self.feature_norm = nn.ModuleList(nn.LayerNorm(dim) for _ in range(heads))
            self.head_embed = nn.Parameter(torch.zeros(heads))

    def forward(self, head: int, boxes_cxcywh: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, M, 4) normalised boxes, (B, M, C) -> content (B, M, C), and positions (B, M, C) or None for Co-DINO."""
        # The boxes pass through the inverse sigmoid and back, as in the original: it bounds them.
        bounded = inverse_sigmoid(boxes_cxcywh, DEFORMABLE_EPS).sigmoid()
        x = box_positions(bounded, self.dim).to(self.position[head].weight.dtype)  # type: ignore[arg-type]
        x = self.position_norm[head](self.position[head](x))
        if self.dino:
            return x, None
        pos, content = x.split(self.dim, dim=-1)
        content = content + self.feature_norm[head](self.feature[head](features.to(x.dtype)))
        return content, pos + self.head_embed[head]


class Collaborative(nn.Module):
    """The auxiliary heads, their losses, and the losses of their customised queries.

    Args:
        config: which heads there are, and their sizes.
    """

    def __init__(self, config: CoDetrConfig) -> None:
        super().__init__()
        dim = config.d_model
        self.config = config
        self.downsample = nn.Sequential(
            nn.Conv2d(dim, dim, 3, stride=2, padding=1), nn.GroupNorm(config.norm_groups, dim)
        )
        if config.use_roi_head:
            self.rpn, self.roi = RegionProposals(config), RoIHead(config)
        if config.use_atss_head:
            self.atss = ATSSHead(config)
        self.head_numbers = [i for i, on in enumerate((config.use_roi_head, config.use_atss_head)) if on]
        if config.use_aux_queries:
            self.queries = AuxiliaryQueries(config, len(self.head_numbers))

    def forward(self, memory: Tensor, canvas: Canvas, objects: Objects) -> tuple[Losses, list[KnownQueries]]:
        """The heads' losses by their original names, and the customised queries of each head.

        Args:
            memory: (B, S, C), the encoder's output.
            canvas: of the batch.
            objects: of the batch.
        """
        sizes = [h * w for h, w in canvas.shapes]
        maps = [
            m.transpose(1, 2).unflatten(2, shape)
            for m, shape in zip(memory.split(sizes, 1), canvas.shapes, strict=True)
        ]
        maps.append(self.downsample(maps[-1]))
        strides = [*self.config.feature_strides, 2 * self.config.feature_strides[-1]]
        labels, boxes = objects.padded
        objects_xyxy = cxcywh_to_xyxy(boxes) * objects.limits[:, None]
        losses: Losses = {}
        positives: list[Positives] = []
        if self.config.use_roi_head:
            rpn_losses, proposals = self.rpn(maps, strides, objects_xyxy, canvas.limits)
            roi_losses, found = self.roi(maps[:-1], strides[:-1], proposals, objects_xyxy, labels, objects.counts)
            losses |= rpn_losses | roi_losses
            positives.append(found)
        if self.config.use_atss_head:
            atss_losses, found = self.atss(maps, strides, objects_xyxy, labels)
            losses |= atss_losses
            positives.append(found)
        if not self.config.use_aux_queries:
            return losses, []
        numbered = enumerate(zip(self.head_numbers, positives))
        return losses, [self._known(place, f"aux{number}", found, objects) for place, (number, found) in numbered]

    def _known(self, place: int, name: str, found: Positives, objects: Objects) -> KnownQueries:
        index, positives = select_queries(found.labels, self.config.label_count, self.config.max_positive_queries)
        limits = objects.limits[:, None]
        references = xyxy_to_cxcywh(pick(found.boxes, index) / limits)
        content, pos = self.queries(place, references, pick(found.features, index))
        return KnownQueries(
            name=name,
            content=content,
            query_pos=pos,
            references=references,
            labels=found.labels.gather(1, index),
            targets=xyxy_to_cxcywh(pick(found.targets, index) / limits),
            positives=positives,
        )


def select_queries(labels: Tensor, background: int, most: int) -> tuple[Tensor, list[int]]:
    """Which samples of each image become queries: (B, N) labels -> (B, M) indices, and how many of them are positive.
    Those come first.

    M is the largest number of positives of an image, at most `most` and at least 9. An image with more keeps a random
    subset, one with fewer is filled up with random background. Where an image has too little of that, all images take
    fewer (the original stops there, or silently leaves the loss out).
    """
    kinds = labels < background, labels == background
    have = torch.stack([kind.sum(1) for kind in kinds], 1).tolist()
    places = torch.cat([kind.nonzero()[:, 1] for kind in kinds])  # of positives, then of background, image by image
    size = min(max(LEAST_QUERIES, min(most, max(p for p, _ in have))), labels.shape[1])
    first, chosen = [0, sum(p for p, _ in have)], []
    for positives, background_count in have:
        if positives > size:
            row = torch.randperm(positives)[:size] + first[0]
        else:
            row = torch.arange(first[0], first[0] + positives)
            if positives < size:
                more = torch.randperm(background_count)[: size - positives] + first[1]
                row = torch.cat((row, more))
        chosen.append(row)
        first = [first[0] + positives, first[1] + background_count]
    return places[from_host(torch.stack(chosen), labels.device)], [min(p, size) for p, _ in have]
