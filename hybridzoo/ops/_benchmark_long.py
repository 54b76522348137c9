"""Lines of the speed table of `linear_attention` and `long_conv`, at the shapes of CHELA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor

from hybridzoo.ops._benchmark_case import BYTES_PER_SECOND, Case, Contender, ours
from hybridzoo.ops.dispatch import machine_obstacle
from hybridzoo.ops.linear_attention import linear_attention
from hybridzoo.ops.long_conv import long_conv

_FLA = "fla.ops.linear_attn:chunk_linear_attn"


def in_torch_chunks(q: Tensor, k: Tensor, v: Tensor, normalize: bool, chunk: int = 128) -> Tensor:
    """What one writes without kernels: matrix products of chunks in the inputs' dtype, a cumulative sum between."""
    batch, length, heads, _ = q.shape
    q, k, v = (x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4) for x in (q * q.shape[3] ** -0.5, k, v))
    v = torch.cat([v, torch.ones_like(v[..., :1])], -1) if normalize else v
    states = (k.mT @ v).float().cumsum(2).to(q.dtype)
    before = torch.cat([torch.zeros_like(states[:, :, :1]), states[:, :, :-1]], 2)
    o = (q @ k.mT).tril() @ v + q @ before
    o = o[..., :-1] / (o[..., -1:] + 1e-6) if normalize else o
    return o.permute(0, 2, 3, 1, 4).reshape(batch, length, heads, -1)


def _attention(batch: int, length: int, heads: int, keys: int, values: int, normalize: bool, device: str):
    def build() -> Iterator[Contender]:
        torch.manual_seed(0)
        q, k = (torch.randn(batch, length, heads, keys, device=device).abs().bfloat16() for _ in range(2))
        v = torch.randn(batch, length, heads, values, device=device).bfloat16()
        leaves = [x.requires_grad_() for x in (q, k, v)]
        scale = keys**-0.5

        def mine(name: str) -> Tensor:
            return cast(Tensor, linear_attention(*leaves, normalize=normalize, scale=scale, eps=1e-6, backend=name))

        yield from ours("linear_attention", mine, leaves, device)
        if machine_obstacle(_FLA) is None:
            from fla.ops.linear_attn import chunk_linear_attn  # pyright: ignore[reportMissingImports]

            yield Contender("fla", lambda: chunk_linear_attn(*leaves, normalize=normalize)[0], leaves, peer=True)
        yield Contender("chunks in torch", lambda: in_torch_chunks(q, k, v, normalize), leaves, peer=True)

    return build


def by_rfft(x: Tensor, kernel: Tensor) -> Tensor:
    """What every FFT convolution in torch does: (B, D, L) and (D, L) -> (B, D, L)."""
    length = x.shape[2]
    n = 2 * length
    product = torch.fft.rfft(x.float(), n=n) * torch.fft.rfft(kernel.float(), n=n)
    return torch.fft.irfft(product, n=n)[..., :length].to(x.dtype)


def _conv(batch: int, channels: int, length: int, device: str):
    def build() -> Iterator[Contender]:
        torch.manual_seed(0)
        x = torch.randn(batch, length, channels, device=device).bfloat16().requires_grad_()
        kernel = (torch.randn(channels, length, device=device) * 0.02).requires_grad_()
        yield from ours("long_conv", lambda name: long_conv(x, kernel, backend=name), [x, kernel], device)
        own = x.detach().transpose(1, 2).contiguous().requires_grad_()  # the layout that suits it
        taps = kernel.detach().clone().requires_grad_()
        swap: Callable[[Tensor], Tensor] = lambda y: y.transpose(1, 2)  # noqa: E731
        yield Contender("torch.fft", lambda: by_rfft(own, taps), [own, taps], peer=True, to_common=swap)

    return build


def cases(device: str) -> list[Case]:
    """Shapes of CHELA on long texts, Path-X and language; nothing on the CPU, where the peers are our reference."""
    if device != "cuda":
        return []
    found = []
    for name, shape in {
        "B16 T4096 H1 K64 V256 normalised bf16": (16, 4096, 1, 64, 256, True),
        "B16 T4096 H1 K64 V256 bf16": (16, 4096, 1, 64, 256, False),
        "B4 T8192 H8 K128 V128 bf16": (4, 8192, 8, 128, 128, False),
    }.items():
        batch, length, heads, keys, values, _ = shape
        floor = batch * length * heads * (2 * keys + 2 * values) * 2 / BYTES_PER_SECOND * 1e3
        found.append(Case("linear_attention", name, device, _attention(*shape, device), floor))
    for batch, channels, length in ((16, 256, 4096), (16, 128, 16384), (4, 1024, 8192), (50, 160, 1024)):
        floor = (2 * batch * length * channels * 2 + channels * length * 4) / BYTES_PER_SECOND * 1e3
        name = f"B{batch} D{channels} L{length} bf16"
        found.append(Case("long_conv", name, device, _conv(batch, channels, length, device), floor))
    return found
