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
        dim, groups, classes = config.d_model, config.norm_groups, config.num_labels
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
        self, maps: list[Tensor], strides: list[int], objects_xyxy: list[Tensor], labels: list[Tensor]
    ) -> tuple[dict[str, list[Tensor]], Positives]:
        """Losses per level, and all anchors with what they were assigned to.

        Args:
            maps: levels (B, C, H_l, W_l) with their strides.
            objects_xyxy, labels: per image (n_i, 4) pixels and (n_i,).

        Returns:
            `loss_cls1`, `loss_bbox1`, `loss_centerness1`, a scalar per level each; and the anchors.
        """
        config, batch = self.config, maps[0].shape[0]
        weight, background = config.decoder_layers * config.aux_loss_weight, config.num_labels
        shapes = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
        anchors = grid_anchors(shapes, strides, [SCALE], [1.0], maps[0].device)
        everything, sizes = torch.cat(anchors), [len(a) for a in anchors]
        classes, targets, count = [], [], 0
        for gt, label in zip(objects_xyxy, labels):
            assigned = assign_atss(anchors, gt, config.atss_topk)
            positive = assigned >= 0
            padded_boxes = torch.cat((gt, gt.new_zeros(1, 4)))  # index -1 reads the last row
            padded_labels = torch.cat((label, label.new_full((1,), background)))
            targets.append(padded_boxes[assigned])
            classes.append(padded_labels[assigned])
            count = count + positive.sum().clamp(min=1)
        all_classes, all_targets = torch.stack(classes), torch.stack(targets)  # (B, A), (B, A, 4)
        logits, deltas, centerness = self.predict(maps)
        average = at_least_one(count, logits[0])
        collected: dict[str, list[Tensor]] = {"loss_cls1": [], "loss_bbox1": [], "loss_centerness1": []}
        total_centerness = logits[0].new_zeros(())
        parts = zip(all_classes.split(sizes, 1), all_targets.split(sizes, 1), anchors, logits, deltas, centerness)
        for label, target, anchor, logit, delta, centre in parts:
            one_hot = F.one_hot(label, background + 1)[..., :background].to(logit)
            collected["loss_cls1"].append(weight * sigmoid_focal(logit, one_hot).sum() / average)
            where = (label < background).nonzero(as_tuple=True)
            anchor = anchor[where[1]]
            goal = centerness_of(anchor, target[where])
            overlap = aligned_iou(decode(anchor, delta[where], STDS), target[where], generalized=True)
            collected["loss_bbox1"].append(2 * weight * ((1 - overlap) * goal).sum() + delta.sum() * 0)
            entropy = F.binary_cross_entropy_with_logits(centre[where], goal, reduction="sum")
            collected["loss_centerness1"].append(weight * entropy / average + centre.sum() * 0)
            total_centerness = total_centerness + goal.sum()
        shared = at_least_one(total_centerness, logits[0])
        collected["loss_bbox1"] = [x / shared for x in collected["loss_bbox1"]]
        features = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        return collected, Positives(everything.expand(batch, -1, -1), all_classes, all_targets, features)


def centerness_of(anchors: Tensor, boxes: Tensor) -> Tensor:
    """sqrt(min / max of left and right times min / max of top and bottom) of the anchors' centres in boxes: (…)."""
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    before, after = centre - boxes[..., :2], boxes[..., 2:] - centre
    ratio = torch.minimum(before, after) / torch.maximum(before, after)
    return ratio.prod(-1).sqrt()
