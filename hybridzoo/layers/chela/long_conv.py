"""Long convolution whose kernel is made of a few short ones at growing scales: SGConv, "What Makes Convolutional Models
Great on Long Sequence Modeling?", https://arxiv.org/abs/2210.09298 (https://github.com/ctlllll/SGConv).

Legend: B rows, T positions, D channels, C copies of the channels, k taps of a sub-kernel, S sub-kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from hybridzoo.errors import ConfigError, InputError, unknown
from hybridzoo.layers.chela.stretch import laid_out, stretched
from hybridzoo.ops.dispatch import exporting
from hybridzoo.ops.long_conv import keeping, long_conv

MODES = ("cat", "sum")
INTERPOLATIONS = ("linear", "nearest")
DECAYS = ("scale", "learnable", "fixed")


class MultiScaleConv(nn.Module):
    """Depthwise convolution as long as the sequence, (B, T, D) -> (B, T, C D); padding must be zero.

    Sub-kernel i is interpolated to 2^(i - 1) times its length (twice that of the one before it) and weighted by
    multiplier^(S - 1 - i): the nearest positions are seen finely and strongly, far ones coarsely and weakly.

    Args:
        channels: D.
        max_length: longest sequence.
        kernel_dim: k.
        n_scales: S; None: as many as reach max_length.
        init_scale: doublings of the first sub-kernel.
        bidirectional: a second kernel for later positions.
        mode: "cat" sets the sub-kernels one behind the other, "sum" adds them, each from the present position on.
        interpolation: "linear" or "nearest".
        decay: "scale" as above; "learnable" weights by (1 + t)^(-a) with a learned a for each channel instead, "fixed"
            by a fixed a.
        decay_min, decay_max: the multiplier, spread evenly over the channels, or where a is drawn from.
        copies: C.
        any_length: sequences may be longer; what lies max_length or more positions away is then not seen.

    Raises:
        ConfigError: an unknown choice, or sizes below 1.
    """

    def __init__(
        self,
        channels: int,
        max_length: int,
        *,
        kernel_dim: int = 32,
        n_scales: int | None = None,
        init_scale: int = 0,
        bidirectional: bool = False,
        mode: str = "cat",
        interpolation: str = "linear",
        decay: str = "scale",
        decay_min: float = 2.0,
        decay_max: float = 2.0,
        copies: int = 1,
        any_length: bool = False,
    ) -> None:
        super().__init__()
        for what, value, choices in (
            ("long convolution mode", mode, MODES),
            ("interpolation", interpolation, INTERPOLATIONS),
            ("decay", decay, DECAYS),
        ):
            if value not in choices:
                raise ConfigError(unknown(what, value, choices))
        if min(channels, max_length, kernel_dim, copies) < 1 or (n_scales is not None and n_scales < 1):
            raise ConfigError(
                f"a long convolution needs sizes of at least 1: channels={channels}, max_length={max_length}, "
                f"kernel_dim={kernel_dim}, n_scales={n_scales}, copies={copies}"
            )
        self.channels, self.max_length, self.copies, self.bidirectional = channels, max_length, copies, bidirectional
        self.mode, self.interpolation, self.init_scale, self.any_length = mode, interpolation, init_scale, any_length
        self.decay_kind, self.decay_range = decay, (decay_min, decay_max)
        if n_scales is None:
            n_scales = max(1, 1 + math.ceil(math.log2(max_length / kernel_dim)) - init_scale)
        rows = copies * (2 if bidirectional else 1)
        self.kernel_list = nn.ParameterList(
            nn.Parameter(torch.empty(rows, channels, kernel_dim)) for _ in range(n_scales)
        )
        self.D = nn.Parameter(torch.empty(copies, channels))
        self.multiplier: Tensor
        self.kernel_norm: Tensor
        shape = (1, channels, 1) if decay == "scale" else ()
        self.register_buffer("multiplier", torch.empty(shape))
        self.register_buffer("kernel_norm", torch.empty(rows, channels, 1))
        if decay != "scale":
            self.decay = nn.Parameter(torch.empty(channels), requires_grad=decay == "learnable")
        # what they were made of, the kernels, and where `long_conv` keeps their transform
        self._kept: tuple[Any, tuple[Tensor, Tensor | None], dict[Any, Any]] | None = None

    def init_weights(self) -> None:
        """Sub-kernels and skip N(0, 1); the norm that the kernel starts with is kept for good."""
        for kernel in self.kernel_list:
            init.normal_(kernel)
        init.normal_(self.D)
        low, high = self.decay_range
        if self.decay_kind == "scale":
            init.copy_(self.multiplier, torch.linspace(low, high, self.channels).view(1, -1, 1))
        else:
            init.ones_(self.multiplier)
            init.uniform_(self.decay, low, high)
        if not self.kernel_norm.is_meta:
            with torch.no_grad():
                init.copy_(self.kernel_norm, self._whole(None).norm(dim=-1, keepdim=True))

    def train(self, mode: bool = True) -> Self:
        """Forgets the kept kernels, whatever wrote to the weights."""
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Forgets the kept kernels: a move or a cast does not count as a write."""
        self._kept = None
        return super()._apply(fn, recurse)

    def _whole(self, norm: Tensor | None, taps: int | None = None) -> Tensor:
        """(rows, D, taps) over a norm (rows, D, 1), or as it is; what is linear comes before the stretching.

        With `taps` it may be cut to as many.
        """
        count = len(self.kernel_list)
        small = torch.stack(list(self.kernel_list))  # (S, rows, D, k)
        small = small.to(torch.promote_types(small.dtype, torch.float32))
        powers = torch.arange(count - 1, -1, -1, device=small.device).view(-1, 1, 1, 1)
        small = small * self.multiplier.to(small.dtype) ** powers
        if norm is not None:
            small = small / norm.to(small.dtype)
        if self.mode == "cat" and self.interpolation == "linear":
            whole = laid_out(small, self.init_scale, 2**31 if taps is None else taps)
        else:
            exponents = [(max(0, i - 1) if self.mode == "cat" else i) + self.init_scale for i in range(count)]
            parts = stretched(small, exponents, self.interpolation == "linear")
            if self.mode == "cat":
                whole = torch.cat(parts, 2)
            else:
                longest = parts[-1].shape[2]
                whole = torch.stack([F.pad(p, (0, longest - p.shape[2])) for p in parts]).sum(0)
        if self.decay_kind != "scale":
            steps = torch.arange(1, whole.shape[2] + 1, device=whole.device, dtype=whole.dtype).log()
            whole = whole * torch.exp(-self.decay.to(whole.dtype).view(1, -1, 1) * steps)
        return whole

    def kernels(self, length: int) -> tuple[Tensor, Tensor | None]:
        """Taps from the present position backwards (C D, <= length); if bidirectional the next ones forwards, too.

        In eval mode without gradients they are kept until a weight changes, and so is their transform. Writes that
        torch does not count (through `.data`) are noticed by `train` and `eval` only.
        """
        fits = exporting() and not self.any_length  # checked; a minimum would split the graph
        taps = length if fits else min(length, self.max_length)
        key, traced = None, torch.compiler.is_compiling()
        if not (self.training or torch.is_grad_enabled() or traced):
            key = versions(self, taps, min(length - 1, self.max_length))
            if key is not None and self._kept is not None and self._kept[0] == key:
                return self._kept[1]
        whole = self._whole(self.kernel_norm, None if traced or exporting() else taps)
        if exporting():  # a slice would fix whether the sequence is as long as the kernel
            whole = whole.index_select(2, torch.arange(taps, device=whole.device))
        elif traced or whole.shape[2] > taps:  # a slice's gradient is a copy
            whole = whole[:, :, :taps]
        back, ahead = whole, None
        if self.bidirectional:
            back, ahead = whole.chunk(2)  # the first half of the rows looks back
            ahead = ahead.flatten(0, 1)[:, : max(1, length - 1)]
        found = back.flatten(0, 1), ahead
        # a captured graph computes nothing before it is replayed
        if key is not None and not (self.D.is_cuda and torch.cuda.is_current_stream_capturing()):
            self._kept = key, found, {}
        return found

    def check_length(self, length: int) -> None:
        """Raise InputError for sequences that the kernel was not made for."""
        if length > self.max_length and not self.any_length:
            raise InputError(
                f"the sequence has {length} positions, the long convolution was made for at most {self.max_length}; "
                "cut the input, or build the model with a larger max_length"
            )

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x: (B, T, D).
            extra: (C D, W) further taps, centred if bidirectional, else ending at the present position; they are added
                to the kernel before the transform.

        Raises:
            InputError: T above max_length.
        """
        length = x.shape[1]
        self.check_length(length)
        with torch.autocast(x.device.type, enabled=False):
            back, ahead = found = self.kernels(length)
            if extra is not None:
                back, ahead = add_taps(back, ahead, extra.to(back.dtype), length)
            inputs = x if self.copies == 1 else x.repeat(1, 1, self.copies)
            call = inputs, back, ahead if length > 1 else None, self.D.flatten().to(back.dtype)
            kept = None if torch.compiler.is_compiling() or extra is not None else self._kept
            if kept is not None and kept[1] is found:
                with keeping(kept[2]):
                    return long_conv(*call).contiguous()
            return long_conv(*call).contiguous()


def add_taps(back: Tensor, ahead: Tensor | None, extra: Tensor, length: int) -> tuple[Tensor, Tensor | None]:
    """Add taps around the present position (or up to it) to a kernel of one or two directions.

    Args:
        back: (D, <= length) from the present position backwards.
        ahead: (D, < length) from the next position on, or None.
        extra: (D, W).
        length: of the sequence; taps that reach beyond it are dropped.
    """
    width = extra.shape[1]
    here = width - 1 if ahead is None else (width - 1) // 2
    back = _sum(back, extra[:, : here + 1].flip(1)[:, :length])
    return back, None if ahead is None else _sum(ahead, extra[:, here + 1 :][:, : max(1, length - 1)])


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """(D, M) + (D, N) -> (D, max(M, N)), the shorter one followed by zeros."""
    taps = max(a.shape[1], b.shape[1])
    return F.pad(a, (0, taps - a.shape[1])) + F.pad(b, (0, taps - b.shape[1]))


def versions(module: nn.Module, *more: Any) -> Any:
    """Changes whenever a parameter or buffer is written or replaced; None where torch does not count."""
    try:
        return (*more, *((t.data_ptr(), t._version) for t in (*module.parameters(), *module.buffers())))
    except RuntimeError:
        return None
