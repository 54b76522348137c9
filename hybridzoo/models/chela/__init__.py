"""CHELA and the baselines that share its code: registration only."""

from __future__ import annotations

from typing import Any

from hybridzoo.registry import Family, register_family, register_model

_HERE = "hybridzoo.models.chela"

register_family(
    Family(
        name="chela",
        title="CHELA",
        model_type="chela",
        config_class=f"{_HERE}.configuration:ChelaConfig",
        model_classes={
            "feature-extraction": f"{_HERE}.modeling:ChelaModel",
            "text-classification": f"{_HERE}.modeling:ChelaForSequenceClassification",
            "text-pair-classification": f"{_HERE}.modeling:ChelaForPairClassification",
            "image-classification": f"{_HERE}.modeling:ChelaForImageClassification",
        },
        auto_classes={
            "feature-extraction": "AutoModel",
            "text-classification": "AutoModelForSequenceClassification",
            "image-classification": "AutoModelForImageClassification",
        },
        convert=f"{_HERE}.convert",
        paper="https://arxiv.org/abs/2406.08128",
        source="no official code; re-implemented from the paper's description "
        "(its baseline Mega converts from https://github.com/facebookresearch/mega)",
        license="none stated (no official code)",
    )
)

TEXT, PAIR, IMAGE = "text-classification", "text-pair-classification", "image-classification"


def _register(name: str, summary: str, task: str = TEXT, **config: Any) -> None:
    register_model(name, family="chela", task=task, config=config, summary=summary)


# Sizes of Mega's Table 8 (arXiv 2209.10655), kernels of SGConv's configurations (branch `preview` of its repository).
def _sizes(
    depth: int, width: int, ffn: int, z: int, value: int, kernel: dict[str, Any], **config: Any
) -> dict[str, Any]:
    options = {"z_width": z, "value_width": value, **kernel}
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "ffn_hidden_size": ffn,
        "mixer_options": options,
        **config,
    }


_CAT: dict[str, Any] = {"decay_min": 2.0, "decay_max": 2.0}
_GREY: dict[str, Any] = {"norm": "batch", "pre_norm": True, "dropout": 0.0, "num_channels": 1}
LISTOPS = _sizes(
    6, 80, 160, 64, 160, {"kernel_dim": 1, **_CAT}, vocab_size=18, max_length=2048, num_labels=10, norm="layer"
)
BYTES = _sizes(4, 128, 256, 64, 256, {"kernel_dim": 2, **_CAT}, vocab_size=259, max_length=4096, norm="scale")
RETRIEVAL = _sizes(
    6, 128, 256, 64, 256, {"kernel_dim": 1, **_CAT}, vocab_size=259, max_length=4000, norm="scale", num_documents=2
)
_register("chela_lra_listops", "Long Range Arena: ListOps", **LISTOPS)
_register("chela_lra_listops_literal", "ListOps, the plainest reading of the layer", preset="literal", **LISTOPS)
_register("chela_lra_text", "Long Range Arena: IMDb byte by byte", **BYTES)
_register("chela_lra_retrieval", "Long Range Arena: pairs of papers (AAN)", PAIR, **RETRIEVAL)
_register(
    "chela_lra_image",
    "Long Range Arena: grey CIFAR-10 pixel by pixel",
    IMAGE,
    **_sizes(
        8,
        160,
        320,
        96,
        320,
        {"kernel_dim": 32, "decay": "fixed", "decay_min": 1.0, "decay_max": 1.0},
        **{**_GREY, "max_length": 1024, "image_size": 32, "num_labels": 10, "image_mean": [0.48], "image_std": [0.24]},
    ),
)
_register(
    "chela_lra_pathfinder",
    "Long Range Arena: Pathfinder, 32 x 32",
    IMAGE,
    **_sizes(6, 128, 256, 64, 256, {"kernel_dim": 32, **_CAT}, max_length=1024, image_size=32, **_GREY),
)
_register(
    "chela_lra_pathx",
    "Long Range Arena: Path-X, Pathfinder at 128 x 128",
    IMAGE,
    **_sizes(
        4,
        64,
        128,
        32,
        128,
        {"kernel_dim": 64, "init_scale": 1, "decay_min": 1.0, "decay_max": 3.0},
        max_length=16384,
        image_size=128,
        **_GREY,
    ),
)

# Baselines at (nearly) equal parameters: the same encoder with one part of the layer, or another mixer.
_NO_CONV = {"z_width": 64, "value_width": 178, "use_short": False, "use_long": False}
_NO_ATTENTION = {"value_width": 184, "kernel_dim": 1, "use_attention": False, **_CAT}
_BASE = {k: v for k, v in LISTOPS.items() if k != "mixer_options"}
_register("chela_lra_listops_linear", "ListOps baseline: linear attention alone", mixer_options=_NO_CONV, **_BASE)
_register(
    "chela_lra_listops_conv",
    "ListOps baseline: gated short and long convolutions",
    mixer_options=_NO_ATTENTION,
    **_BASE,
)
_register(
    "chela_lra_listops_mega",
    "ListOps baseline: Mega",
    mixer="mega",
    mixer_options={"z_width": 64, "value_width": 160, "averages": 16},
    **_BASE,
)
_register(
    "chela_lra_listops_transformer",
    "ListOps baseline: softmax attention",
    mixer="attention",
    mixer_options={"num_heads": 4},
    **{**_BASE, "ffn_hidden_size": 220},
)
MINI = _sizes(
    3, 96, 192, 48, 192, {"kernel_dim": 1, **_CAT}, vocab_size=18, max_length=512, num_labels=10, norm="layer"
)
_register("chela_mini", "short ListOps (100 to 500 tokens)", **MINI)
_MINI = {k: v for k, v in MINI.items() if k != "mixer_options"}
_register(
    "chela_mini_linear",
    "ablation of the mini model: linear attention alone, equal parameters",
    mixer_options={"z_width": 48, "value_width": 208, "use_short": False, "use_long": False},
    **_MINI,
)
_register(
    "chela_mini_conv",
    "ablation of the mini model: gated convolutions alone, equal parameters",
    mixer_options={"value_width": 212, "kernel_dim": 1, "use_attention": False, **_CAT},
    **_MINI,
)
_register(
    "chela_mini_transformer",
    "ablation of the mini model: softmax attention with learned positions, equal parameters",
    mixer="attention",
    mixer_options={"num_heads": 4},
    **{**_MINI, "ffn_hidden_size": 250},
)
_TEST = _sizes(2, 16, 32, 8, 16, {"kernel_dim": 4}, vocab_size=20, max_length=64, num_labels=3)
_register("chela_test", "tiny and random, for tests", **_TEST)
_register("chela_pair_test", "tiny and random, pairs", PAIR, num_documents=2, **_TEST)
_register(
    "chela_image_test",
    "tiny and random, images",
    IMAGE,
    image_size=8,
    **{**_TEST, "norm": "batch", "pre_norm": True},
)
_register(
    "chela_mega_test",
    "tiny and random, Mega's layers",
    mixer="mega",
    **{**_TEST, "mixer_options": {"z_width": 8, "value_width": 16, "averages": 4}},
)
