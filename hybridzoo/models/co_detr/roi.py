"""The RoI head (Fast R-CNN) on the encoder's output maps: second half of the RoI branch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from hybridzoo.layers.boxes import aligned_iou
from hybridzoo.models.co_detr.anchors import assign_by_iou, decode, sample
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

    def pool(self, maps: list[Tensor], strides: list[int], boxes: list[Tensor]) -> Tensor:
        """7x7 features (N, C, 7, 7) of boxes; large boxes come from coarse maps."""
        rois = torch.cat(boxes)
        image = torch.cat([torch.full((len(b), 1), float(i), device=rois.device) for i, b in enumerate(boxes)])
        size = ((rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1])).sqrt()
        level = torch.floor(torch.log2(size / (14 * strides[0]) + 1e-6)).clamp(0, len(maps) - 1).long()
        rois = torch.cat((image, rois), 1)
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], POOLED, POOLED)
        for i, (x, stride) in enumerate(zip(maps, strides)):
            index = (level == i).nonzero().flatten()
            # in fp32: torchvision has no kernel for bfloat16, and corners need the digits
            part = roi_align(x.float(), rois[index].float(), POOLED, 1.0 / stride, sampling_ratio=0, aligned=True)
            pooled = pooled.index_copy(0, index, part.to(pooled.dtype))
        return pooled

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
        objects_xyxy: list[Tensor],
        labels: list[Tensor],
    ) -> tuple[dict[str, Tensor], Positives]:
        """Losses of sampled proposals, and the samples.

        Args:
            maps: levels (B, C, H_l, W_l) with their strides.
            proposals: per image (M, 4) xyxy pixels; the objects are added to them.
            objects_xyxy, labels: per image (n_i, 4) and (n_i,).

        Returns:
            `loss_cls0`, `acc0` (percent), `loss_bbox0`; and the samples, cut to the smallest number of an image.
        """
        config = self.config
        weight, background = config.decoder_layers * config.aux_loss_weight, config.label_count
        boxes, targets, classes = [], [], []
        for found, gt, label in zip(proposals, objects_xyxy, labels):
            assigned = assign_by_iou(found, gt, positive=0.5, negative=0.5)
            own = torch.arange(len(gt), device=gt.device)
            candidates, assigned = torch.cat((gt, found)), torch.cat((own, assigned))
            positive, negative = sample(assigned, config.roi_samples, config.roi_positive_fraction)
            boxes.append(candidates[torch.cat((positive, negative))])
            nothing = gt.new_zeros(len(negative), 4)
            targets.append(torch.cat((gt[assigned[positive]], nothing)))
            classes.append(torch.cat((label[assigned[positive]], label.new_full((len(negative),), background))))
        pooled = self.pool(maps, strides, boxes)
        logits, deltas = self.predict(pooled)
        all_classes, count = torch.cat(classes), max(len(pooled), 1)
        positive = (all_classes < background).nonzero().flatten()
        losses = {
            "loss_cls0": weight * F.cross_entropy(logits, all_classes, reduction="sum") / count,
            "acc0": (logits.detach().argmax(1) == all_classes).float().sum() * (100.0 / count),
        }
        delta = deltas.view(len(deltas), -1, 4)
        which = torch.zeros_like(positive) if config.roi_class_agnostic else all_classes[positive]
        found = decode(torch.cat(boxes)[positive], delta[positive, which], config.roi_box_stds)
        giou = (1 - aligned_iou(found, torch.cat(targets)[positive], generalized=True)).sum()
        losses["loss_bbox0"] = 10 * weight * giou / count + deltas.sum() * 0
        least = min(len(b) for b in boxes)
        mean = pooled.flatten(2).mean(-1).split([len(b) for b in boxes])
        cut = [torch.stack([x[:least] for x in parts]) for parts in (boxes, classes, targets, mean)]
        return losses, Positives(*cut)
