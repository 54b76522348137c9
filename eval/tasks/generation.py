"""Tasks of image generation, as keywords of `Task`. The data are images in classes; the model makes new ones."""

from __future__ import annotations

from typing import Any

LITE_METRICS = ("fd_efflite", "kd_efflite", "precision_efflite", "recall_efflite")
FID_METRICS = ("fid", "inception_score", "precision", "recall", "kid")
LOWER_IS_BETTER = ("fd_efflite", "kd_efflite", "fid", "kid")


def _task(name: str, title: str, data: str, protocol: str, primary: str, **more: Any) -> dict[str, Any]:
    judged = ("class_accuracy", "class_accuracy_real")
    metrics = (*LITE_METRICS, *judged, *FID_METRICS) if primary != "fid" else (*FID_METRICS, *LITE_METRICS)
    return {
        "name": name,
        "title": title,
        "data": data,
        "protocol": protocol,
        "metrics": metrics,
        "primary": primary,
        "task": "image-generation",
        **more,
    }


GENERATION_TASKS = (
    _task(
        "fashion_mnist_generation",
        "Fashion-MNIST: samples of ten classes against the test set",
        "fashion_mnist",
        "official",
        "fd_efflite",
    ),
    _task(
        "fashion_mnist_mini_generation",
        "Fashion-MNIST: samples judged by a classifier, against 500 embedded test images",
        "fashion_mnist_mini",
        "embedded",
        "class_accuracy",
    ),
    _task(
        "emoji_generation", "Emoji: samples of nine categories against the test set", "emoji", "80/10/10", "fd_efflite"
    ),
    _task(
        "imagenet1k_generation",
        "ImageNet-1k: samples of 1,000 classes against the validation set",
        "imagenet1k",
        "official",
        "fid",
    ),
)
