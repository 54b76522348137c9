"""Configuration of the LlamaGen image tokenizer. The defaults are VQ-16 (16 pixels a token)."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from hybridzoo.configuration import ZooConfig
from hybridzoo.errors import ConfigError

GROUPS = 32  # of every group norm


@strict
class LlamaGenVQConfig(ZooConfig):
    """Sizes of the tokenizer and weights of its losses.

    Args:
        image_size: side of the images that `example_inputs` makes; the network takes any multiple of `downsample`.
        num_channels: image channels.
        base_channels: width of the first level; a multiple of 32.
        encoder_ch_mult, decoder_ch_mult: per level from the image inwards, width / base_channels. One downsampling lies
            between two levels.
        encoder_res_blocks: residual blocks per level of the encoder.
        decoder_res_blocks: residual blocks per level of the decoder, less one (as in the original's argument).
        z_channels: width between the two networks and the codebook's 1x1 convolutions.
        codebook_size, codebook_dim: the codebook's rows and their length.
        codebook_l2_norm: latents and codebook rows are compared and handed on at unit length.
        codebook_show_usage: keep the original's buffer of the last 65,536 indices seen in training (published files
            have it).
        dropout: in the residual blocks.
        reconstruction_l1, reconstruction_l2: weights of the two pixel losses.
        vq_loss_weight, commit_loss_weight, entropy_loss_weight: weights of the quantiser's losses.
        image_mean, image_std: of pixels in [0, 1]; 0.5 gives the range -1 to 1.
        crop_pct: the shorter side is resized to image_size / crop_pct before the central crop.

    Raises:
        ConfigError: values that do not fit together.
    """

    model_type = "llamagen_vq"

    image_size: int = 256
    num_channels: int = 3
    base_channels: int = 128
    encoder_ch_mult: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_ch_mult: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    encoder_res_blocks: int = 2
    decoder_res_blocks: int = 2
    z_channels: int = 256
    codebook_size: int = 16384
    codebook_dim: int = 8
    codebook_l2_norm: bool = True
    codebook_show_usage: bool = True
    dropout: float | int = 0.0
    reconstruction_l1: float | int = 0.0
    reconstruction_l2: float | int = 1.0
    vq_loss_weight: float | int = 1.0
    commit_loss_weight: float | int = 0.25
    entropy_loss_weight: float | int = 0.0
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    crop_pct: float | int = 1.0

    @property
    def downsample(self) -> int:
        """Pixels per token along one side."""
        return 2 ** (len(self.encoder_ch_mult) - 1)

    def validate_values(self) -> None:
        for name in ("encoder_ch_mult", "decoder_ch_mult"):
            multipliers = getattr(self, name)
            if not multipliers or min(multipliers) < 1:
                raise ConfigError(f"{name}={list(multipliers)}: give at least one level, each 1 or more")
        if len(self.encoder_ch_mult) != len(self.decoder_ch_mult):
            raise ConfigError(
                f"encoder_ch_mult has {len(self.encoder_ch_mult)} levels and decoder_ch_mult "
                f"{len(self.decoder_ch_mult)}: the decoder must undo the encoder's downsampling; give as many"
            )
        if self.base_channels < 1 or self.base_channels % GROUPS:
            raise ConfigError(
                f"base_channels={self.base_channels} must be a multiple of {GROUPS}, the groups of the norms"
            )
        for name in ("num_channels", "z_channels", "codebook_size", "codebook_dim", "encoder_res_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.decoder_res_blocks < 0:
            raise ConfigError(f"decoder_res_blocks={self.decoder_res_blocks} must be at least 0 (it counts one less)")
        if self.image_size < 1 or self.image_size % self.downsample:
            raise ConfigError(f"image_size={self.image_size} must be a multiple of {self.downsample} pixels per token")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout}: give a probability, 0 or more and below 1")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.num_channels:
                raise ConfigError(
                    f"{name} has {len(getattr(self, name))} values for num_channels={self.num_channels}: give one each"
                )
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct={self.crop_pct}: give a share of the image side above 0 and up to 1")
        if min(self.image_std) <= 0:
            raise ConfigError(f"image_std={list(self.image_std)}: every value must be above 0")
        weights = ("reconstruction_l1", "reconstruction_l2", "vq_loss_weight", "commit_loss_weight")
        for name in (*weights, "entropy_loss_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
