"""Contrastive denoising queries of DINO (https://arxiv.org/abs/2203.03605, section 3.3).

Every object of an image enters the decoder in G groups, each with a positive query (its box and label, a little wrong)
and a negative one (its box, more wrong). The positives learn to restore the object, the negatives to be background.
They need no matching, and the attention mask keeps the matched queries from seeing them.

Random numbers are drawn in the original's order and number (from torch's default generator of the boxes' device).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hybridzoo.layers.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from hybridzoo.models.co_detr.anchors import from_host
from hybridzoo.models.co_detr.configuration import CoDetrConfig
from hybridzoo.models.co_detr.geometry import inverse_sigmoid
from hybridzoo.models.co_detr.transformer import DINO_EPS


@dataclass
class Noise:
    """The random draws for n repeated objects.

    Attributes:
        label_chance: (n,) in [0, 1).
        new_labels: (m,) for the m objects whose chance is below label_noise / 2.
        sign: (n, 4) of -1 and 1.
        part: (n, 4) in [0, 1).
    """

    label_chance: Tensor
    new_labels: Tensor
    sign: Tensor
    part: Tensor


def draw_noise(boxes: Tensor, num_labels: int, label_noise: float) -> Noise:
    """Draw for repeated boxes (n, 4)."""
    chance = torch.rand_like(boxes[:, 0])
    chosen = torch.nonzero(chance < 0.5 * label_noise).flatten()
    labels = torch.randint_like(chosen, 0, num_labels)
    sign = torch.randint_like(boxes, 0, 2, dtype=torch.float32) * 2.0 - 1.0
    return Noise(chance, labels, sign, torch.rand_like(boxes))


@dataclass
class DenoisingQueries:
    """Denoising queries of a batch, P of them per image, before the matched ones.

    Attributes:
        content: (B, P, C) label embeddings; 0 where an image has fewer objects.
        references: (B, P, 4) cxcywh; 0.5 there.
        allowed: (P + Q, P + Q) bool, True where a row may look.
        object_index: (B, P) on the host, index of the object that a slot must restore, -1 for background.
        groups: G.
    """

    content: Tensor
    references: Tensor
    allowed: Tensor
    object_index: np.ndarray
    groups: int


class Denoising(nn.Module):
    """Makes denoising queries of a batch's objects.

    Args:
        config: `num_dn_queries`, `dn_label_noise`, `dn_box_noise`, `d_model` and the number of labels are read.
    """

    def __init__(self, config: CoDetrConfig) -> None:
        super().__init__()
        self.num_labels, self.num_queries = config.label_count, config.num_dn_queries
        self.label_noise, self.box_noise = config.dn_label_noise, config.dn_box_noise
        self.label_embedding = nn.Embedding(config.label_count, config.d_model)
        self.label_embedding.init_rule = "normal"  # type: ignore[assignment]

    def forward(self, labels: list[Tensor], boxes_cxcywh: list[Tensor], num_matched: int) -> DenoisingQueries | None:
        """Args:
            labels: per image (n_i,) int64.
            boxes_cxcywh: per image (n_i, 4), relative to the image.
            num_matched: Q.

        Returns:
            The queries, or None if no image has an object.
        """
        counts = [len(x) for x in labels]
        most = max(counts, default=0)
        if most == 0:
            return None
        groups = max(1, self.num_queries // most)
        halves, device = 2 * groups, labels[0].device
        all_labels, all_boxes = torch.cat(labels).repeat(halves), torch.cat(boxes_cxcywh).float().repeat(halves, 1)
        total = sum(counts)
        noise = draw_noise(all_boxes, self.num_labels, self.label_noise)
        chosen = torch.nonzero(noise.label_chance < 0.5 * self.label_noise).flatten()
        noisy_labels = all_labels.scatter(0, chosen, noise.new_labels)
        # Within a group the first `total` repeats are positives, the others negatives.
        negative = (torch.arange(halves, device=device) % 2).repeat_interleave(total)[:, None]
        shift = (noise.part + negative) * noise.sign
        half_size = all_boxes[:, 2:].repeat(1, 2) / 2
        noisy = (cxcywh_to_xyxy(all_boxes) + shift * half_size * self.box_noise).clamp(0, 1)
        references = inverse_sigmoid(xyxy_to_cxcywh(noisy), DINO_EPS)

        image = np.repeat(np.arange(len(counts)), counts)
        index = np.concatenate([np.arange(n) for n in counts])
        slots = np.repeat(np.arange(halves), total) * most + np.tile(index, halves)
        images, slot = from_host(torch.from_numpy(np.stack((np.tile(image, halves), slots))), device)
        padded = halves * most
        content = self.label_embedding(noisy_labels)
        spread = content.new_zeros(len(counts), padded, content.shape[1]).index_put((images, slot), content)
        logits = references.new_zeros(len(counts), padded, 4).index_put((images, slot), references)
        objects = np.full((len(counts), groups, 2, most), -1)  # the second half of a group is negative
        for i, n in enumerate(counts):
            objects[i, :, 0, :n] = np.arange(n)
        allowed = self._allowed(groups, most, num_matched, device)
        return DenoisingQueries(spread, logits.sigmoid(), allowed, objects.reshape(len(counts), padded), groups)

    @staticmethod
    def _allowed(groups: int, most: int, num_matched: int, device: torch.device) -> Tensor:
        """Every row sees the matched queries; a denoising row also its own group."""
        padded = 2 * groups * most
        group = torch.arange(padded + num_matched, device=device) // (2 * most)
        is_dn = torch.arange(padded + num_matched, device=device) < padded
        same = is_dn[:, None] & is_dn & (group[:, None] == group)
        return same | ~is_dn[None, :]
