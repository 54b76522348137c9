"""Sizes of the named MambaAD models."""

from __future__ import annotations

from typing import Any

RESNET34: dict[str, Any] = {}
LITE0: dict[str, Any] = {
    "teacher": "tf_efficientnet_lite0",
    "teacher_channels": (24, 40, 112),
    "image_mean": (127 / 255,) * 3,  # the published weights take (x - 127) / 128
    "image_std": (128 / 255,) * 3,
    "dims": (224, 112, 40, 24),
    "bottleneck_width": 64,
}
MINI = LITE0 | {
    "image_size": 128,
    "dims": (128, 112, 40, 24),
    "depths": (2, 2, 2, 2),
    "d_state": 8,
    "bottleneck_width": 40,
    "drop_path_rate": 0.1,
    "gaussian_sigma": 2.0,
}
TEST: dict[str, Any] = {
    "teacher": "test_efficientnet",
    "teacher_channels": (24, 32, 48),
    "image_size": 64,
    "dims": (64, 48, 32, 24),
    "depths": (2, 2, 2, 3),
    "d_state": 4,
    "num_directions": 4,
    "bottleneck_width": 16,
    "gaussian_sigma": 1.0,
}
