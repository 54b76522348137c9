"""The ATSS head (https://arxiv.org/abs/1912.02424) on the encoder's output maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridzoo.layers.boxes import aligned_iou
from hybridzoo.models.co_detr.anchors import assign_atss, decode, grid_anchors
from hybridzoo.models.co_detr.configuration import CoDetrConfig
from hybridzoo.models.co_detr.losses import at_least_one, sigmoid_focal
from hybridzoo.models.co_detr.necks import ConvNorm
from hybridzoo.models.co_detr.roi import Positives

SCALE = 8.0  # side of the one anchor in strides
STDS = (0.1, 0.1, 0.2, 0.2)


class ATSSHead(nn.Module):
    """Classes, boxes and centerness of one square anchor at every place.

    Args:
        config: sizes.
    """

    def __init__(self, config: CoDetrConfig) -> None:
        super().__init__()
        dim, groups, classes = config.d_model, config.norm_groups, config.label_count
        self.config = config
        self.cls_convs = nn.ModuleList(ConvNorm(dim, dim, 3, groups, relu=True) for _ in range(config.atss_convs))
        self.reg_convs = nn.ModuleList(ConvNorm(dim, dim, 3, groups, relu=True) for _ in range(config.atss_convs))
        self.atss_cls = nn.Conv2d(dim, classes, 3, padding=1)
        self.atss_reg = nn.Conv2d(dim, 4, 3, padding=1)
        self.atss_centerness = nn.Conv2d(dim, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(config.num_feature_levels + 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.init_rule = "normal_0.01"  # type: ignore[assignment]
        self.atss_cls.init_rule = "normal_0.01_focal"  # type: ignore[assignment]

    def predict(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per level class logits (B, A_l, K), deltas (B, A_l, 4), centerness logits (B, A_l)."""
        result: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for x, scale in zip(maps, self.scales, strict=True):
            a = b = x
            for conv in self.cls_convs:
                a = conv(a)
            for conv in self.reg_convs:
                b = conv(b)
            heads = (self.atss_cls(a), self.atss_reg(b) * scale, self.atss_centerness(b))
            for collected, y in zip(result, heads):
                collected.append(y.permute(0, 2, 3, 1).flatten(1, 2).float())
        return result[0], result[1], [c[..., 0] for c in result[2]]

    def forward(
        self, maps: list[Tensor], strides: list[int], objects_xyxy: Tensor, labels: Tensor
    ) -> tuple[dict[str, list[Tensor]], Positives]:
        """Losses per level, and all anchors with what they were assigned to.

        Args:
            maps: levels (B, C, H_l, W_l) with their strides.
            objects_xyxy, labels: (B, n, 4) pixels and (B, n), filled up with zeros.

        Returns:
            `loss_cls1`, `loss_bbox1`, `loss_centerness1`, a scalar per level each; and the anchors.
        """
        config, batch = self.config, maps[0].shape[0]
        weight, background = config.decoder_layers * config.aux_loss_weight, config.label_count
        shapes = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
        anchors = grid_anchors(shapes, strides, [SCALE], [1.0], maps[0].device)
        everything, sizes = torch.cat(anchors), [len(a) for a in anchors]
        assigned = assign_atss(anchors, objects_xyxy, config.atss_topk)  # (B, A)
        # Index -1 reads the last row: a box of zeros, the label of background.
        boxes, padded = F.pad(objects_xyxy, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=background)
        row = torch.where(assigned < 0, boxes.shape[1] - 1, assigned)
        all_targets = boxes.gather(1, row[..., None].expand(-1, -1, 4))  # (B, A, 4)
        all_classes = padded.gather(1, row)  # (B, A)
        logits, deltas, centerness = (torch.cat(x, 1) for x in self.predict(maps))
        average = at_least_one((assigned >= 0).sum(1).clamp(min=1).sum(), logits)
        where = (assigned >= 0).nonzero(as_tuple=True)
        anchor, target = everything[where[1]], all_targets[where]
        goal = centerness_of(anchor, target)
        overlap = aligned_iou(decode(anchor, deltas[where], STDS), target, generalized=True)
        shared = at_least_one(goal.sum(), logits)
        entropy = F.binary_cross_entropy_with_logits(centerness[where], goal, reduction="none")
        one_hot = F.one_hot(all_classes, background + 1)[..., :background].to(logits)
        focal = sigmoid_focal(logits, one_hot).sum((0, 2))  # (A,)
        level = torch.cat([torch.full((n,), i, device=row.device) for i, n in enumerate(sizes)])

        def per_level(values: Tensor, unused: Tensor) -> list[Tensor]:
            # Levels without a positive keep their place in the graph, which distributed training needs.
            zeros = torch.stack([x.sum() * 0 for x in unused.split(sizes, 1)])
            return list(zeros.index_add(0, level[where[1]], values).unbind())

        collected = {
            "loss_cls1": [weight * x.sum() / average for x in focal.split(sizes)],
            "loss_bbox1": per_level(2 * weight * (1 - overlap) * goal / shared, deltas),
            "loss_centerness1": per_level(weight * entropy / average, centerness),
        }
        features = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        return collected, Positives(everything.expand(batch, -1, -1), all_classes, all_targets, features)


def centerness_of(anchors: Tensor, boxes: Tensor) -> Tensor:
    """sqrt(min / max of left and right times min / max of top and bottom) of the anchors' centres in boxes: (…)."""
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    before, after = centre - boxes[..., :2], boxes[..., 2:] - centre
    ratio = torch.minimum(before, after) / torch.maximum(before, after)
    return ratio.prod(-1).sqrt()
