"""MambaAD: registration only."""

from __future__ import annotations

from hybridzoo.models.mambaad.variants import LITE0, MINI, RESNET34, TEST
from hybridzoo.registry import Family, Weights, register_family, register_model, shipped

_HERE = "hybridzoo.models.mambaad"
_TASK = "anomaly-detection"

register_family(
    Family(
        name="mambaad",
        title="MambaAD",
        model_type="mambaad",
        config_class=f"{_HERE}.configuration:MambaADConfig",
        model_classes={_TASK: f"{_HERE}.modeling:MambaADForAnomalyDetection"},
        auto_classes={_TASK: "AutoModel"},
        convert=f"{_HERE}.convert",
        paper="https://arxiv.org/abs/2404.06564",
        source="https://github.com/lewandofskee/MambaAD",
        license="none stated",
    )
)

# folder and file of the authors' weights -> image AUROC, pixel AUROC and AU-PRO as their README states them
_PUBLISHED = {
    "mvtec": ("mvtec/mambaad_mvtec.pth", "MVTec-AD", (98.6, 97.7, 93.1)),
    "visa": ("visa/mambaad_visa.pth", "VisA", (94.3, 98.5, 91.0)),
    "realiad": ("realiad/mambaad_realiad.pth", "Real-IAD", (86.3, 98.5, 90.5)),
    "medical": ("medical/mambaad_medical.pth", "Uni-Medical", (83.7, 96.9, 87.5)),
    "mvtec3d": ("mvtec3d/mambaad_mvtec3d.pth", "MVTec-3D", (86.2, 98.6, 93.6)),
    "cocoad0": ("cocoad/coco0/mambaad_coco0.pth", "COCO-AD split 0", (75.3, 75.6, 46.2)),
}

register_model(
    "mambaad_resnet34",
    family="mambaad",
    config=RESNET34,
    summary="the paper's: ResNet-34 teacher, 256 pixels",
    tags={
        tag: Weights(
            uri=f"hf-hub:Lewandofski/MambaAD:{path}",
            license="not stated beside the weights",
            source="https://github.com/lewandofskee/MambaAD",
            original=True,
            metrics={f"{name} image AUROC": image, f"{name} pixel AUROC": pixel, f"{name} AU-PRO": pro},
        )
        for tag, (path, name, (image, pixel, pro)) in _PUBLISHED.items()
    },
)
register_model(
    "mambaad_lite0", family="mambaad", config=LITE0, summary="EfficientNet-Lite0 teacher, 256 pixels, smaller decoder"
)
register_model("mambaad_test", family="mambaad", config=TEST, summary="tiny random network for tests")
register_model(
    "mambaad_mini",
    family="mambaad",
    config=MINI,
    summary="EfficientNet-Lite0 teacher, 128 pixels, for textures",
    tags=shipped("mambaad_mini", "textures_cc0", "Apache-2.0"),
)
for _suffix, _change, _what in (
    ("conv", {"mixer": "conv"}, "convolutions of as many parameters in place of the scans"),
    ("sweep", {"scan_type": "sweep"}, "row by row in place of Hilbert's curve"),
    ("one_direction", {"num_directions": 1}, "one scan direction in place of eight"),
):
    register_model(
        f"mambaad_mini_{_suffix}", family="mambaad", config=MINI | _change, summary=f"mambaad_mini with {_what}"
    )
