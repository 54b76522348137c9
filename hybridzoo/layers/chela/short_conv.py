"""Depthwise short convolution with parallel branches that merge into one kernel for deployment.

Structural re-parameterisation as in RepVGG (https://arxiv.org/abs/2101.03697) and UniRepLKNet
(https://arxiv.org/abs/2311.15599): a sum of convolutions, each followed by batch norm, is one convolution at inference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from hybridzoo.errors import ConfigError
from hybridzoo.layers.chela.norms import SequenceBatchNorm
from hybridzoo.ops.causal_conv1d import causal_conv1d


class Branch(nn.Module):
    """One kernel of taps, dilated, spread over `width` taps; with its batch norm if asked for."""

    def __init__(self, channels: int, taps: int, dilation: int, width: int, causal: bool, norm: bool) -> None:
        super().__init__()
        self.taps, self.dilation, self.width, self.causal = taps, dilation, width, causal
        self.conv = nn.Conv1d(channels, channels, taps, groups=channels, bias=False)
        self.bn = SequenceBatchNorm(channels) if norm else None

    def spread(self) -> Tensor:
        """(D, width): causal kernels end at the present position, others are centred."""
        reach = (self.taps - 1) * self.dilation + 1
        taps = self.conv.weight[:, 0]
        if self.dilation > 1:
            wide = taps.new_zeros(taps.shape[0], self.taps, self.dilation)
            taps = torch.cat([taps.unsqueeze(2), wide[:, :, 1:]], 2).flatten(1)[:, :reach]
        missing = self.width - reach
        return F.pad(taps, (missing, 0) if self.causal else (missing // 2, missing - missing // 2))


class ShortConv(nn.Module):
    """y = sum over branches of BN(conv(x)), (B, T, D) -> (B, T, D); padding must be zero.

    Args:
        channels: D.
        width: taps of the merged kernel.
        branches: (taps, dilation) of each, (taps - 1) * dilation + 1 <= width; odd widths unless causal.
        identity: also add x itself (its batch norm, if there are any).
        causal: look back only; else centred.
        norm: "batch" or "none" (then all branches are one kernel at any time, and training costs the same).

    Raises:
        ConfigError: branches wider than the kernel, or even widths around a centre.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        branches: Sequence[Sequence[int]] = ((3, 1), (1, 1)),
        *,
        identity: bool = True,
        causal: bool = False,
        norm: str = "none",
    ) -> None:
        super().__init__()
        self.width, self.causal = width, causal
        for taps, dilation in branches:
            reach = (taps - 1) * dilation + 1
            if taps < 1 or dilation < 1 or reach > width:
                raise ConfigError(f"a branch of {taps} taps, dilation {dilation}, does not fit into {width} taps")
            if not causal and (width - reach) % 2:
                raise ConfigError(f"{reach} taps cannot be centred in {width}: both must be odd or both even")
        self.branches = nn.ModuleList(
            Branch(channels, taps, dilation, width, causal, norm == "batch") for taps, dilation in branches
        )
        self.skip = SequenceBatchNorm(channels) if identity and norm == "batch" else None
        self.identity = identity
        self.deploy: nn.Conv1d | None = None

    def init_weights(self) -> None:
        """Branches share the variance of one convolution; called by the model's initialisation."""
        for branch in self.branches:
            assert isinstance(branch, Branch)
            init.normal_(branch.conv.weight, std=(branch.taps * max(1, len(self.branches))) ** -0.5)

    @property
    def merged(self) -> bool:
        """Whether `merge` has been called."""
        return self.deploy is not None

    def _kernel(self) -> tuple[Tensor, Tensor | None]:
        """Taps (D, width) and bias (D,) of the whole in eval mode, or without batch norms at any time."""
        kernel, bias = None, None
        terms: list[tuple[Tensor, SequenceBatchNorm | None]] = []
        for branch in self.branches:
            assert isinstance(branch, Branch)
            terms.append((branch.spread(), branch.bn))
        if self.identity:
            centre = self.width - 1 if self.causal else self.width // 2
            like = terms[0][0] if terms else self.skip.weight.new_zeros(len(self.skip.weight), self.width)  # type: ignore[union-attr]
            terms.append(
                (F.one_hot(torch.tensor(centre, device=like.device), self.width).to(like).expand_as(like), self.skip)
            )
        for taps, norm in terms:
            if norm is not None:
                assert norm.running_var is not None
                assert norm.running_mean is not None
                factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
                shift = norm.bias - norm.running_mean * factor
                taps, bias = taps * factor.unsqueeze(1), shift if bias is None else bias + shift
            kernel = taps if kernel is None else kernel + taps
        assert kernel is not None
        return kernel, bias

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (B, T, D), zero where valid (B, T) is False."""
        padding = "causal" if self.causal else "same"
        if self.deploy is not None:
            return _conv(x, self.deploy.weight[:, 0], self.deploy.bias, padding)
        norms = any(branch.bn is not None for branch in self.branches) or self.skip is not None
        if not (norms and self.training):
            return _conv(x, *self._kernel(), padding)
        total = None
        for branch in self.branches:
            assert isinstance(branch, Branch)
            y = branch.bn(_conv(x, branch.spread(), None, padding), valid)  # type: ignore[misc]
            total = y if total is None else total + y
        if self.skip is not None:
            total = self.skip(x, valid) if total is None else total + self.skip(x, valid)
        assert total is not None
        return total

    @torch.no_grad()
    def merge(self) -> None:
        """Replace the branches by one convolution, in place; a second call does nothing."""
        if self.merged:
            return
        kernel, bias = self._kernel()
        channels = kernel.shape[0]
        deploy = nn.Conv1d(channels, channels, self.width, groups=channels).to(kernel.device, kernel.dtype)
        deploy.weight.copy_(kernel.unsqueeze(1))
        deploy.bias.copy_(torch.zeros(channels) if bias is None else bias)  # type: ignore[union-attr]
        self.branches, self.skip, self.deploy = nn.ModuleList(), None, deploy


def _conv(x: Tensor, kernel: Tensor, bias: Tensor | None, padding: str) -> Tensor:
    y = causal_conv1d(x, kernel, bias, padding=padding)  # type: ignore[arg-type]
    assert isinstance(y, Tensor)
    return y
