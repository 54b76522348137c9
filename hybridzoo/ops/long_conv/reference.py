"""The definition of `long_conv` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.ops.dispatch import exporting


def conv_torch(x: Tensor, kernel: Tensor, reverse_kernel: Tensor | None, skip: Tensor | None) -> Tensor:
    """(B, L, D) -> (B, L, D)"""
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        xw, k = x.to(wide), kernel.to(wide)
        reverse = None if reverse_kernel is None else reverse_kernel.to(wide)
        # ONNX and other exported graphs hold no complex numbers; elsewhere the FFT is faster from L = 4 on (measured)
        y = _direct(xw, k, reverse) if exporting() else _fft(xw, k, reverse)
        if skip is not None:
            y = y + skip.to(wide) * xw
        return y.to(x.dtype)


def _direct(x: Tensor, kernel: Tensor, reverse: Tensor | None) -> Tensor:
    """Multiply by the Toeplitz matrix T[t, s] = tap of lag t - s."""
    length = x.shape[1]
    ahead = 0 if reverse is None else reverse.shape[1]
    taps = kernel if reverse is None else torch.cat([reverse.flip(1), kernel], 1)  # lags -ahead .. M - 1
    taps = F.pad(taps, (1, 1))  # a zero before and after, for lags outside the kernel
    at = torch.arange(length, device=x.device)
    lag = (at.unsqueeze(1) - at).clamp(-ahead - 1, kernel.shape[1])
    matrix = taps[:, lag + ahead + 1]  # (D, L, L)
    return torch.einsum("dts,bsd->btd", matrix, x)


def _fft(x: Tensor, kernel: Tensor, reverse: Tensor | None) -> Tensor:
    """Circular convolution, long enough that nothing wraps around into the output."""
    length = x.shape[1]
    ahead = 0 if reverse is None else reverse.shape[1]
    # lags reach from 1 - length to length - 1 only, so that no tap meets another one's lag on a circle of this length
    n = _fast_length(length + max(kernel.shape[1] - 1, ahead))
    taps = F.pad(kernel, (0, n - kernel.shape[1]))
    if reverse is not None:  # lag -s lies at n - s
        taps = taps + F.pad(reverse.flip(1), (n - ahead, 0))
    spectrum = torch.fft.rfft(x.transpose(1, 2), n) * torch.fft.rfft(taps, n)
    return torch.fft.irfft(spectrum, n)[..., :length].transpose(1, 2)


def _fast_length(n: int) -> int:
    """The next even number with no prime factor above 5, where FFTs are fast."""
    n += n % 2
    while True:
        rest = n
        for p in (2, 3, 5):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 2
