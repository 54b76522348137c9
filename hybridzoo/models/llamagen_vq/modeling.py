"""LlamaGen's image tokenizer (VQ-16, VQ-8): image -> grid of code indices -> image.

Paper: Sun et al. 2024, "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation",
https://arxiv.org/abs/2406.06525. Original: https://github.com/FoundationVision/LlamaGen (MIT),
`tokenizer/tokenizer_image/vq_model.py`; a VQGAN with a small, l2-normalised codebook. Differences: indices keep the
shape of the grid (the original's are flat), distances are computed in pieces so that memory is bounded, and the pixel
losses are part of the model. The perceptual and adversarial losses of the original need networks of their own and are
not: `forward` returns what they need (`reconstruction`), `decoder.last_layer` is the weight that they refer to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from hybridzoo.errors import InputError
from hybridzoo.modeling import ZooModel
from hybridzoo.models.llamagen_vq.configuration import LlamaGenVQConfig
from hybridzoo.models.llamagen_vq.networks import Decoder, Encoder
from hybridzoo.models.llamagen_vq.quantizer import Quantised, VectorQuantizer


@dataclass
class LlamaGenVQOutput(ModelOutput):
    """Output of `LlamaGenVQ`.

    Attributes:
        loss: pixel losses plus the quantiser's, weighted as in the config; only if labels are given.
        reconstruction: (B, num_channels, H, W), in the range of the input.
        indices: (B, h, w) int64 code indices.
        pixel_loss: the weighted pixel losses alone.
        quantizer_loss: the weighted losses of the codebook alone; zero in eval mode.
    """

    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    indices: Tensor | None = None
    pixel_loss: Tensor | None = None
    quantizer_loss: Tensor | None = None


@dataclass
class EncodedImages(ModelOutput):
    """Output of `LlamaGenVQ.encode`: `quant` (B, codebook_dim, h, w), `indices` (B, h, w) int64, `latents` before the
    codebook (B, codebook_dim, h, w)."""

    quant: Tensor | None = None
    indices: Tensor | None = None
    latents: Tensor | None = None


class LlamaGenVQ(ZooModel):
    """The tokenizer.

    Args:
        config: sizes.
    """

    config_class = LlamaGenVQConfig
    main_input_name = "pixel_values"
    family = "llamagen_vq"
    task = "image-tokenization"
    main_output_name = "reconstruction"
    suite_exceptions: ClassVar[dict[str, str]] = {
        "bf16_autocast": "a latent about halfway between two codes gets the other one, and its patch another content"
    }

    def __init__(self, config: LlamaGenVQConfig) -> None:
        super().__init__(config)
        c = config
        self.encoder = Encoder(
            c.num_channels, c.base_channels, c.encoder_ch_mult, c.encoder_res_blocks, c.z_channels, c.dropout
        )
        self.decoder = Decoder(
            c.num_channels, c.base_channels, c.decoder_ch_mult, c.decoder_res_blocks, c.z_channels, c.dropout
        )
        self.quantize = VectorQuantizer(
            c.codebook_size, c.codebook_dim, c.codebook_l2_norm, c.entropy_loss_weight > 0, c.codebook_show_usage
        )
        self.quant_conv = nn.Conv2d(c.z_channels, c.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(c.codebook_dim, c.z_channels, 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """torch's own initial values for the convolutions, as in the original; the codebook uniform, +-1 / K."""
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):  # the codebook; its quantiser holds no parameter and is never asked
            bound = 1.0 / self.config.codebook_size
            nn.init.uniform_(module.weight, -bound, bound)
            if self.config.codebook_l2_norm:  # every direction alike
                with torch.no_grad():
                    module.weight.copy_(F.normalize(module.weight, dim=-1))

    def encode(self, pixel_values: Tensor) -> EncodedImages:
        """Images -> code indices.

        Args:
            pixel_values: (B, num_channels, H, W) floats in the range -1 to 1; H and W multiples of `config.downsample`.

        Returns:
            `quant` (B, codebook_dim, h, w), `indices` (B, h, w) int64 and `latents`.

        Raises:
            InputError: images of the wrong shape, type or size.
        """
        latents, found = self._quantise(pixel_values)
        return EncodedImages(quant=found.quant, indices=found.indices, latents=latents)

    def _quantise(self, pixel_values: Tensor) -> tuple[Tensor, Quantised]:
        latents = self.quant_conv(self.encoder(self._checked(pixel_values)))
        return latents, self.quantize(latents)

    def decode(self, quant: Tensor) -> Tensor:
        """Codebook rows (B, codebook_dim, h, w) -> images (B, num_channels, h f, w f), about -1 to 1, not clamped."""
        return self.decoder(self.post_quant_conv(quant))

    def decode_code(self, indices: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
        """Code indices -> images.

        Args:
            indices: (B, h, w) integers; or of any shape, with `shape`.
            shape: (B, codebook_dim, h, w), as the original wants it beside flat indices; or (B, h, w).

        Returns:
            (B, num_channels, h f, w f), about -1 to 1, not clamped.

        Raises:
            InputError: indices of the wrong shape, type or range.
        """
        if indices.is_floating_point():
            raise InputError(f"code indices must be integers, got {indices.dtype}")
        if shape is not None:
            grid = (shape[0], *shape[-2:])
            if indices.numel() != grid[0] * grid[1] * grid[2]:
                raise InputError(f"{indices.numel()} code indices do not fill the shape {tuple(shape)}")
            indices = indices.reshape(grid)
        if indices.ndim != 3:
            raise InputError(
                f"code indices must be (batch, height, width), got {tuple(indices.shape)}; give shape= beside flat ones"
            )
        if not torch.compiler.is_compiling() and indices.device.type == "cpu" and indices.numel():
            low, high = int(indices.min()), int(indices.max())
            if low < 0 or high >= self.config.codebook_size:
                raise InputError(
                    f"code indices run from {low} to {high}; this codebook has {self.config.codebook_size} rows, "
                    f"0 to {self.config.codebook_size - 1}. Do the indices come from another tokenizer?"
                )
        return self.decode(self.quantize.lookup(indices))

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> LlamaGenVQOutput | tuple[Any, ...]:
        """Encode and decode.

        Args:
            pixel_values: as in `encode`.
            labels: what to compare the reconstruction with, (B, num_channels, H, W); with it a loss is returned.
                Integer labels (B,) of a classification set also ask for the loss, against `pixel_values` itself.
            return_dict: False gives a plain tuple.

        Raises:
            InputError: as in `encode`.
        """
        _, found = self._quantise(pixel_values)
        reconstruction = self.decode(found.quant)
        output = LlamaGenVQOutput(reconstruction=reconstruction, indices=found.indices)
        if labels is not None:
            target = labels if labels.is_floating_point() and labels.ndim == 4 else pixel_values
            output.pixel_loss = self._pixel_loss(reconstruction.float(), target.float())
            output.quantizer_loss = self._quantiser_loss(found, output.pixel_loss)
            output.loss = output.pixel_loss + output.quantizer_loss
        return output if (return_dict if return_dict is not None else self.config.return_dict) else output.to_tuple()

    def _pixel_loss(self, found: Tensor, target: Tensor) -> Tensor:
        if found.shape != target.shape:
            raise InputError(f"labels must be images {tuple(found.shape)}, got {tuple(target.shape)}")
        c = self.config
        loss = c.reconstruction_l2 * F.mse_loss(found, target)
        return loss + c.reconstruction_l1 * F.l1_loss(found, target) if c.reconstruction_l1 else loss

    def _quantiser_loss(self, found: Quantised, like: Tensor) -> Tensor:
        if found.vq_loss is None or found.commit_loss is None:
            return torch.zeros_like(like)
        c = self.config
        loss = c.vq_loss_weight * found.vq_loss + c.commit_loss_weight * found.commit_loss
        return loss if found.entropy_loss is None else loss + c.entropy_loss_weight * found.entropy_loss

    def _checked(self, pixel_values: Any) -> Tensor:
        c, step = self.config, self.config.downsample
        if not isinstance(pixel_values, Tensor):
            raise InputError(f"images must be a tensor, got {type(pixel_values).__name__}")
        if pixel_values.ndim != 4 or pixel_values.shape[1] != c.num_channels:
            raise InputError(
                f"expected images (batch, {c.num_channels}, height, width), got {tuple(pixel_values.shape)}"
            )
        if not pixel_values.is_floating_point():
            raise InputError(f"images are {pixel_values.dtype}: scale to the range -1 to 1 (x / 127.5 - 1) first")
        if pixel_values.shape[2] % step or pixel_values.shape[3] % step or 0 in pixel_values.shape:
            raise InputError(
                f"images are {pixel_values.shape[2]} x {pixel_values.shape[3]} pixels; height and width must be "
                f"multiples of {step}, the pixels per token: resize or crop them"
            )
        return pixel_values.to(self.quant_conv.weight.dtype)

    def example_inputs(self, batch_size: int = 1, *, labels: bool = False) -> dict[str, Any]:
        """Seeded images of the configured size; with `labels` the same images as the target."""
        weight, c = self.quant_conv.weight, self.config
        shape = (batch_size, c.num_channels, c.image_size, c.image_size)
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        inputs = {"pixel_values": images.to(weight.device, weight.dtype)}
        return inputs | ({"labels": inputs["pixel_values"].clone()} if labels else {})

    def output_shape(self, inputs: Mapping[str, Any]) -> tuple[int, ...]:
        """That of the images."""
        return tuple(inputs["pixel_values"].shape)

    def save_extras(self, folder: Path) -> None:
        """The evaluation transform, in `preprocessor_config.json`."""
        from transformers import CLIPImageProcessor

        side = {"height": self.config.image_size, "width": self.config.image_size}
        CLIPImageProcessor(
            size={"shortest_edge": self.config.image_size},
            crop_size=side,
            do_convert_rgb=self.config.num_channels == 3,
            image_mean=list(self.config.image_mean),
            image_std=list(self.config.image_std),
        ).save_pretrained(folder)
