"""Co-DETR: registration only."""

from __future__ import annotations

from hybridzoo.models.co_detr.variants import MINI, MINI_ABLATIONS, MODELS, TEST
from hybridzoo.registry import Family, register_family, register_model, shipped

_HERE = "hybridzoo.models.co_detr"
_TASK = "object-detection"

register_family(
    Family(
        name="co_detr",
        title="Co-DETR",
        model_type="co_detr",
        config_class=f"{_HERE}.configuration:CoDetrConfig",
        model_classes={_TASK: f"{_HERE}.modeling:CoDetrForObjectDetection"},
        auto_classes={_TASK: "AutoModelForObjectDetection"},
        convert=f"{_HERE}.convert",
        paper="https://arxiv.org/abs/2211.12860",
        source="https://github.com/Sense-X/Co-DETR",
        license="MIT",
        image_processor="hybridzoo.data.detection.processing:DetectionImageProcessor",
    )
)
for _name, (_config, _what) in MODELS.items():
    register_model(_name, family="co_detr", config=_config, summary=_what)
register_model("co_detr_test", family="co_detr", config=TEST, summary="tiny random network for tests")
register_model(
    "co_detr_mini",
    family="co_detr",
    config=MINI,
    summary="Co-DINO, EfficientNet-Lite0, for small data",
    tags=shipped("co_detr_mini", "trees", "Apache-2.0"),
)
for _suffix, (_change, _what) in MINI_ABLATIONS.items():
    register_model(
        f"co_detr_mini_{_suffix}", family="co_detr", config=MINI | _change, summary=f"co_detr_mini as {_what}"
    )
