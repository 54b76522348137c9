"""Object detection data: COCO, LVIS, Pascal VOC and CSV annotations, stand-in sets, augmentation and batches.

Importing this package imports neither torch nor transformers; `processing`, `transforms` and `collate` do.
"""

from hybridzoo.data.detection.split import DetectionSplit, Target

__all__ = ["DetectionSplit", "Target"]
