"""DeltaNet: registration only; neither torch nor transformers is imported here."""

from __future__ import annotations

from typing import Any

from hybridzoo.registry import Family, Weights, register_family, register_model, shipped

register_family(
    Family(
        name="deltanet",
        title="DeltaNet",
        model_type="deltanet",
        config_class="hybridzoo.models.deltanet.configuration:DeltaNetConfig",
        model_classes={"text-generation": "hybridzoo.models.deltanet.modeling:DeltaNetForCausalLM"},
        auto_classes={"text-generation": "AutoModelForCausalLM"},
        convert="hybridzoo.models.deltanet.convert",
        paper="https://arxiv.org/abs/2406.06484",
        source="https://github.com/fla-org/flash-linear-attention",
        license="MIT",
        original_model_type="delta_net",
    )
)


def _register(name: str, summary: str, tags: dict[str, Weights] | None = None, **config: Any) -> None:
    register_model(name, family="deltanet", config=config, summary=summary, tags=tags)


def _published(repository: str) -> dict[str, Weights]:
    address = f"https://huggingface.co/{repository}"
    return {"fla_100b": Weights(uri=f"hf-hub:{repository}", license="see the repository's card", source=address)}


def _sliding(layers: int, heads: int, window: int) -> dict[str, Any]:
    """The paper's first hybrid: sliding-window attention in every other layer, DeltaNet first."""
    return {"layers": list(range(1, layers, 2)), "num_heads": heads, "window_size": window}


def _global(layers: int, heads: int) -> dict[str, Any]:
    """The paper's second hybrid: attention in layers 2 and N/2 + 1, counted from 1."""
    return {"layers": sorted({1, layers // 2}), "num_heads": heads}


# name -> (sizes, heads of attention layers, window)
_SIZES: dict[str, tuple[dict[str, Any], int, int]] = {
    "340m": ({"hidden_size": 1024, "num_heads": 8, "intermediate_size": 2816}, 16, 2048),
    "1_3b": ({"hidden_size": 2048, "num_heads": 16, "intermediate_size": 5632}, 32, 2048),
    "30m": (
        {
            "vocab_size": 8192,
            "hidden_size": 512,
            "num_heads": 4,
            "num_hidden_layers": 8,
            "intermediate_size": 1408,
            "tie_word_embeddings": True,
        },
        8,
        256,
    ),
    "mqar": (
        {
            "vocab_size": 1024,
            "hidden_size": 128,
            "num_heads": 2,
            "num_hidden_layers": 4,
            "intermediate_size": 256,
            "tie_word_embeddings": True,
        },
        2,
        32,
    ),
    "mini": (
        {
            "vocab_size": 4096,
            "hidden_size": 192,
            "num_heads": 3,
            "num_hidden_layers": 7,
            "intermediate_size": 480,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
        6,
        128,
    ),
}
_TAGS = {
    "1_3b": _published("fla-hub/delta_net-1.3B-100B"),
    "mini": shipped("deltanet_mini", "austen", "Apache-2.0"),
}
for _size, (_config, _heads, _window) in _SIZES.items():
    _layers = _config.get("num_hidden_layers", 24)
    _register(
        f"deltanet_{_size}",
        "DeltaNet",
        tags=_TAGS.get(_size),
        **_config,
    )
    _register(
        f"deltanet_swa_{_size}",
        f"DeltaNet, every other layer sliding-window attention over {_window}",
        attn=_sliding(_layers, _heads, _window),
        **_config,
    )
    _register(
        f"deltanet_global_{_size}",
        "DeltaNet with two layers of global attention",
        attn=_global(_layers, _heads),
        **_config,
    )
_register(
    "deltanet_2_7b",
    "DeltaNet 2.7B; widths inferred from its number of parameters",
    tags=_published("fla-hub/delta_net-2.7B-100B"),
    hidden_size=2560,
    num_hidden_layers=32,
    num_heads=20,
    intermediate_size=6912,
)
_register(
    "deltanet_test",
    "tiny and random, with sliding-window and global attention, for tests",
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=4,
    num_heads=2,
    intermediate_size=48,
    max_position_embeddings=256,
    attn=[{"layers": [1], "num_heads": 4, "num_kv_heads": 2, "window_size": 8}, {"layers": [2], "num_heads": 4}],
)
