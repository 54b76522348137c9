"""CHELA and the baselines that share its code: registration only; neither torch nor transformers is imported here."""

from __future__ import annotations

from typing import Any

from hybridzoo.registry import Family, register_family, register_model, shipped

_HERE = "hybridzoo.models.chela"
TEXT, PAIR, IMAGE = "text-classification", "text-pair-classification", "image-classification"

register_family(
    Family(
        name="chela",
        title="CHELA",
        model_type="chela",
        config_class=f"{_HERE}.configuration:ChelaConfig",
        model_classes={
            "feature-extraction": f"{_HERE}.modeling:ChelaModel",
            TEXT: f"{_HERE}.modeling:ChelaForSequenceClassification",
            PAIR: f"{_HERE}.modeling:ChelaForPairClassification",
            IMAGE: f"{_HERE}.modeling:ChelaForImageClassification",
            "text-generation": f"{_HERE}.language:ChelaForCausalLM",
        },
        auto_classes={
            "feature-extraction": "AutoModel",
            TEXT: "AutoModelForSequenceClassification",
            IMAGE: "AutoModelForImageClassification",
            "text-generation": "AutoModelForCausalLM",
        },
        convert=f"{_HERE}.convert",
        paper="https://arxiv.org/abs/2406.08128",
        source="no official code; re-implemented from the paper's description "
        "(its baseline Mega converts from https://github.com/facebookresearch/mega)",
        license="none stated (no official code)",
    )
)


def _register(name: str, summary: str, task: str, **config: Any) -> None:
    tags = shipped(name, "listops_short", "Apache-2.0") if name == "chela_mini" else None
    register_model(name, family="chela", task=task, config=config, summary=summary, tags=tags)


def _sizes(
    depth: int, width: int, ffn: int, z: int, value: int, kernel: dict[str, Any], **config: Any
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "ffn_hidden_size": ffn,
        "mixer_options": {"z_width": z, "value_width": value, **kernel},
        **config,
    }


def _with_baselines(
    name: str, summary: str, task: str, sizes: dict[str, Any], linear: int, conv: int, mega: int, attention: int
) -> None:
    """CHELA, and at equal parameters (to 0.5 %) the same encoder with one part of the layer or with another mixer.

    Args:
        name, summary, task: of CHELA's registration.
        sizes: its configuration.
        linear: values of linear attention alone (which gets rotary positions, as nothing else tells it the order).
        conv: values of the gated convolutions alone.
        mega: values of Mega.
        attention: feed-forward width of the Transformer.
    """
    options = sizes["mixer_options"]
    z, kernel = options["z_width"], {k: v for k, v in options.items() if k not in ("z_width", "value_width")}
    # one size of classifier for all, whatever their mixers' widths are
    rest = {
        **{k: v for k, v in sizes.items() if k != "mixer_options"},
        "classifier_hidden_size": options["value_width"],
    }
    alone = {"z_width": z, "value_width": linear, "use_short": False, "use_long": False, "positions": "rotary"}
    gated = {"value_width": conv, "use_attention": False, **kernel}
    average = {"z_width": z, "value_width": mega, "averages": 16}
    _register(name, summary, task, **sizes)
    _register(f"{name}_linear", f"baseline of {name}: linear attention alone", task, mixer_options=alone, **rest)
    _register(f"{name}_conv", f"baseline of {name}: gated convolutions alone", task, mixer_options=gated, **rest)
    _register(f"{name}_mega", f"baseline of {name}: Mega", task, mixer="mega", mixer_options=average, **rest)
    rest["ffn_hidden_size"] = attention
    # fused attention kernels want heads of a multiple of 8 channels
    heads = {"num_heads": 4 if sizes["hidden_size"] % 32 == 0 else 5}
    summary = f"baseline of {name}: Transformer with rotary positions"
    _register(f"{name}_transformer", summary, task, mixer="attention", mixer_options=heads, **rest)


