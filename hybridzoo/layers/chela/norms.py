"""Norms of sequences (B, T, D) by name, with padding left out where a norm looks across positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from hybridzoo.errors import ConfigError, InputError, unknown
from hybridzoo.ops.add_layer_norm import add_layer_norm

NORMS = ("none", "layer", "rms", "scale", "batch")


class ScaleNorm(nn.Module):
    """y = scalar x / sqrt(mean(x^2) + eps), one learned scalar (Mega's form)."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.scalar = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return (self.scalar * F.rms_norm(wide, (x.shape[-1],), None, self.eps)).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """torch's, taking a mask that it does not need."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        return super().forward(x)


class RMSNorm(nn.RMSNorm):
    """torch's, taking a mask that it does not need."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class SequenceBatchNorm(nn.BatchNorm1d):
    """Batch norm over the positions of all rows. Padding is neither counted nor normalised."""

    def init_weights(self) -> None:
        """Scale 1, shift 0, and statistics of none."""
        init.ones_(self.weight)
        init.zeros_(self.bias)
        for statistic in (self.running_mean, self.num_batches_tracked):
            if statistic is not None:
                init.zeros_(statistic)
        if self.running_var is not None:
            init.ones_(self.running_var)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (B, T, D), valid (B, T) bool or None -> (B, T, D).

        Raises:
            InputError: in training, a single position, whose variance is zero.
        """
        rows = x.flatten(0, 1)
        if not self.training:
            return super().forward(rows).view_as(x)
        if valid is None:
            if rows.shape[0] < 2:
                raise InputError(
                    "batch norm needs more than one position in training: give a larger batch or call eval()"
                )
            return super().forward(rows).view_as(x)
        if valid.device.type == "cpu" and not torch.compiler.is_compiling() and int(valid.sum()) < 2:
            raise InputError(
                "batch norm needs more than one position in training: this batch has one that is no padding"
            )
        kept = valid.flatten().unsqueeze(1).to(torch.float32)
        count = kept.sum().clamp_min(1.0)
        with torch.autocast(x.device.type, enabled=False):
            wide = rows.float()
            mean = (wide * kept).sum(0) / count
            var = ((wide - mean).square() * kept).sum(0) / count
            if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
                with torch.no_grad():
                    assert self.num_batches_tracked is not None
                    self.num_batches_tracked.add_(1)
                    rate = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
                    self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
                    unbiased = var * count / (count - 1).clamp_min(1.0)
                    self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)
            y = (wide - mean) * torch.rsqrt(var + self.eps)
            if self.affine:
                y = y * self.weight.float() + self.bias.float()
        return torch.where(valid.unsqueeze(2), y.view(x.shape).to(x.dtype), x)


class NoNorm(nn.Module):
    """The identity."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        return x


def make_norm(kind: str, width: int, eps: float = 1e-5) -> nn.Module:
    """A norm called as `norm(x, valid)`.

    Args:
        kind: none, layer, rms, scale or batch.
        width: D.
        eps: added to the variance or mean square.
    """
    if kind not in NORMS:
        raise ConfigError(unknown("norm", kind, NORMS))
    if kind == "none":
        return NoNorm()
    if kind == "scale":
        return ScaleNorm(eps)
    cls = {"layer": LayerNorm, "rms": RMSNorm, "batch": SequenceBatchNorm}[kind]
    return cls(width, eps=eps)


def added_and_normed(x: Tensor, y: Tensor, norm: nn.Module, valid: Tensor | None) -> Tensor:
    """norm(x + y, valid), in one pass over memory where there is a kernel for the norm; all (B, T, D)."""
    if isinstance(norm, LayerNorm):
        wide = torch.promote_types(x.dtype, y.dtype)
        return add_layer_norm(x, y, norm.weight, norm.bias, eps=norm.eps, out_dtype=wide)[1]
    return norm(x + y, valid)


def zero_padding(x: Tensor, valid: Tensor | None) -> Tensor:
    """x (B, T, D) with zeros where valid (B, T) is False."""
    return x if valid is None else x * valid.unsqueeze(2).to(x.dtype)
