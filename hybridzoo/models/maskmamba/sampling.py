"""Generation of codes by MaskMamba: iterative decoding with guidance, inpainting, any grid.

The rule is MaskGIT's (`decoding.py`). Guidance is u + s (c - u) on logits, c with and u without the condition. Logits
are made piece by piece, so that a 2048-pixel image (16,384 tokens of 16,384 codes) never holds all of them.

Legend: B batch, N tokens, D width, K codes, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.models.maskmamba.configuration import MaskMambaConfig
from hybridzoo.models.maskmamba.decoding import (
    Draws,
    check_schedule,
    check_steps,
    exponential,
    guidance,
    gumbel,
    halton_order,
    mask_by_confidence,
    mask_length,
    revealed,
)
from hybridzoo.models.maskmamba.inputs import check_classes
from hybridzoo.ops.guided_draw import guided_draw

_ELEMENTS = 1 << 27  # logits held at once
_BLOCK = 64  # tokens whose noise is drawn at once where every image has a generator of its own


@torch.no_grad()
def generate(
    model: Any,
    class_labels: Tensor | Sequence[int] | None = None,
    text_embeds: Tensor | None = None,
    *,
    steps: int | None = None,
    schedule: str = "cosine",
    temperature: float | None = None,
    token_temperature: float = 1.0,
    cfg_scale: float | None = None,
    cfg_schedule: str = "linear",
    cfg_power: float = 1.0,
    order: str = "confidence",
    generator: torch.Generator | int | Sequence[torch.Generator | int] | None = None,
    height: int | None = None,
    width: int | None = None,
    codes: Tensor | None = None,
    mask: Tensor | None = None,
    progress: bool = False,
    features: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Codes of new images.

    Args:
        model: a `MaskMambaForImageGeneration`.
        class_labels: (B,) classes, tensor or list; of a class-conditional model.
        text_embeds: (B, up to text_length, text_dim); of a text-conditional model.
        steps: T, decoding steps; left out, `config.sampling_steps` (20: the paper's tables use about so many).
        schedule: how many tokens stay masked, see `decoding.mask_ratio`.
        temperature: of the noise on the confidences, falling linearly to 0; order "confidence" only. Left out,
            `config.sampling_temperature` (4.5, as in MaskGIT).
        token_temperature: the logits are divided by it before a code is drawn; 0 takes the most likely code.
        cfg_scale: guidance s; 1 is none. Left out, `config.sampling_cfg_scale`.
        cfg_schedule: "linear" (from 1 up to s), "constant" or "power-cosine" with the exponent `cfg_power`.
        order: "confidence" (MaskGIT), "halton" (a fixed order that fills the image evenly; its schedule is "arccos"
            where `schedule` is left at "cosine"), or "random".
        generator: for reproducible draws; an integer is a seed for the model's device. A list has one for each image,
            which is then the same alone as in any batch.
        height, width: pixels; the configured size if left out. Multiples of `config.downsample`.
        codes: (B, h, w) codes to keep where `mask` is False: inpainting.
        mask: (B, h, w) or (h, w) bool, True where codes are drawn anew.
        progress: show a bar.
        features: called in place of `model.features` with tensors, e.g. a CUDA graph of it
            (`hybridzoo.inference.image_generation.graphed_features`).

    Returns:
        (B, h, w) int64.

    Raises:
        InputError, ConfigError: options or conditions that make no sense, each named.
    """
    config: MaskMambaConfig = model.config
    device = model.token_position.device
    steps = config.sampling_steps if steps is None else steps
    temperature = config.sampling_temperature if temperature is None else temperature
    cfg_scale = config.sampling_cfg_scale if cfg_scale is None else cfg_scale
    check_steps(steps, cfg_scale, temperature, order)
    if token_temperature < 0:
        raise InputError(f"token_temperature={token_temperature} must not be negative")
    check_schedule(schedule)
    guidance(0, steps, cfg_scale, cfg_schedule, cfg_power)  # an unknown schedule is named before anything is computed
    if class_labels is not None and not isinstance(class_labels, Tensor):
        class_labels = torch.tensor(list(class_labels))
    given = class_labels if class_labels is not None else text_embeds
    if not isinstance(given, Tensor) or given.ndim == 0 or not len(given):
        raise InputError("give class_labels (a list of classes) or text_embeds (batch, tokens, width), one per image")
    if class_labels is not None and config.condition == "class":  # once, where looking at values costs nothing
        class_labels = check_classes(class_labels.cpu(), text_embeds, len(given), model.num_classes).to(device)
    grid = _grid(config, height, width, codes)
    ids = _start(config, len(given), grid, codes, mask).to(device)
    draws = _draws(generator, len(given), device)
    conditions = {"class_labels": class_labels, "text_embeds": text_embeds}
    step_by_step = _Decoder(model, conditions, grid, draws, token_temperature, features)
    with _eval_mode(model):
        for step in _steps(steps, progress):
            s = guidance(step, steps, cfg_scale, cfg_schedule, cfg_power)
            drawn, log_p = step_by_step.draw(ids, s)
            unknown = ids == config.mask_token_id
            drawn = torch.where(unknown, drawn, ids)
            if step == 0:
                initial = unknown.sum(1)
                rank = _ranks(order, unknown, grid, draws)
            if step == steps - 1:
                ids = drawn
                break
            if rank is None:
                length = mask_length(step, steps, initial, unknown.sum(1), schedule)
                noise = temperature * (1 - (step + 1) / steps)
                if noise:
                    log_p = log_p + noise * gumbel(log_p.shape, device, draws)
                again = mask_by_confidence(log_p.masked_fill(~unknown, torch.inf), length)
            else:
                plan = "arccos" if order == "halton" and schedule == "cosine" else schedule
                known = torch.tensor([revealed(step, steps, n, plan) for n in initial.tolist()], device=device)
                again = unknown & (rank >= known[:, None])
            ids = drawn.masked_fill(again, config.mask_token_id)
    return ids.view(-1, *grid)


