"""Depthwise short convolution with parallel branches that merge into one kernel for deployment.

Structural re-parameterisation as in RepVGG (https://arxiv.org/abs/2101.03697) and UniRepLKNet
(https://arxiv.org/abs/2311.15599): a sum of convolutions, each followed by batch norm, is one convolution at inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from hybridzoo.errors import ConfigError
from hybridzoo.layers.chela.norms import SequenceBatchNorm
from hybridzoo.ops.causal_conv1d import causal_conv1d


class Taps(nn.Conv1d):
    """One kernel a channel: the weights (D, 1, taps), drawn so that they keep the scale of what they see."""

    def __init__(self, channels: int, taps: int, *, bias: bool) -> None:
        super().__init__(channels, channels, taps, groups=channels, bias=bias)

    def init_weights(self) -> None:
        """N(0, 1 / taps), no shift."""
        init.normal_(self.weight, std=self.kernel_size[0] ** -0.5)
        if self.bias is not None:
            init.zeros_(self.bias)


class Branch(nn.Module):
    """One kernel of taps, dilated, spread over `width` taps; with its batch norm if asked for."""

    def __init__(self, channels: int, taps: int, dilation: int, width: int, causal: bool, norm: bool) -> None:
        super().__init__()
        self.taps, self.dilation, self.width, self.causal = taps, dilation, width, causal
        self.conv = Taps(channels, taps, bias=False)
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

    Without batch norms, and in eval mode, the branches run as one convolution at any time.

    Args:
        channels: D.
        width: taps of the merged kernel.
        branches: (taps, dilation) of each, (taps - 1) * dilation + 1 <= width; odd widths unless causal.
        identity: also add x itself (its batch norm, if there are any).
        causal: look back only; else centred.
        norm: "batch" or "none".
        merged: one convolution from the start, as after `merge`.

    Raises:
        ConfigError: no branches, branches wider than the kernel, or even widths around a centre.
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
        merged: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.causal = width, causal
        if not branches:
            raise ConfigError("a short convolution needs at least one branch, such as [[3, 1]]: (taps, dilation)")
        for branch in branches:
            if len(branch) != 2:
                raise ConfigError(f"a branch of a short convolution is (taps, dilation), got {branch!r}")
            taps, dilation = branch
            reach = (taps - 1) * dilation + 1
            if taps < 1 or dilation < 1 or reach > width:
                raise ConfigError(f"a branch of {taps} taps, dilation {dilation}, does not fit into {width} taps")
            if not causal and (width - reach) % 2:
                raise ConfigError(f"{reach} taps cannot be centred in {width}: both must be odd or both even")
        self.deploy = Taps(channels, width, bias=True) if merged else None
        parts = [] if merged else branches
        self.branches = nn.ModuleList(Branch(channels, p[0], p[1], width, causal, norm == "batch") for p in parts)
        self.skip = SequenceBatchNorm(channels) if identity and norm == "batch" and not merged else None
        self.identity = identity

    @property
    def follows_batches(self) -> bool:
        """Whether batch norms now use the statistics of their batch, so that the branches are no one convolution."""
        return self.training and (self.skip is not None or any(b.bn is not None for b in self._parts()))

    def _parts(self) -> list[Branch]:
        return list(self.branches)  # type: ignore[arg-type]

    def kernel(self) -> tuple[Tensor, Tensor | None]:
        """Taps (D, width) and bias (D,) of the whole, with the running statistics of batch norms."""
        if self.deploy is not None:
            return self.deploy.weight[:, 0], self.deploy.bias
        terms: list[tuple[Tensor, SequenceBatchNorm | None]] = [(b.spread(), b.bn) for b in self._parts()]
        if self.identity:
            centre = self.width - 1 if self.causal else (self.width - 1) // 2
            one = torch.ones_like(terms[0][0][:, :1])
            terms.append((F.pad(one, (centre, self.width - 1 - centre)), self.skip))
        kernel, bias = None, None
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

    def forward(self, x: Tensor, valid: Tensor | None = None, activation: Literal["silu"] | None = None) -> Tensor:
        """x (B, T, D), zero where valid (B, T) is False; activation "silu" or None of the sum."""
        if not self.follows_batches:
            return self._conv(x, *self.kernel(), activation)
        terms = []
        for branch in self._parts():
            assert branch.bn is not None
            terms.append(branch.bn(self._conv(x, branch.spread()), valid))
        if self.skip is not None:
            terms.append(self.skip(x, valid))
        total = torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]
        return F.silu(total) if activation else total

    def _conv(
        self, x: Tensor, kernel: Tensor, bias: Tensor | None = None, activation: Literal["silu"] | None = None
    ) -> Tensor:
        y = causal_conv1d(x, kernel, bias, activation=activation, padding="causal" if self.causal else "same")
        assert isinstance(y, Tensor)
        return y

    @torch.no_grad()
    def merge(self) -> None:
        """Replace the branches by one convolution, in place; a second call does nothing."""
        if self.deploy is not None:
            return
        kernel, bias = self.kernel()
        channels = kernel.shape[0]
        deploy = Taps(channels, self.width, bias=True).to(kernel.device, kernel.dtype)
        assert deploy.bias is not None
        deploy.weight.copy_(kernel.unsqueeze(1))
        deploy.bias.copy_(torch.zeros_like(kernel[:, 0]) if bias is None else bias)
        self.branches, self.skip, self.deploy = nn.ModuleList(), None, deploy.train(self.training)
