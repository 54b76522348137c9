"""The region proposal network on the encoder's output maps: first half of the RoI branch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from hybridzoo.models.co_detr.anchors import assign_by_iou, decode, encode, grid_anchors, sample
from hybridzoo.models.co_detr.configuration import CoDetrConfig

SCALES = [4 * 2 ** (i / 3) for i in range(3)]
RATIOS = [0.5, 1.0, 2.0]
STDS = (1.0, 1.0, 1.0, 1.0)


class RegionProposals(nn.Module):
    """Objectness and boxes of nine anchors at every place of every map.

    Args:
        config: sizes and samples.
    """

    def __init__(self, config: CoDetrConfig) -> None:
        super().__init__()
        dim, count = config.d_model, len(SCALES) * len(RATIOS)
        self.config = config
        self.rpn_conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.rpn_cls = nn.Conv2d(dim, count, 1)
        self.rpn_reg = nn.Conv2d(dim, 4 * count, 1)
        for layer in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            layer.init_rule = "normal_0.01"  # type: ignore[assignment]

    def forward(
        self, maps: list[Tensor], strides: list[int], objects_xyxy: Tensor, limits: Tensor
    ) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
        """Losses per level, and proposals.

        Args:
            maps: per level (B, C, H_l, W_l).
            strides: per level.
            objects_xyxy: (B, n, 4) pixels, filled up with zeros; all count as one class.
            limits: (B, 4) width, height, width, height of the images.

        Returns:
            `loss_rpn_cls` and `loss_rpn_bbox`, a scalar per level each; per image (M, 4) proposals, best first.
        """
        shapes = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
        anchors = grid_anchors(shapes, strides, SCALES, RATIOS, maps[0].device)
        scores, deltas = [], []
        for x in maps:
            hidden = self.rpn_conv(x).relu()
            scores.append(self.rpn_cls(hidden).permute(0, 2, 3, 1).flatten(1).float())  # (B, A_l)
            deltas.append(self.rpn_reg(hidden).permute(0, 2, 3, 1).reshape(len(x), -1, 4).float())
        losses = self._losses(scores, deltas, anchors, objects_xyxy)
        with torch.no_grad():
            proposals = self._proposals(scores, deltas, anchors, limits)
        return losses, proposals

    def _losses(
        self, scores: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], objects: Tensor
    ) -> dict[str, list[Tensor]]:
        config = self.config
        weight = config.decoder_layers * config.aux_loss_weight
        sizes = [len(a) for a in anchors]
        everything, score, delta = torch.cat(anchors), torch.cat(scores, 1), torch.cat(deltas, 1)
        assigned = assign_by_iou(everything, objects, positive=0.7, negative=0.3, low_quality=0.3)
        samples = sample(assigned, config.rpn_samples, config.rpn_positive_fraction)
        count = sum(max(p, 1) + max(n, 1) for p, n in samples.counts)
        chosen = samples.image * len(everything) + samples.index  # place in the flattened batch
        positive, image = chosen[samples.positive], samples.image[samples.positive]
        index = samples.index[samples.positive]
        target = torch.zeros_like(chosen, dtype=torch.float32).index_fill(0, samples.positive, 1.0)
        loss = F.binary_cross_entropy_with_logits(score.flatten()[chosen], target, reduction="none")
        goals = encode(everything[index], objects[image, assigned[image, index]], STDS)
        error = (delta.flatten(0, 1)[positive] - goals).abs().sum(-1)
        # Levels without samples keep their place in the graph, which distributed training needs.
        per_class = (score * 0).flatten().index_add(0, chosen, loss).view_as(score)
        per_box = (delta * 0).sum(-1).flatten().index_add(0, positive, error).view_as(score)
        scale = weight / count
        return {
            "loss_rpn_cls": [x.sum() * scale for x in per_class.split(sizes, 1)],
            "loss_rpn_bbox": [x.sum() * scale for x in per_box.split(sizes, 1)],
        }

    def _proposals(
        self, scores: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], limits: Tensor
    ) -> list[Tensor]:
        """The boxes of each image after NMS within each level."""
        config = self.config
        kept_scores, kept_boxes, levels = [], [], []
        for level, (score, delta, anchor) in enumerate(zip(scores, deltas, anchors)):
            score = score.sigmoid()  # (B, A_l)
            anchor = anchor.expand(len(score), -1, -1)
            if config.rpn_nms_pre < score.shape[1]:
                score, order = score.sort(dim=1, descending=True)
                score, order = score[:, : config.rpn_nms_pre], order[:, : config.rpn_nms_pre, None].expand(-1, -1, 4)
                delta, anchor = delta.gather(1, order), anchor.gather(1, order)
            kept_scores.append(score)
            kept_boxes.append(decode(anchor, delta, STDS, limits[:, None]))
            levels.append(torch.full((score.shape[1],), level, device=score.device))
        score, boxes, level = torch.cat(kept_scores, 1), torch.cat(kept_boxes, 1), torch.cat(levels)
        fine = (boxes[..., 2:] > boxes[..., :2]).all(-1)
        # Best first, boxes without area last; levels are moved apart so that they do not see each other.
        score, order = score.masked_fill(~fine, -1.0).sort(dim=1, descending=True, stable=True)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        apart = boxes + (level[order] * (boxes.amax() + 1))[..., None]
        proposals = []
        for one, some_boxes, some_scores, count in zip(boxes, apart, score, fine.sum(1).tolist()):
            keep = nms(some_boxes[:count], some_scores[:count], config.rpn_nms_iou)
            proposals.append(one[keep[: config.rpn_max_proposals]])
        return proposals
