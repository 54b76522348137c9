"""`ImageGenerator`: a model that makes codes and the tokenizer that turns them into images, as one object."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridzoo import registry
from hybridzoo.errors import ConfigError, InputError, unknown
from hybridzoo.inference.classifier import DTYPES, pick_device


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, C, H, W) floats of the range -1 to 1 -> (B, H, W, C) uint8: 127.5 x + 128, clamped (LlamaGen, ADM)."""
    levels = (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def to_pil(images: np.ndarray) -> list[Any]:
    """(B, H, W, 1 or 3) uint8 -> PIL images."""
    from PIL import Image

    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images]


def image_grid(images: Sequence[Any], columns: int | None = None, padding: int = 2) -> Any:
    """PIL images of one size in rows on white.

    Args:
        images: at least one.
        columns: per row; the square root of their number, rounded up, if left out.
        padding: pixels between them and around.
    """
    from PIL import Image

    if not images:
        raise InputError("a grid needs at least one image")
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    rows = -(-len(images) // columns)
    size = (columns * (width + padding) + padding, rows * (height + padding) + padding)
    canvas = Image.new(images[0].mode, size, "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        canvas.paste(image, (padding + column * (width + padding), padding + row * (height + padding)))
    return canvas


class ImageGenerator:
    """Images from classes or texts.

    Args:
        model: a model of the task "image-generation", a registered name with weights, or a folder.
        tokenizer: of the task "image-tokenization", likewise; left out: `model.config.tokenizer`, with its weights.
        text_encoder: "hub id or folder" of the T5 encoder for texts; left out: `model.config.text_encoder`, loaded when
            the first text comes.
        device: left out: a GPU if there is one, else the CPU.
        dtype: "float32", or "bfloat16" for autocast of the model (the tokenizer stays in float32).
        cuda_graph: the model's steps run as one launch each, recorded at the first call of a batch size and image size;
            the weights must stay where they are. For small images, whose kernels end before Python launches the next.

    Raises:
        ConfigError: the tokenizer does not belong to the model, or cuda_graph on a CPU.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        text_encoder: str | None = None,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        cuda_graph: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(unknown("dtype", str(dtype), DTYPES))
        self.device, self.dtype = pick_device(device), DTYPES[dtype]
        self.model = load_part(model, "model").to(self.device).eval()
        source = tokenizer if tokenizer is not None else getattr(self.model.config, "tokenizer", None)
        if source is None:
            raise ConfigError(
                "this model names no tokenizer: give tokenizer=, a model that turns its codes into images"
            )
        self.tokenizer = load_part(source, "tokenizer").to(self.device).eval()
        check_tokenizer(self.model.config, self.tokenizer.config)
        self._text_source = text_encoder or getattr(self.model.config, "text_encoder", None)
        self._text: Any = None
        self._features = graphed_features(self.model) if cuda_graph else None

    def __call__(
        self,
        labels: Sequence[int | str] | Tensor | None = None,
        prompts: Sequence[str] | None = None,
        *,
        output: str = "pil",
        **options: Any,
    ) -> Any:
        """Images of classes or texts, one each.

        Args:
            labels: classes by number or name; of a class-conditional model.
            prompts: texts; of a text-conditional model.
            output: "pil" (a list), "uint8" (B, H, W, C) array, or "float" (B, C, H, W) tensor of the range -1 to 1.
            **options: of the model's `generate`: steps, cfg_scale, generator, height, …

        Raises:
            InputError: unknown classes, no condition, or a wrong option.
        """
        if output not in ("pil", "uint8", "float"):
            raise InputError(unknown("output", output, ("pil", "uint8", "float")))
        conditions: dict[str, Any] = {} if self._features is None else {"features": self._features}
        if labels is not None:
            conditions["class_labels"] = self.classes(labels)
        if prompts is not None:
            conditions["text_embeds"] = self.encode_texts(prompts)
        with torch.inference_mode():
            with self.autocast():
                codes = self.model.generate(**conditions, **options)
            images = self.tokenizer.decode_code(codes)
        if output == "float":
            return images.clamp(-1, 1)
        return to_uint8(images) if output == "uint8" else to_pil(to_uint8(images))

    def inpaint(self, image: Any, mask: Any, labels: Sequence[int | str], **options: Any) -> Any:
        """Paint the masked part of an image anew.

        Args:
            image: (B, C, H, W) float tensor of the range -1 to 1.
            mask: (H, W) or (B, H, W) bool, True where to paint; a token is painted if any of its pixels is.
            labels: one class per image.
            **options: as in a call.

        Returns:
            PIL images; pixels outside painted tokens are the tokenizer's reconstruction.
        """
        step = self.tokenizer.config.downsample
        mask = torch.as_tensor(mask, dtype=torch.bool)
        mask = mask.unsqueeze(0) if mask.ndim == 2 else mask
        if mask.shape[-2:] != image.shape[-2:]:
            raise InputError(f"mask {tuple(mask.shape)} must have the image's size, {tuple(image.shape[-2:])}")
        with torch.inference_mode():
            codes = self.tokenizer.encode(image.to(self.device)).indices
        tokens = torch.nn.functional.max_pool2d(mask[:, None].float(), step)[:, 0] > 0
        return self(labels, codes=codes, mask=tokens.expand(codes.shape).to(self.device), **options)

    def classes(self, labels: Sequence[int | str] | Tensor) -> Tensor:
        """Class numbers of names and numbers."""
        if isinstance(labels, Tensor):
            return labels
        names = {str(name): int(i) for i, name in self.model.config.id2label.items()}
        found = []
        for label in labels:
            text = str(label)
            if text in names:
                found.append(names[text])
            elif text.lstrip("-").isdigit():
                found.append(int(text))
            else:
                raise InputError(unknown("class", text, names, f"(or a number from 0 to {len(names) - 1})"))
        return torch.tensor(found, dtype=torch.long)

    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """(B, text_length, text_dim) features of the T5 encoder; padding is zero, at the left end.

        Raises:
            ConfigError: a class-conditional model, or no encoder.
        """
        config = self.model.config
        if getattr(config, "condition", None) != "text":
            raise ConfigError("this model makes images of classes, not of texts: give labels")
        if self._text is None:
            from hybridzoo.inference.text_features import TextFeatures

            if self._text_source is None:
                raise ConfigError("this model names no text encoder: give text_encoder=, e.g. 'google/flan-t5-xl'")
            self._text = TextFeatures(self._text_source, config.text_length, device=self.device)
        return self._text(list(prompts))

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that the model runs in."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def graphed_features(model: Any) -> Callable[..., Tensor]:
    """`model.features` as CUDA graphs, one for each shape of codes and conditions; for `generate(features=…)`.

    What it returns is overwritten by the next call.

    Raises:
        ConfigError: the model is not on a GPU.
    """
    from hybridzoo.inference.graph import GraphedCalls

    if model.device.type != "cuda":
        raise ConfigError(f"a CUDA graph needs a model on a GPU, this one is on {model.device}")
    calls = GraphedCalls(lambda **inputs: {"features": model.features(**inputs)}, ("features",))

    def features(input_ids: Tensor, **conditions: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():  # so that what is recorded serves in and out of that mode
            return calls(input_ids=input_ids, **conditions)["features"]

    return features


def check_tokenizer(config: Any, tokenizer: Any) -> None:
    """Raise ConfigError unless a model's codes are the tokenizer's."""
    for name, what in (("codebook_size", "codes"), ("downsample", "pixels per token")):
        ours, theirs = getattr(config, name), getattr(tokenizer, name)
        if ours != theirs:
            raise ConfigError(
                f"the model was made for {name}={ours} and the tokenizer has {name}={theirs} ({what}): they do not "
                "belong together; give the tokenizer that the model was trained with"
            )


def load_part(source: Any, what: str) -> Any:
    """A model in memory as it is; a registered name (with its weights), folder or hub id loaded.

    Raises:
        ConfigError: a registered name without trained weights; `what` says which part was meant.
    """
    from hybridzoo.loading import build_model

    if not isinstance(source, (str, Path)):
        return source
    text = str(source)
    if registry.is_model(text) and not registry.get_model(text)[0].tags:
        raise ConfigError(
            f"the {what} {text!r} has no trained weights in the registry: give {what}= a folder or a model in memory"
        )
    return build_model(source, pretrained=True) if registry.is_model(text) else build_model(source)