# Sizes of Mega's Table 8 (arXiv 2209.10655), kernels of SGConv's configurations (branch `preview` of its repository).
_GREY: dict[str, Any] = {"norm": "batch", "pre_norm": True, "dropout": 0.0, "num_channels": 1}
_BYTES: dict[str, Any] = {"vocab_size": 259, "norm": "scale"}
LISTOPS = _sizes(*(6, 80, 160, 64, 160), {"kernel_dim": 1}, vocab_size=18, max_length=2048, num_labels=10, norm="layer")
BYTES = _sizes(4, 128, 256, 64, 256, {"kernel_dim": 2}, max_length=4096, **_BYTES)
RETRIEVAL = _sizes(6, 128, 256, 64, 256, {"kernel_dim": 1}, max_length=4000, num_documents=2, **_BYTES)
PIXELS = _sizes(
    *(8, 160, 320, 96, 320),
    {"kernel_dim": 32, "decay": "fixed", "decay_min": 1.0, "decay_max": 1.0},
    **{**_GREY, "max_length": 1024, "image_size": 32, "num_labels": 10, "image_mean": [0.48], "image_std": [0.24]},
)
PATHFINDER = _sizes(6, 128, 256, 64, 256, {"kernel_dim": 32}, max_length=1024, image_size=32, **_GREY)
PATHX = _sizes(
    *(4, 64, 128, 32, 128),
    {"kernel_dim": 64, "init_scale": 1, "decay_min": 1.0, "decay_max": 3.0},
    max_length=16384,
    image_size=128,
    **_GREY,
)
MINI = _sizes(4, 96, 192, 48, 192, {"kernel_dim": 1}, vocab_size=18, max_length=512, num_labels=10, norm="layer")

_with_baselines("chela_lra_listops", "Long Range Arena: ListOps", TEXT, LISTOPS, 170, 184, 58, 288)
_with_baselines("chela_lra_text", "Long Range Arena: IMDb byte by byte", TEXT, BYTES, 274, 278, 124, 444)
_with_baselines("chela_lra_retrieval", "Long Range Arena: pairs of papers (AAN)", PAIR, RETRIEVAL, 266, 278, 118, 432)
_with_baselines("chela_lra_image", "Long Range Arena: grey CIFAR-10 pixel by pixel", IMAGE, PIXELS, 450, 354, 296, 724)
_with_baselines("chela_lra_pathfinder", "Long Range Arena: Pathfinder, 32 x 32", IMAGE, PATHFINDER, 384, 278, 252, 612)
_with_baselines(
    "chela_lra_pathx", "Long Range Arena: Path-X, Pathfinder at 128 x 128", IMAGE, PATHX, 466, 140, 214, 720
)
_with_baselines("chela_mini", "short ListOps (up to 512 tokens)", TEXT, MINI, 200, 210, 90, 328)
_register("chela_lra_listops_literal", "ListOps, the plainest reading of the layer", TEXT, preset="literal", **LISTOPS)

# Language models: depths and widths of Mega's Table 9; the comparison's size of the other families.
_LM: dict[str, Any] = {"pad_token_id": None, "norm": "rms", "pre_norm": True, "dropout": 0.0}
_register(
    "chela_lm_wikitext103",
    "WikiText-103 in GPT-2's vocabulary",
    "text-generation",
    **_sizes(16, 1024, 1024, 256, 1536, {"kernel_dim": 32}, vocab_size=50257, max_length=2048, **_LM),
)
_register(
    "chela_lm_enwik8",
    "enwik8 byte by byte",
    "text-generation",
    **_sizes(12, 512, 704, 128, 1024, {"kernel_dim": 32}, vocab_size=256, max_length=8192, **_LM),
)
_register(
    "chela_lm_30m",
    "language model in the comparison's size",
    "text-generation",
    **_sizes(8, 512, 1408, 128, 1024, {"kernel_dim": 32}, vocab_size=8192, max_length=2048, **_LM),
)
_register(
    "chela_lm_bounded_30m",
    "the same with a kernel of 256 taps, whose decoding state is bounded",
    "text-generation",
    **_sizes(
        *(8, 512, 1408, 128, 1024), {"kernel_dim": 32, "kernel_length": 256}, vocab_size=8192, max_length=2048, **_LM
    ),
)

_TEST = _sizes(2, 16, 32, 8, 16, {"kernel_dim": 4}, vocab_size=20, max_length=64, num_labels=3)
_BRANCHES: dict[str, Any] = {"branch_norm": "batch", "long_short_parallel": 7}
_register("chela_test", "tiny and random, for tests", TEXT, **_TEST)
_register("chela_pair_test", "tiny and random, pairs", PAIR, num_documents=2, **_TEST)
_register(
    "chela_image_test",
    "tiny and random, images",
    IMAGE,
    image_size=8,
    **{**_TEST, "norm": "batch", "pre_norm": True, "mixer_options": {**_TEST["mixer_options"], **_BRANCHES}},
)
_register(
    "chela_mega_test",
    "tiny and random, Mega's layers",
    TEXT,
    mixer="mega",
    **{**_TEST, "mixer_options": {"z_width": 8, "value_width": 16, "averages": 4}},
)
_register(
    "chela_lm_test",
    "tiny and random, language model",
    "text-generation",
    **{**_TEST, **_LM, "vocab_size": 97, "max_length": 256},
)
