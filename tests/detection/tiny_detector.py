"""A detector without weights, for tests: it finds the bright rectangles of an image by looking at its pixels.

It takes what every detector takes (pixel_values, pixel_mask) and gives logits and boxes, so everything around a model
is tested with results that are known.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))  # class 0, 1, 2
NAMES = {0: "red", 1: "green", 2: "blue"}


class ColourDetector(nn.Module):
    """One query per class: the extent of the pixels of that colour; a low score where there is none."""

    task = "object-detection"

    def __init__(self, **config: Any):
        super().__init__()
        values = {"shortest_edge": 64, "longest_edge": 128, "id2label": NAMES, "num_labels": 3, "name_or_path": ""}
        self.config = SimpleNamespace(**values | config)
        self.calls: list[tuple[int, ...]] = []
        self.offset = nn.Parameter(torch.zeros(()))

    @property
    def device(self) -> torch.device:
        return self.offset.device

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor, labels: Any = None) -> dict[str, Tensor]:
        self.calls.append(tuple(pixel_values.shape))
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        logits, boxes = [], []
        for image, mask in zip(pixel_values * std + mean, pixel_mask):
            height, width = int(mask[:, 0].sum()), int(mask[0].sum())
            image = image[:, :height, :width]
            for k in range(3):
                others = [c for c in range(3) if c != k]
                rows, columns = ((image[k] > 0.5) & (image[others].amax(0) < 0.5)).nonzero(as_tuple=True)
                score = torch.full((3,), -8.0)
                box = torch.tensor([0.5, 0.5, 0.1, 0.1])
                if len(rows):
                    score[k] = 3.0 - k
                    x1, x2, y1, y2 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
                    box = torch.tensor(
                        [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
                    )
                logits.append(score)
                boxes.append(box)
        batch = len(pixel_values)
        loss = self.offset if labels is None else self.offset + sum(len(one["class_labels"]) for one in labels) / batch
        return {
            "logits": torch.stack(logits).reshape(batch, 3, 3) + self.offset,
            "pred_boxes": torch.stack(boxes).reshape(batch, 3, 4),
            "loss": loss,
        }
