"""The short causal convolution in front of DeltaNet's and Mamba's recurrences, with its state.

Legend: B rows, T positions, C channels, W taps.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hybridzoo.layers.fused import fused, stands_for
from hybridzoo.layers.mixer import MixerContext
from hybridzoo.ops.causal_conv1d import causal_conv1d, causal_conv1d_step

LONG = 256  # positions from which on a row counts as long


class ShortConv(nn.Module):
    """Depthwise causal convolution over time, parameters shaped as torch's Conv1d.

    Args:
        channels: C.
        taps: W.
        bias: add one per channel.
        activation: `"silu"` or None.
    """

    def __init__(self, channels: int, taps: int, *, bias: bool, activation: Literal["silu"] | None) -> None:
        super().__init__()
        self.taps = taps
        self.activation: Literal["silu"] | None = activation
        self.weight = nn.Parameter(torch.empty(channels, 1, taps).uniform_(-1, 1) / math.sqrt(taps))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor, ctx: MixerContext, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Convolve.

        Args:
            x: (B, T, C).
            ctx: of the call.
            state: (B, W - 1, C) the inputs before the first position, oldest first; packed: one row per segment.

        Returns:
            (B, T, C), and the state after the last valid position if it was asked for.
        """
        weight = self.weight.squeeze(1)
        if x.shape[1] == 1 and state is not None and ctx.cu_seqlens is None and self.taps > 1:
            inplace = ctx.inplace and ctx.valid is None
            y, new = fused(
                causal_conv1d_step, state, x[:, 0], weight, self.bias, activation=self.activation, inplace=inplace
            )
            if ctx.valid is not None:
                new = torch.where(ctx.valid.unsqueeze(2), new, state.to(new.dtype))
            return y.unsqueeze(1), new if ctx.return_state else None
        before = None if state is None else state.to(x.dtype)
        if before is not None and ctx.cu_seqlens is None and x.shape[1] >= LONG and not torch.is_grad_enabled():
            y = self._convolved(x, weight)  # kernels for rows without a state are faster; it reaches W - 1 positions
            head = self._convolved(torch.cat([before, x[:, : self.taps - 1]], 1), weight)
            y[:, : self.taps - 1] = head[:, self.taps - 1 :]
        else:
            y = self._convolved(x, weight, before if self.taps > 1 else None, ctx.cu_seqlens)
        return y, self._after(x, ctx, before) if ctx.return_state else None

    def _convolved(
        self, x: Tensor, weight: Tensor, before: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> Tensor:
        named: dict[str, Any] = {"initial_state": before, "cu_seqlens": cu_seqlens}
        y = causal_conv1d(x, weight, self.bias, activation=self.activation, **named)
        assert isinstance(y, Tensor)
        return y

    def _after(self, x: Tensor, ctx: MixerContext, before: Tensor | None) -> Tensor:
        keep = self.taps - 1
        if ctx.counts is None and x.shape[1] >= keep:
            return x[:, x.shape[1] - keep :].contiguous()  # not a view: it would keep all of x alive
        if before is None:
            before = x.new_zeros(x.shape[0], keep, x.shape[2])
        inputs = torch.cat([before, x], 1)
        if ctx.counts is None:
            return inputs[:, inputs.shape[1] - keep :].contiguous()
        at = ctx.counts.unsqueeze(1) + torch.arange(keep, device=x.device)  # (B, W - 1)
        return inputs.gather(1, at.unsqueeze(2).expand(-1, -1, x.shape[2]))


stands_for("conv_step", causal_conv1d_step)
