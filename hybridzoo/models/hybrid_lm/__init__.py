"""Hybrid language models by a pattern: registration only; neither torch nor transformers is imported here."""

from __future__ import annotations

from typing import Any

from hybridzoo.registry import Family, register_family, register_model

register_family(
    Family(
        name="hybrid_lm",
        title="Hybrid LM",
        model_type="hybrid_lm",
        config_class="hybridzoo.models.hybrid_lm.configuration:HybridLMConfig",
        model_classes={"text-generation": "hybridzoo.models.hybrid_lm.modeling:HybridLMForCausalLM"},
        auto_classes={"text-generation": "AutoModelForCausalLM"},
        convert=None,
        paper="none: the decoder shared by Hymba and DeltaNet, with layers in any order",
        source="none: ours",
        license="Apache-2.0",
    )
)


def _register(name: str, summary: str, **config: Any) -> None:
    register_model(name, family="hybrid_lm", config=config, summary=summary)


# The sizes in which architectures are compared, beside hymba_30m, deltanet_30m, ... of the other families.
SIZE_30M = {"vocab_size": 8192, "hidden_size": 512, "max_position_embeddings": 2048}
SIZE_MQAR = {"vocab_size": 1024, "hidden_size": 128, "max_position_embeddings": 2048}
SIZE_MINI = {"vocab_size": 4096, "hidden_size": 192, "max_position_embeddings": 1024}

_register(
    "transformer_30m",
    "Llama-like Transformer in the comparison's size",
    pattern="A",
    num_hidden_layers=8,
    mixers={"attention": {"num_heads": 8}},
    **SIZE_30M,
)
_register(
    "mamba_30m",
    "Mamba-1, no MLPs, in the comparison's size",
    pattern="M",
    num_hidden_layers=15,
    intermediate_size=0,
    **SIZE_30M,
)
_register(
    "transformer_mqar",
    "Transformer in the size of the recall task",
    pattern="A",
    num_hidden_layers=4,
    intermediate_size=256,
    mixers={"attention": {"num_heads": 2}},
    **SIZE_MQAR,
)
_register(
    "mamba_mqar",
    "Mamba-1 in the size of the recall task",
    pattern="M",
    num_hidden_layers=6,
    intermediate_size=0,
    **SIZE_MQAR,
)
_register(
    "hybrid_lm_30m",
    "three DeltaNet layers, then one of attention, twice",
    pattern="DDDA",
    num_hidden_layers=8,
    mixers={"delta": {"num_heads": 4}, "attention": {"num_heads": 8}},
    **SIZE_30M,
)
_register(
    "transformer_mini",
    "small Llama-like Transformer, beside the trained minis",
    pattern="A",
    num_hidden_layers=7,
    mixers={"attention": {"num_heads": 6}},
    **SIZE_MINI,
)
_register(
    "mamba_mini",
    "small Mamba-1 without MLPs, beside the trained minis",
    pattern="M",
    num_hidden_layers=12,
    intermediate_size=0,
    **SIZE_MINI,
)
_register(
    "hybrid_lm_test",
    "tiny and random, every kind of mixer, for tests",
    vocab_size=101,
    hidden_size=32,
    pattern="DMASSHH",
    mixers={
        "delta": {"num_heads": 2},
        "mamba": {"d_state": 4},
        "attention": {"num_heads": 4, "num_kv_heads": 2},
        "swa": {"num_heads": 4, "num_kv_heads": 2, "window": 7},
        "hymba": {"num_heads": 4, "num_kv_heads": 2, "d_state": 4, "window": 9},
    },
    kv_groups=[[3, 4], [5, 6]],
    num_meta_tokens=3,
    intermediate_size=48,
    max_position_embeddings=256,
)
