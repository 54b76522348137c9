"""Between LlamaGen's tokenizer checkpoints and the zoo's: the same keys; the original's arguments become our fields.

The original is FoundationVision/LlamaGen, `tokenizer/tokenizer_image/vq_model.py`. Published files: `vq_ds16_c2i.pt`
and `vq_ds8_c2i.pt` (FoundationVision/LlamaGen on the Hugging Face hub), `vq_ds16_t2i.pt` (peizesun/llamagen_t2i).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from hybridzoo.errors import CheckpointError, ConfigError, unknown

USED = "quantize.codebook_used"
# The original's arguments -> ours. `ch_mult` and `num_res_blocks` stand for both networks.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "codebook_size": ("codebook_size",),
    "n_e": ("codebook_size",),
    "codebook_embed_dim": ("codebook_dim",),
    "e_dim": ("codebook_dim",),
    "codebook_l2_norm": ("codebook_l2_norm",),
    "l2_norm": ("codebook_l2_norm",),
    "codebook_show_usage": ("codebook_show_usage",),
    "show_usage": ("codebook_show_usage",),
    "commit_loss_beta": ("commit_loss_weight",),
    "beta": ("commit_loss_weight",),
    "entropy_loss_ratio": ("entropy_loss_weight",),
    "encoder_ch_mult": ("encoder_ch_mult",),
    "decoder_ch_mult": ("decoder_ch_mult",),
    "ch_mult": ("encoder_ch_mult", "decoder_ch_mult"),
    "ch": ("base_channels",),
    "z_channels": ("z_channels",),
    "dropout_p": ("dropout",),
    "dropout": ("dropout",),
    "num_res_blocks": ("encoder_res_blocks", "decoder_res_blocks"),
    "enc_num_res_blocks": ("encoder_res_blocks",),
    "dec_num_res_blocks": ("decoder_res_blocks",),
    "in_channels": ("num_channels",),
    "out_channels": ("num_channels",),
    "image_size": ("image_size",),
}


def config_from_original(config: Mapping[str, Any] | None, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Values of `LlamaGenVQConfig` for a checkpoint in the original's layout.

    Args:
        config: arguments of the original's `ModelArgs`, `Encoder`, `Decoder` and `VectorQuantizer`; what it leaves out
            is read from the shapes.
        state: the checkpoint, original keys; one of the two networks is enough.

    Raises:
        ConfigError: an unknown argument.
        CheckpointError: no tokenizer of LlamaGen.
    """
    values = shapes_to_config(state)
    for key, value in (config or {}).items():
        if key not in ARGUMENTS:
            raise ConfigError(unknown("argument of LlamaGen's tokenizer", key, ARGUMENTS))
        for name in ARGUMENTS[key]:
            values[name] = value
    levels = len(values.get("encoder_ch_mult", (1,) * 5))
    if "image_size" not in values:
        values["image_size"] = 16 * 2 ** (levels - 1)
    if (channels := values.get("num_channels", 3)) != 3:
        values |= {"image_mean": [0.5] * channels, "image_std": [0.5] * channels}
    return values


def shapes_to_config(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What the shapes tell; `codebook_l2_norm` leaves no trace in them and is True as in all published files."""
    values: dict[str, Any] = {"codebook_show_usage": USED in state}
    if "quantize.embedding.weight" in state:
        values["codebook_size"], values["codebook_dim"] = state["quantize.embedding.weight"].shape
    found = [side for side in ("encoder", "decoder") if f"{side}.conv_in.weight" in state]
    if not found:
        few = ", ".join(list(state)[:5])
        raise CheckpointError(
            "this is no checkpoint of LlamaGen's tokenizer: neither encoder.conv_in.weight nor decoder.conv_in.weight "
            f"is in it (it has {few or 'nothing'}, …)"
        )
    for side in found:
        widths, blocks = _levels(state, side)
        base = state["encoder.conv_in.weight"].shape[0] if side == "encoder" else min(widths)
        values["base_channels"] = base
        ordered = widths if side == "encoder" else widths[::-1]
        values[f"{side}_ch_mult"] = [width // base for width in ordered]
        values[f"{side}_res_blocks"] = blocks if side == "encoder" else blocks - 1
    for side, other in (("encoder", "decoder"), ("decoder", "encoder")):  # half a checkpoint: the mirror image
        if f"{side}_ch_mult" not in values:
            values[f"{side}_ch_mult"] = values[f"{other}_ch_mult"]
    if "encoder" in found:
        values["num_channels"] = state["encoder.conv_in.weight"].shape[1]
        values["z_channels"] = state["encoder.conv_out.weight"].shape[0]
    else:
        values["num_channels"] = state["decoder.conv_out.weight"].shape[0]
        values["z_channels"] = state["decoder.conv_in.weight"].shape[1]
        values["codebook_dim"] = state["post_quant_conv.weight"].shape[1]
    return values


def _levels(state: Mapping[str, torch.Tensor], side: str) -> tuple[list[int], int]:
    """Widths of a network's levels in the order of its `conv_blocks`, and the residual blocks of each."""
    pattern = re.compile(rf"{side}\.conv_blocks\.(\d+)\.res\.(\d+)\.conv2\.weight")
    found = {tuple(map(int, m.groups())): state[k].shape[0] for k in state if (m := pattern.fullmatch(k))}
    levels, blocks = 1 + max(i for i, _ in found), 1 + max(j for _, j in found)
    return [found[i, 0] for i in range(levels)], blocks


def from_original(state: Mapping[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """Original keys -> the zoo's: the same. The buffer of used codes is dropped where the config keeps none."""
    return {k: v for k, v in state.items() if config.codebook_show_usage or k != USED}


def to_original(state: Mapping[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """The zoo's keys -> the original's: the same."""
    return dict(state)
