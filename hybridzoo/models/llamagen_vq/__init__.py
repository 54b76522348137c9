"""LlamaGen's image tokenizer: registration only."""

from __future__ import annotations

from typing import Any

from hybridzoo.registry import Family, Weights, register_family, register_model, shipped

_HERE = "hybridzoo.models.llamagen_vq"
_TASK = "image-tokenization"

register_family(
    Family(
        name="llamagen_vq",
        title="LlamaGen VQ image tokenizer",
        model_type="llamagen_vq",
        config_class=f"{_HERE}.configuration:LlamaGenVQConfig",
        model_classes={_TASK: f"{_HERE}.modeling:LlamaGenVQ"},
        auto_classes={_TASK: "AutoModel"},
        convert=f"{_HERE}.convert",
        paper="https://arxiv.org/abs/2406.06525",
        source="https://github.com/FoundationVision/LlamaGen",
        license="MIT",
    )
)


def _published(repository: str, file: str) -> Weights:
    return Weights(
        uri=f"hf-hub:{repository}:{file}",
        license="MIT",
        source=f"https://huggingface.co/{repository}",
        original=True,
    )


_C2I, _T2I = "FoundationVision/LlamaGen", "peizesun/llamagen_t2i"
_VQ8: dict[str, Any] = {"encoder_ch_mult": (1, 2, 2, 4), "decoder_ch_mult": (1, 2, 2, 4)}
_GREY = {"num_channels": 1, "image_mean": (0.5,), "image_std": (0.5,)}
_SMALL: dict[str, Any] = {**_GREY, "codebook_show_usage": False, "encoder_res_blocks": 1, "decoder_res_blocks": 0}

register_model(
    "vq16_llamagen",
    family="llamagen_vq",
    summary="VQ-16: 16 pixels a token, 16,384 codes of 8 numbers",
    tags={"llamagen_c2i": _published(_C2I, "vq_ds16_c2i.pt"), "llamagen_t2i": _published(_T2I, "vq_ds16_t2i.pt")},
)
register_model(
    "vq8_llamagen",
    family="llamagen_vq",
    config=_VQ8,
    summary="VQ-8: 8 pixels a token, 16,384 codes of 8 numbers",
    tags={"llamagen_c2i": _published(_C2I, "vq_ds8_c2i.pt")},
)
register_model(
    "llamagen_vq_test",
    family="llamagen_vq",
    config={
        "image_size": 16,
        "base_channels": 32,
        "encoder_ch_mult": (1, 1),
        "decoder_ch_mult": (1, 1),
        "encoder_res_blocks": 1,
        "decoder_res_blocks": 1,
        "z_channels": 16,
        "codebook_size": 64,
        "codebook_dim": 4,
        "codebook_show_usage": False,
    },
    summary="tiny random tokenizer for tests",
)
register_model(
    "llamagen_vq_mini",
    family="llamagen_vq",
    config=_SMALL
    | {
        "image_size": 28,
        "base_channels": 32,
        "encoder_ch_mult": (1, 1, 2),
        "decoder_ch_mult": (1, 1, 2),
        "z_channels": 16,
        "codebook_size": 256,
        "codebook_dim": 8,
        "reconstruction_l1": 0.5,
    },
    summary="28x28 grey images -> 7x7 of 256 codes, for Fashion-MNIST",
    tags=shipped("llamagen_vq_mini", "fashion_mnist", "Apache-2.0"),
)
