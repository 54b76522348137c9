"""iFormer for `timm.create_model`. Importing this module registers the models; `import hybridzoo` does it with timm."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from hybridzoo.models.iformer.backbone import InceptionTransformer
from hybridzoo.models.iformer.convert import fit_tables
from hybridzoo.models.iformer.variants import BASE, LARGE, SMALL, WEIGHTS_FOLDER, WEIGHTS_REPOSITORY

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _cfg(name: str, size: int, crop_pct: float) -> dict[str, Any]:
    return {
        "hf_hub_id": WEIGHTS_REPOSITORY,
        "hf_hub_filename": f"{WEIGHTS_FOLDER}/{name}.pth",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "min_input_size": (3, 33, 33),
        "pool_size": (size // 32, size // 32),
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": "patch_embed.proj1",
        "classifier": "head",
        "paper_ids": "arXiv:2205.12956",
        "paper_name": "Inception Transformer",
        "origin_url": "https://github.com/sail-sg/iFormer",
    }


default_cfgs = generate_default_cfgs(
    {
        f"iformer_{size}{suffix}.sail_in1k": _cfg(f"iformer_{size}{suffix}", side, crop_pct)
        for size in ("small", "base", "large")
        for suffix, side, crop_pct in (("", 224, 0.9), ("_384", 384, 1.0))
    }
)


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: InceptionTransformer) -> dict[str, torch.Tensor]:
    """Unwrap training checkpoints and bring the position tables to the model's size.

    The published 384-pixel files hold the tables of 224 pixels.
    """
    from hybridzoo.checkpoint_io import unwrap_state_dict

    state = unwrap_state_dict(state_dict)
    sides = [tuple(getattr(model, f"pos_embed{k}").shape[1:3]) for k in range(1, model.num_stages + 1)]
    return fit_tables(state, sides)  # type: ignore[arg-type]


def _create(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> InceptionTransformer:
    return build_model_with_cfg(
        InceptionTransformer,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**variant, **kwargs},
    )


@register_model
def iformer_small(pretrained: bool = False, **kwargs: Any) -> InceptionTransformer:
    """iFormer-S, 19.9 M parameters."""
    return _create("iformer_small", pretrained, SMALL, kwargs)


@register_model
def iformer_base(pretrained: bool = False, **kwargs: Any) -> InceptionTransformer:
    """iFormer-B, 47.9 M parameters."""
    return _create("iformer_base", pretrained, BASE, kwargs)


@register_model
def iformer_large(pretrained: bool = False, **kwargs: Any) -> InceptionTransformer:
    """iFormer-L, 86.6 M parameters."""
    return _create("iformer_large", pretrained, LARGE, kwargs)


@register_model
def iformer_small_384(pretrained: bool = False, **kwargs: Any) -> InceptionTransformer:
    """iFormer-S at 384 pixels, with position tables of 224 as published."""
    return _create("iformer_small_384", pretrained, SMALL, kwargs)


@register_model
def iformer_base_384(pretrained: bool = False, **kwargs: Any) -> InceptionTransformer:
    """iFormer-B at 384 pixels, with position tables of 224 as published."""
    return _create("iformer_base_384", pretrained, BASE, kwargs)


@register_model
def iformer_large_384(pretrained: bool = False, **kwargs: Any) -> InceptionTransformer:
    """iFormer-L at 384 pixels, with position tables of 224 as published."""
    return _create("iformer_large_384", pretrained, LARGE, kwargs)
