"""A family that another package brings: the smallest that passes the registry-wide suite. Registration only."""

from hybridzoo.registry import Family, register_family, register_model

register_family(
    Family(
        name="toy",
        title="Toy",
        model_type="hybridzoo_toy",
        config_class="hybridzoo_toy.configuration:ToyConfig",
        model_classes={"image-classification": "hybridzoo_toy.modeling:ToyForImageClassification"},
        auto_classes={"image-classification": "AutoModelForImageClassification"},
        convert="hybridzoo_toy.convert",
        paper="none",
        source="none",
        license="Apache-2.0",
    )
)
register_model("toy_test", family="toy", config={"widths": (8, 8), "image_size": 8}, summary="for tests")
register_model("toy_wide", family="toy", config={"widths": (16, 16, 16)}, summary="for tests of several sizes")
register_model(
    "toy_named",
    family="toy",
    config={"id2label": {0: "cat", 1: "dog", 2: "cow"}, "label2id": {"cat": 0, "dog": 1, "cow": 2}},
    summary="with names of classes",
)
