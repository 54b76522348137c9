"""The RoI head (Fast R-CNN) on the encoder's output maps: second half of the RoI branch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import roi_align

from hybridzoo.layers.boxes import aligned_iou
from hybridzoo.models.co_detr.anchors import assign_by_iou, decode, from_host, sample
from hybridzoo.models.co_detr.configuration import CoDetrConfig
from hybridzoo.models.co_detr.necks import ConvNorm

POOLED = 7


@dataclass
class Positives:
    """What an auxiliary head hands on for customised queries, per image.

    Attributes:
        boxes: (B, N, 4) xyxy pixels, sampled RoIs or anchors.
        labels: (B, N) int64, the number of classes for background.
        targets: (B, N, 4) xyxy pixels of the box's object; zeros for background.
        features: (B, N, C) of the encoder's maps.
    """

    boxes: Tensor
    labels: Tensor
    targets: Tensor
    features: Tensor


class RoIHead(nn.Module):
    """Classes and boxes of pooled proposals.

    Args:
        config: sizes and samples.
    """

    def __init__(self, config: CoDetrConfig) -> None:
        super().__init__()
        dim, classes, hidden = config.d_model, config.label_count, config.roi_fc_dim
        self.config = config
        self.convs = nn.ModuleList(
            ConvNorm(dim, dim, 3, config.norm_groups, relu=True) for _ in range(config.roi_convs)
        )
        widths = [dim * POOLED**2, *[hidden] * config.roi_fcs]
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.fc_cls = nn.Linear(hidden, classes + 1)
        self.fc_reg = nn.Linear(hidden, 4 if config.roi_class_agnostic else 4 * classes)
        for layer in self.fcs:
            layer.init_rule = "xavier_zero"  # type: ignore[assignment]
        self.fc_cls.init_rule = "normal_0.01"  # type: ignore[assignment]
        self.fc_reg.init_rule = "normal_0.001"  # type: ignore[assignment]

    def pool(self, maps: list[Tensor], strides: list[int], boxes: Tensor, image: Tensor) -> Tensor:
        """7x7 features (N, C, 7, 7) of boxes (N, 4) of the images (N,); large boxes come from coarse maps."""
        size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(torch.log2(size / (14 * strides[0]) + 1e-6)).clamp(0, len(maps) - 1).long()
        order = level.argsort()
        counts = F.one_hot(level, len(maps)).sum(0).tolist()
        rois = torch.cat((image[:, None].to(boxes), boxes), 1).float()[order].split(counts)
        # in fp32: torchvision has no kernel for bfloat16, and corners need the digits
        parts = [
            roi_align(x.float(), some, POOLED, 1.0 / stride, sampling_ratio=0, aligned=True).to(x.dtype)
            for x, some, stride in zip(maps, rois, strides)
        ]
        return torch.cat(parts)[order.argsort()]

    def predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, 7, 7) -> class logits (N, K + 1), background last, and deltas (N, 4 or 4 K)."""
        for conv in self.convs:
            pooled = conv(pooled)
        x = pooled.flatten(1)
        for layer in self.fcs:
            x = layer(x).relu()
        return self.fc_cls(x).float(), self.fc_reg(x).float()

    def forward(
        self,
        maps: list[Tensor],
        strides: list[int],
        proposals: list[Tensor],
        objects_xyxy: Tensor,
        labels: Tensor,
        object_counts: list[int],
    ) -> tuple[dict[str, Tensor], Positives]:
        """Losses of sampled proposals, and the samples.

        Args:
            maps: levels (B, C, H_l, W_l) with their strides.
            proposals: per image (M, 4) xyxy pixels; the objects are added to them.
            objects_xyxy, labels: (B, n, 4) and (B, n), filled up with zeros.
            object_counts: how many of them there are, per image.

        Returns:
            `loss_cls0`, `acc0` (percent), `loss_bbox0`; and the samples, cut to the smallest number of an image.
        """
        config = self.config
        weight, background = config.decoder_layers * config.aux_loss_weight, config.label_count
        device, counts = objects_xyxy.device, [object_counts, [len(x) for x in proposals]]
        found = pad_sequence(proposals, batch_first=True)  # (B, M, 4)
        own = torch.arange(labels.shape[1], device=device).expand_as(labels)
        assigned = torch.cat((own, assign_by_iou(found, objects_xyxy, positive=0.5, negative=0.5)), 1)
        sizes = from_host(torch.tensor(counts), device)[..., None]  # (2, B, 1)
        place = torch.arange(assigned.shape[1], device=device)
        exists = torch.where(place < labels.shape[1], place < sizes[0], place - labels.shape[1] < sizes[1])
        samples = sample(assigned.masked_fill(~exists, -2), config.roi_samples, config.roi_positive_fraction)
        image, index = samples.image, samples.index
        boxes, which = torch.cat((objects_xyxy, found), 1)[image, index], assigned[image, index]
        positive = samples.positive
        object_of = image[positive], which[positive]
        targets = torch.zeros_like(boxes).index_copy(0, positive, objects_xyxy[object_of])
        all_classes = torch.full_like(image, background).index_copy(0, positive, labels[object_of])
        pooled = self.pool(maps, strides, boxes, image)
        logits, deltas = self.predict(pooled)
        count = max(len(pooled), 1)
        losses = {
            "loss_cls0": weight * F.cross_entropy(logits, all_classes, reduction="sum") / count,
            "acc0": (logits.detach().argmax(1) == all_classes).float().sum() * (100.0 / count),
        }
        delta = deltas.view(len(deltas), -1, 4)
        which = torch.zeros_like(positive) if config.roi_class_agnostic else all_classes[positive]
        decoded = decode(boxes[positive], delta[positive, which], config.roi_box_stds)
        giou = (1 - aligned_iou(decoded, targets[positive], generalized=True)).sum()
        losses["loss_bbox0"] = 10 * weight * giou / count + deltas.sum() * 0
        ends = list(itertools.accumulate(p + n for p, n in samples.counts))
        least = min(p + n for p, n in samples.counts)
        rows = torch.tensor([[0], *([end] for end in ends[:-1])]) + torch.arange(least)
        rows = from_host(rows, device)  # (B, least)
        return losses, Positives(boxes[rows], all_classes[rows], targets[rows], pooled.flatten(2).mean(-1)[rows])
