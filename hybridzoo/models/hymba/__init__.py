"""Hymba: registration only; neither torch nor transformers is imported here."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hybridzoo.registry import Family, Weights, register_family, register_model, shipped

register_family(
    Family(
        name="hymba",
        title="Hymba",
        model_type="hymba",
        config_class="hybridzoo.models.hymba.configuration:HymbaConfig",
        model_classes={"text-generation": "hybridzoo.models.hymba.modeling:HymbaForCausalLM"},
        auto_classes={"text-generation": "AutoModelForCausalLM"},
        convert="hybridzoo.models.hymba.convert",
        paper="https://arxiv.org/abs/2411.13676",
        source="https://huggingface.co/nvidia/Hymba-1.5B-Base",
        license="NVIDIA Open Model License",
    )
)


def _pairs(depth: int, wide: list[int]) -> list[list[int]]:
    """Windowed layers between two global ones share keys in pairs; an odd run begins with a group of three."""
    groups = []
    for low, high in pairwise(wide):
        run = list(range(low + 1, high))
        first = 3 if len(run) % 2 else 2
        groups += [run[:first], *(run[i : i + 2] for i in range(first, len(run), 2))] if len(run) > 1 else []
    return groups


def _config(width: int, depth: int, middle: int, heads: int, kv_heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    wide = sorted({0, middle, depth - 1})
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": hidden,
        "global_attn_idx": wide,
        "kv_reuse_group": _pairs(depth, wide),
        **more,
    }


_PUBLISHED = {
    tag: Weights(
        uri=f"hf-hub:nvidia/Hymba-1.5B-{name}",
        license="NVIDIA Open Model License",
        source=f"https://huggingface.co/nvidia/Hymba-1.5B-{name}",
    )
    for tag, name in (("nvidia_base", "Base"), ("nvidia_instruct", "Instruct"))
}


def _register(name: str, summary: str, config: dict[str, Any], tags: dict[str, Weights] | None = None) -> None:
    register_model(name, family="hymba", config=config, summary=summary, tags=tags)


_register(
    "hymba_125m",
    "Hymba 125M; key sharing, meta tokens and vocabulary inferred, 129.9M parameters",
    _config(512, 24, 11, 8, 4, 1664),
)
_register(
    "hymba_350m",
    "Hymba 350M; key sharing, meta tokens and vocabulary inferred, 353.7M parameters",
    _config(768, 32, 15, 12, 4, 2432),
)
_register("hymba_1_5b", "Hymba 1.5B as published", _config(1600, 32, 15, 25, 5, 5504, mamba_dt_rank=100), _PUBLISHED)
_SMALL = {"rope_type": "default", "dt_init": "mamba", "pad_token_id": None}
_register(
    "hymba_30m",
    "Hymba in the size in which architectures are compared",
    _config(
        *(512, 8, 4, 8, 4, 656),
        vocab_size=8192,
        num_memory_tokens=32,
        sliding_window=256,
        max_position_embeddings=2048,
        **_SMALL,
    ),
)
_register(
    "hymba_mqar",
    "Hymba in the size of the recall task",
    _config(
        *(128, 4, 3, 2, 1, 64),
        vocab_size=1024,
        num_memory_tokens=8,
        sliding_window=32,
        max_position_embeddings=2048,
        **_SMALL,
    ),
)
_register(
    "hymba_mini",
    "small Hymba, made to be trained on one GPU in minutes",
    _config(
        *(192, 6, 3, 6, 2, 320),
        vocab_size=4096,
        num_memory_tokens=16,
        sliding_window=128,
        max_position_embeddings=1024,
        **_SMALL,
    ),
    shipped("hymba_mini", "austen", "Apache-2.0"),
)
_register(
    "hymba_test",
    "tiny and random, for tests",
    _config(
        *(32, 6, 3, 4, 2, 48),
        vocab_size=97,
        num_memory_tokens=4,
        sliding_window=8,
        mamba_d_state=4,
        max_position_embeddings=256,
        orig_max_position_embeddings=64,
    ),
)
