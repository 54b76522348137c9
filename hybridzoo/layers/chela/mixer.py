"""CHELA as a causal mixer of the decoder, with the state that decoding needs.

What a layer remembers: the attention's sum (constant), the last inputs of the short convolution (constant), and the
inputs of the long convolution, as many as its kernel has taps minus one. Under `kernel_length` these are bounded;
otherwise they grow with the text, and a decoded token costs as many multiplications a channel as there are positions.

Legend: B rows, T positions of this call, D width, S remembered inputs, W taps of the short convolution.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.layers.chela.block import ChelaMixing, autocasted
from hybridzoo.layers.chela.long_conv import add_taps, versions
from hybridzoo.layers.chela.norms import zero_padding
from hybridzoo.layers.chela.options import ChelaOptions
from hybridzoo.layers.mixer import KV, Mixer, MixerContext, MixerInfo, MixerOutput, State
from hybridzoo.ops.causal_conv1d import causal_conv1d
from hybridzoo.ops.long_conv import long_conv


class ChelaMixer(Mixer):
    """`ChelaMixing` that looks back only; see `ChelaOptions`."""

    options_class = ChelaOptions

    def __init__(self, hidden_size: int, options: ChelaOptions, info: MixerInfo) -> None:
        super().__init__()
        self.limit = info.max_positions + info.num_meta_tokens
        self.mix = ChelaMixing(hidden_size, self.limit, options, causal=True, eps=info.norm_eps)
        self.reads_residual = options.gate_residual == "update"
        self._step: tuple[Any, Tensor] | None = None

    def train(self, mode: bool = True) -> Self:
        """Forgets the kept kernel, whatever wrote to the weights."""
        self._step = None
        return super().train(mode)

    @property
    def memory(self) -> int:
        """How many earlier inputs the long convolution sees."""
        mix = self.mix
        if mix.long is None:
            return 0
        return max(mix.long.max_length, 0 if mix.beside is None else mix.beside.width) - 1

    def slots(self) -> int | None:
        return self.memory if self.position_limit() is None else None

    def position_limit(self) -> int | None:
        long = self.mix.long
        return None if long is None or long.any_length else self.limit

    def forward(self, x: Tensor, ctx: MixerContext, state: State | None = None, kv: KV | None = None) -> MixerOutput:
        if ctx.cu_seqlens is not None:
            return self._packed(x, ctx, state)
        mix = self.mix
        residual = ctx.memo["residual"] if self.reads_residual else x
        new: State | None = {} if ctx.return_state else None
        if state is None and new is None:
            c = mix.convolve(x, ctx.valid)
        else:
            c = self._convolve(x, ctx, state or {}, new)
        m, after = mix.select(
            x,
            c,
            ctx.valid,
            None if mix.rotary is None else ctx.rope(mix.rotary),
            None if state is None else state.get("sum"),
            ctx.return_state,
        )
        if new is not None and after is not None:
            new["sum"] = after
        return MixerOutput(mix.combine(residual, c, m), new)

    def _convolve(self, x: Tensor, ctx: MixerContext, state: State, new: State | None) -> Tensor:
        """`ChelaMixing.convolve` that goes on from a state, and leaves one."""
        x = zero_padding(autocasted(x), ctx.valid)
        if self.mix.options.conv_order == "long_short":
            return self._short(F.silu(self._long(x, ctx, state, new)), ctx, state, new, silu=False)
        return self._long(self._short(x, ctx, state, new, silu=True), ctx, state, new)

    def _short(self, x: Tensor, ctx: MixerContext, state: State, new: State | None, *, silu: bool) -> Tensor:
        conv = self.mix.short
        if conv is None:
            return x if silu else F.silu(x)
        keep = conv.width - 1
        x = zero_padding(x, ctx.valid)
        before = state["tail"].to(x.dtype) if "tail" in state else x.new_zeros(x.shape[0], keep, x.shape[2])
        y = causal_conv1d(
            x, *conv.kernel(), activation="silu" if silu else None, initial_state=before if keep else None
        )
        assert isinstance(y, Tensor)
        if new is not None:
            new["tail"] = _remembered(torch.cat([before, x], 1), keep, keep, ctx)
        return y

    def _long(self, x: Tensor, ctx: MixerContext, state: State, new: State | None) -> Tensor:
        conv = self.mix.long
        if conv is None:
            return x
        x = zero_padding(x, ctx.valid)
        before = state.get("history")
        inputs = x if before is None else torch.cat([before.to(x.dtype), x], 1)
        held = inputs.shape[1] - x.shape[1]
        if new is not None:
            fixed = ctx.inplace and before is not None  # a static cache never changes its shape
            new["history"] = _remembered(inputs, held, held if fixed else min(inputs.shape[1], self.memory), ctx)
        inputs = inputs[:, max(held - self.memory, 0) :]
        length = inputs.shape[1]
        if x.shape[1] == 1 and length > 1:
            kernel = self._step_kernel()
            wide = torch.promote_types(x.dtype, kernel.dtype)
            y = (inputs.to(wide) * kernel[kernel.shape[0] - length :]).sum(1, keepdim=True)
        else:
            with torch.autocast(x.device.type, enabled=False):
                back = conv.kernels(length)[0]
                extra, _ = self._beside()
                back = back if extra is None else add_taps(back, None, extra.to(back.dtype), length)[0]
                y = long_conv(inputs, back, None, conv.D.flatten().to(back.dtype))[:, length - x.shape[1] :]
        bias = self._beside()[1]
        return (y if bias is None else y + bias).to(x.dtype)

    def _beside(self) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if self.mix.beside is None else self.mix.beside.kernel()

    def _step_kernel(self) -> Tensor:
        """(S + 1, D) oldest first, the skip included; kept until a weight changes, unless gradients are on."""
        conv, key = self.mix.long, None
        assert conv is not None
        if not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()):
            key = versions(self.mix)
            if key is not None and self._step is not None and self._step[0] == key:
                return self._step[1]
        with torch.autocast(conv.D.device.type, enabled=False):
            back, length = conv.kernels(conv.max_length)[0], self.memory + 1
            extra, _ = self._beside()
            back = back if extra is None else add_taps(back, None, extra.to(back.dtype), length)[0]
            back = F.pad(back, (0, length - back.shape[1]))
            kernel = torch.cat([back[:, :1] + conv.D.reshape(-1, 1), back[:, 1:]], 1).flip(1).t().contiguous()
        if key is not None:
            self._step = key, kernel
        return kernel

    def _packed(self, x: Tensor, ctx: MixerContext, state: State | None) -> MixerOutput:
        """Documents one after the other become padded rows, and are put back."""
        assert ctx.cu_seqlens is not None
        starts, ends = ctx.cu_seqlens[:-1].long(), ctx.cu_seqlens[1:].long()
        sizes = ends - starts
        longest = int(sizes.max())
        if self.position_limit() is not None and longest + ctx.num_meta > self.limit:
            raise InputError(
                f"a packed document has {longest} positions, the model's long convolutions were made for at most "
                f"{self.limit - ctx.num_meta}; cut it, or build the model with a larger maximum"
            )
        at = torch.arange(longest, device=x.device)
        inside = at < sizes.unsqueeze(1)  # (documents, longest)
        index = (starts.unsqueeze(1) + at).clamp_max(x.shape[1] - 1)
        rows = MixerContext(ctx.positions[0][index], ctx.num_meta, ctx.num_meta, sizes, inside, num_meta=ctx.num_meta)
        if self.reads_residual:
            rows.memo["residual"] = ctx.memo["residual"][0][index]
        out = self.forward(x[0][index], rows, state)
        return MixerOutput(out.y[inside].unsqueeze(0))  # row by row: the order in which they came


def _remembered(inputs: Tensor, held: int, keep: int, ctx: MixerContext) -> Tensor:
    """The last `keep` valid inputs of every row, oldest first, zeros before the first.

    Args:
        inputs: (B, held + T, D), what was remembered and what this call brings.
        held: how many were remembered.
        keep: how many to remember.
        ctx: of the call.
    """
    total = inputs.shape[1]
    if ctx.counts is None:
        return inputs[:, total - keep :].contiguous()  # not a view: it would keep all inputs alive
    at = held + ctx.counts.unsqueeze(1) - keep + torch.arange(keep, device=inputs.device)  # (B, keep)
    found = inputs.gather(1, at.clamp_min(0).unsqueeze(2).expand(-1, -1, inputs.shape[2]))
    return found * (at >= 0).unsqueeze(2).to(found.dtype)
