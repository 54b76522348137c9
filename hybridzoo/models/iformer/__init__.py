"""iFormer (Inception Transformer): registration only."""

from __future__ import annotations

from hybridzoo.models.iformer.variants import (
    BASE,
    LARGE,
    MINI,
    MINI_ATTENTION,
    SMALL,
    TEST,
    WEIGHTS_FOLDER,
    WEIGHTS_REPOSITORY,
)
from hybridzoo.registry import Family, Weights, register_family, register_model

_HERE = "hybridzoo.models.iformer"
_TASK = "image-classification"

register_family(
    Family(
        name="iformer",
        title="iFormer (Inception Transformer)",
        model_type="iformer",
        config_class=f"{_HERE}.configuration:IFormerConfig",
        model_classes={_TASK: f"{_HERE}.modeling:IFormerForImageClassification"},
        auto_classes={_TASK: "AutoModelForImageClassification"},
        convert=f"{_HERE}.convert",
        paper="https://arxiv.org/abs/2205.12956",
        source="https://github.com/sail-sg/iFormer",
        license="Apache-2.0",
        timm=f"{_HERE}.timm_models",
    )
)

# name -> (sizes, ImageNet-1K top-1 at 224 and at 384 as the authors' README states them)
_PUBLISHED = {"small": (SMALL, 83.4, 84.6), "base": (BASE, 84.6, 85.7), "large": (LARGE, 84.8, 85.8)}
_AT_384 = {"image_size": 384, "position_size": 224, "crop_pct": 1.0}

for _size, (_config, _top1_224, _top1_384) in _PUBLISHED.items():
    for _suffix, _side, _extra, _top1 in (("", 224, {}, _top1_224), ("_384", 384, _AT_384, _top1_384)):
        register_model(
            f"iformer_{_size}{_suffix}",
            family="iformer",
            config=_config | _extra,
            summary=f"iFormer-{_size[0].upper()} of the paper at {_side} pixels",
            tags={
                "sail_in1k": Weights(
                    uri=f"hf-hub:{WEIGHTS_REPOSITORY}:{WEIGHTS_FOLDER}/iformer_{_size}{_suffix}.pth",
                    license="not stated beside the weights (the authors' code is Apache-2.0)",
                    source="https://github.com/sail-sg/iFormer",
                    original=True,
                    metrics={"imagenet1k top-1": _top1},
                )
            },
        )

register_model("iformer_test", family="iformer", config=TEST, summary="tiny random network for tests")
register_model(
    "iformer_mini",
    family="iformer",
    config=MINI,
    summary="28x28 grey images, for Fashion-MNIST",
    tags={
        "fashion_mnist": Weights(
            uri="checkpoints:iformer_mini", license="Apache-2.0", source="checkpoints/iformer_mini/README.md"
        )
    },
)
register_model(
    "iformer_mini_attention",
    family="iformer",
    config=MINI_ATTENTION,
    summary="iformer_mini with attention in place of convolution and max-pooling (ablation)",
)
