"""MaskMamba: registration only."""

from __future__ import annotations

from hybridzoo.models.maskmamba.variants import MINI, SIZES, TEST
from hybridzoo.registry import Family, register_family, register_model, shipped

_HERE = "hybridzoo.models.maskmamba"
_TASK = "image-generation"

register_family(
    Family(
        name="maskmamba",
        title="MaskMamba",
        model_type="maskmamba",
        config_class=f"{_HERE}.configuration:MaskMambaConfig",
        model_classes={_TASK: f"{_HERE}.modeling:MaskMambaForImageGeneration"},
        auto_classes={_TASK: "AutoModel"},
        convert=None,
        paper="https://arxiv.org/abs/2409.19937",
        source="no official code; re-implemented from the paper's description",
        license="none stated (no official code)",
    )
)

for _name, _size in SIZES.items():
    register_model(
        f"maskmamba_{_name}",
        family="maskmamba",
        config=_size,
        summary=f"MaskMamba-{_name.upper()}, class-conditional, 256 pixels",
    )
    register_model(
        f"maskmamba_t2i_{_name}",
        family="maskmamba",
        config={**_size, "condition": "text"},
        summary=f"MaskMamba-{_name.upper()}, text-conditional (FLAN-T5-XL features), 256 pixels",
    )
register_model("maskmamba_test", family="maskmamba", config=TEST, summary="tiny random network for tests")
register_model(
    "maskmamba_mini",
    family="maskmamba",
    config=MINI,
    summary="28x28 grey images, for Fashion-MNIST",
    tags=shipped("maskmamba_mini", "fashion_mnist", "Apache-2.0"),
)