class _Decoder:
    """Draws a code for every token, where guidance asks for it with and without the condition. Waits for no GPU."""

    def __init__(
        self,
        model: Any,
        conditions: dict[str, Tensor | None],
        grid: tuple[int, int],
        draws: Draws,
        temperature: float,
        features: Callable[..., Tensor] | None = None,
    ) -> None:
        self.model, self.grid, self.draws, self.temperature = model, grid, draws, temperature
        self.features = model.features if features is None else features
        given = {k: v.to(model.token_position.device) for k, v in conditions.items() if v is not None}
        self.plain = given
        self.guided = {k: torch.cat((v, v)) for k, v in given.items()}
        batch = len(next(iter(given.values())))
        self.guided["condition_drop"] = torch.arange(2 * batch, device=model.token_position.device) >= batch
        positions = model.positions(*grid)
        if positions is not model.token_position:  # resized: once, not every step
            self.plain["positions"] = self.guided["positions"] = positions

    def draw(self, ids: Tensor, s: float) -> tuple[Tensor, Tensor]:
        """(B, N) codes, masked ones included -> drawn codes (B, N) and their log-probabilities (B, N)."""
        batch, guided = len(ids), s != 1.0
        rows = torch.cat((ids, ids)) if guided else ids
        features = self.features(rows.view(-1, *self.grid), **(self.guided if guided else self.plain))
        piece = max(1, _ELEMENTS // (self.model.config.codebook_size * len(rows)))
        if isinstance(self.draws, Sequence):  # the order of a row's draws must not depend on the batch
            piece = max(_BLOCK, piece // _BLOCK * _BLOCK)
        parts = [self._draw_piece(features[:, i : i + piece], batch, s) for i in range(0, ids.shape[1], piece)]
        return torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1)

    def _draw_piece(self, features: Tensor, batch: int, s: float) -> tuple[Tensor, Tensor]:
        """Codes and log-probabilities (B, n) of n tokens from their features, (B, n, D), with guidance (2 B, n, D)."""
        logits = self.model.logits(features)
        noise = None if self.temperature == 0 else self._noise(logits[:batch])
        without = logits[batch:] if len(logits) > batch else None
        return guided_draw(logits[:batch], without, noise, scale=s, temperature=self.temperature or 1.0)

    def _noise(self, logits: Tensor) -> Tensor:
        """Exponential variables of the shape (B, n, K)."""
        if not isinstance(self.draws, Sequence):
            return exponential(logits.shape, logits.device, self.draws)
        blocks = [exponential(x.shape, x.device, self.draws) for x in logits.split(_BLOCK, dim=1)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def _draws(generator: Any, batch: int, device: torch.device) -> Draws:
    """Seeds become generators of the model's device; a list must have one for each image."""
    if isinstance(generator, Sequence):
        if len(generator) != batch:
            raise InputError(f"generator has {len(generator)} entries for {batch} images: give one, or one for each")
        return [torch.Generator(device).manual_seed(g) if isinstance(g, int) else g for g in generator]
    return torch.Generator(device).manual_seed(generator) if isinstance(generator, int) else generator


def _grid(config: Any, height: int | None, width: int | None, codes: Tensor | None) -> tuple[int, int]:
    """Tokens down and across."""
    if codes is not None and codes.ndim == 3 and height is None and width is None:
        return codes.shape[1], codes.shape[2]
    sides = [config.image_size if side is None else side for side in (height, width)]
    for name, side in zip(("height", "width"), sides):
        if side < config.downsample or side % config.downsample:
            raise InputError(
                f"{name}={side} must be a multiple of {config.downsample} pixels, the tokenizer's pixels per token"
            )
    return sides[0] // config.downsample, sides[1] // config.downsample


def _start(config: Any, batch: int, grid: tuple[int, int], codes: Tensor | None, mask: Tensor | None) -> Tensor:
    """(B, N) codes to start from: all masked, or the given ones where the mask lets them stand."""
    if codes is None:
        if mask is not None:
            raise InputError("mask says where to paint anew, but codes (the image's own codes) are missing")
        return torch.full((batch, grid[0] * grid[1]), config.mask_token_id)
    if codes.shape != (batch, *grid) or codes.is_floating_point():
        raise InputError(f"codes must be integers {(batch, *grid)}, got {codes.dtype} {tuple(codes.shape)}")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) <= config.mask_token_id:
        raise InputError(
            f"codes run from {int(codes.min())} to {int(codes.max())}; this model knows 0 to {config.codebook_size - 1}"
            f" and {config.mask_token_id} for a masked token. Do they come from another tokenizer?"
        )
    if mask is None:
        return codes.flatten(1).long()
    if mask.dtype != torch.bool or mask.shape[-2:] != grid or mask.ndim not in (2, 3):
        raise InputError(f"mask must be bool {(batch, *grid)} or {grid}, got {mask.dtype} {tuple(mask.shape)}")
    return torch.where(mask.to(codes.device), config.mask_token_id, codes).flatten(1).long()


def _ranks(order: str, unknown: Tensor, grid: tuple[int, int], draws: Draws) -> Tensor | None:
    """(B, N) place of each unknown token in the order of decoding; None where confidence decides."""
    if order == "confidence":
        return None
    if order == "halton":
        score = torch.empty(unknown.shape[1], dtype=torch.float32, device=unknown.device)
        score[halton_order(*grid).to(unknown.device)] = torch.arange(unknown.shape[1], device=unknown.device).float()
        score = score.expand(unknown.shape)
    else:
        score = gumbel(unknown.shape, unknown.device, draws)
    return score.masked_fill(~unknown, torch.inf).argsort(1).argsort(1)


def _steps(steps: int, progress: bool) -> Any:
    if not progress:
        return range(steps)
    from tqdm.auto import tqdm

    return tqdm(range(steps), desc="decoding", unit="step")


@contextmanager
def _eval_mode(model: Any) -> Any:
    """Without dropout; the mode comes back afterwards."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
