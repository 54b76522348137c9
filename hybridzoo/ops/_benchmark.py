"""The speed table of the ops: shapes of real models, our backends beside the packages a user would take instead.

Peers get their inputs in their own layout, without the copies that our adapters make. Used by `hybridzoo bench ops`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.errors import BackendError, UnknownNameError, unknown
from hybridzoo.ops import _benchmark_attention, _benchmark_delta, _benchmark_long, _benchmark_scan_2d
from hybridzoo.ops._benchmark_case import BYTES_PER_SECOND, EXPS_PER_SECOND, Case, Contender
from hybridzoo.ops._benchmark_case import ours as ours_of
from hybridzoo.ops.causal_conv1d import causal_conv1d
from hybridzoo.ops.dispatch import machine_obstacle
from hybridzoo.ops.ms_deform_attn import ms_deform_attn
from hybridzoo.ops.selective_scan import mamba_ssm, selective_scan


def loop_of_mamba_ssm(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor | None = None
) -> Tensor:
    """What mamba-ssm's `selective_scan_ref` does, the only path without CUDA: discretise, then an einsum a step."""
    delta = F.softplus(dt if dt_bias is None else dt + dt_bias)
    decay = torch.exp(torch.einsum("bld,dn->bldn", delta, A))
    drive = torch.einsum("bld,bln,bld->bldn", delta, B, u)
    h = torch.zeros_like(decay[:, 0])
    ys = []
    for t in range(u.shape[1]):
        h = decay[:, t] * h + drive[:, t]
        ys.append(torch.einsum("bdn,bn->bd", h, C[:, t]))
    return torch.stack(ys, 1) + u * D


def _scan(batch: int, length: int, channels: int, n: int, groups: int, dtype: torch.dtype, gate: bool, device: str):
    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.float32).to(dtype)

    def build() -> Iterator[Contender]:
        torch.manual_seed(0)
        u, dt = rand(batch, length, channels), rand(batch, length, channels) * 0.5
        A = -torch.arange(1, n + 1, device=device, dtype=torch.float32).repeat(channels, 1)
        B, C = rand(batch, length, groups, n), rand(batch, length, groups, n)
        D = torch.ones(channels, device=device)
        bias = torch.full((channels,), -4.6, device=device)
        z = rand(batch, length, channels) if gate else None
        leaves = [x.requires_grad_() for x in (u, dt, A, B, C, D, bias, z) if x is not None]

        def ours(name: str) -> Tensor:
            return cast(Tensor, selective_scan(u, dt, A, B, C, D, z, bias, dt_softplus=True, backend=name))

        yield from ours_of("selective_scan", ours, leaves, device)
        if device == "cuda" and machine_obstacle(mamba_ssm.SYMBOL) is None:
            from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # pyright: ignore[reportMissingImports]

            def last(x: Tensor | None) -> Tensor | None:
                return None if x is None else x.detach().movedim(1, -1).contiguous().requires_grad_()

            first = [last(x) for x in (u, dt, B, C, z)]
            small = [x.detach().clone().requires_grad_() for x in (A, D, bias)]

            def peer() -> Tensor:
                u_, dt_, B_, C_, z_ = first
                return selective_scan_fn(u_, dt_, small[0], B_, C_, small[1], z_, small[2], True)

            own = [x for x in (*first, *small) if x is not None]
            yield Contender("mamba_ssm", peer, own, peer=True, to_common=lambda y: y.transpose(1, 2))
        if device == "cpu":
            yield Contender(
                "mamba_ssm's loop", lambda: loop_of_mamba_ssm(u, dt, A, B[:, :, 0], C[:, :, 0], D, bias), leaves, True
            )

    size = torch.empty((), dtype=dtype).element_size()
    moved = batch * length * (channels * (4 if gate else 3) + 2 * groups * n) * size
    floor = max(moved / BYTES_PER_SECOND, batch * length * channels * (n + 1 + gate) / EXPS_PER_SECOND)
    return build, floor * 1e3 if device == "cuda" else None


def _conv(batch: int, length: int, channels: int, taps: int, padding: Any, silu: bool, dtype: torch.dtype, device: str):
    def build() -> Iterator[Contender]:
        torch.manual_seed(0)
        x = torch.randn(batch, length, channels, device=device).to(dtype).requires_grad_()
        weight = torch.randn(channels, taps, device=device).to(dtype).requires_grad_()
        bias = torch.randn(channels, device=device).to(dtype).requires_grad_()
        activation = "silu" if silu else None

        def ours(name: str) -> Tensor:
            return cast(Tensor, causal_conv1d(x, weight, bias, activation=activation, padding=padding, backend=name))

        yield from ours_of("causal_conv1d", ours, [x, weight, bias], device)
        first = x.detach().transpose(1, 2).contiguous().requires_grad_()
        weights = [t.detach().clone().requires_grad_() for t in (weight, bias)]
        if device == "cuda" and padding == "causal" and machine_obstacle("causal_conv1d:causal_conv1d_fn") is None:
            from causal_conv1d import causal_conv1d_fn  # pyright: ignore[reportAttributeAccessIssue]

            def peer(inp: Tensor) -> Tensor:
                return causal_conv1d_fn(inp, *weights, activation=activation)

            view = x.detach().clone().requires_grad_()
            swap = {"peer": True, "to_common": lambda y: y.transpose(1, 2)}
            yield Contender("causal_conv1d (B, D, L)", lambda: peer(first), [first, *weights], **swap)
            yield Contender("causal_conv1d (B, L, D)", lambda: peer(view.transpose(1, 2)), [view, *weights], **swap)
        wide = weight.detach().unsqueeze(1).clone().requires_grad_()

        def torchs() -> Tensor:
            left = taps - 1 if padding == "causal" else (taps - 1) // 2
            padded = first if left == taps - 1 - left else F.pad(first, (left, taps - 1 - left))
            around = left if left == taps - 1 - left else 0
            y = F.conv1d(padded, wide, weights[1], padding=around, groups=channels)
            return F.silu(y) if silu else y

        leaves = [first, wide, weights[1]]
        yield Contender("F.conv1d", torchs, leaves, peer=True, to_common=lambda y: y.transpose(1, 2))

    size = torch.empty((), dtype=dtype).element_size()
    return build, batch * length * channels * 2 * size / BYTES_PER_SECOND * 1e3 if device == "cuda" else None


def deform_by_stacking(value: Tensor, maps: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Without its CUDA extension every implementation does this: sample map by map, stack, multiply, sum."""
    (batch, _, heads, channels), (queries, points) = value.shape, (weights.shape[1], weights.shape[4])
    sampled = []
    for level, flat in enumerate(value.split([h * w for h, w in maps], dim=1)):
        image = flat.permute(0, 2, 3, 1).reshape(batch * heads, channels, *maps[level])
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1).to(value.dtype)
        sampled.append(F.grid_sample(image, grid, align_corners=False))
    shares = weights.transpose(1, 2).reshape(batch * heads, 1, queries, len(maps) * points)
    out = (torch.stack(sampled, dim=-2).flatten(-2) * shares).sum(-1)
    return out.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


class _MsdaExt(torch.autograd.Function):
    """The CUDA operator of Deformable-DETR and mmcv, built on its own as `msda_ext`."""

    @staticmethod
    def forward(ctx, value, maps, starts, locations, weights):
        import msda_ext  # pyright: ignore[reportMissingImports]

        ctx.save_for_backward(value, maps, starts, locations, weights)
        return msda_ext.ms_deform_attn_forward(value, maps, starts, locations, weights, 64)

    @staticmethod
    def backward(ctx, *grads):
        import msda_ext  # pyright: ignore[reportMissingImports]

        value, maps, starts, locations, weights = ctx.saved_tensors
        found = [torch.zeros_like(x) for x in (value, locations, weights)]
        msda_ext.ms_deform_attn_backward(value, maps, starts, locations, weights, grads[0].contiguous(), *found, 64)
        return found[0], None, None, found[1], found[2]


def _deform(maps: list[tuple[int, int]], queries: int | None, dtype: torch.dtype, device: str):
    """8 heads of 32 channels, 4 points; every position of the maps is a query if their number is left out."""
    rows = sum(h * w for h, w in maps)
    queries, heads, channels, points = queries or rows, 8, 32, 4
    shape = (1, queries, heads, len(maps), points)

    def build() -> Iterator[Contender]:
        torch.manual_seed(0)
        value = torch.randn(1, rows, heads, channels, device=device).to(dtype).requires_grad_()
        locations = torch.rand(*shape, 2, device=device).requires_grad_()
        weights = torch.rand(shape, device=device).flatten(3).softmax(3).view(shape).to(dtype).requires_grad_()
        leaves = [value, locations, weights]
        yield from ours_of(
            "ms_deform_attn", lambda name: ms_deform_attn(value, maps, *leaves[1:], backend=name), leaves, device
        )
        if device == "cuda" and machine_obstacle("msda_ext:ms_deform_attn_forward") is None:
            own_dtype = torch.float16 if dtype == torch.bfloat16 else dtype  # it has no bfloat16
            own = [x.detach().to(own_dtype).requires_grad_() for x in leaves]
            pairs = torch.tensor(maps, device=device)
            starts = torch.cat([pairs.new_zeros(1), pairs.prod(1).cumsum(0)[:-1]])
            name = "msda_ext" if own_dtype == dtype else "msda_ext (fp16)"
            yield Contender(name, lambda: cast(Tensor, _MsdaExt.apply(own[0], pairs, starts, *own[1:])), own, peer=True)
        copies = [x.detach().clone().requires_grad_() for x in leaves]
        yield Contender("grid_sample", lambda: deform_by_stacking(copies[0], maps, *copies[1:]), copies, peer=True)

    size = torch.empty((), dtype=dtype).element_size()
    samples = queries * heads * len(maps) * points
    moved = (rows + queries) * heads * channels * size + samples * (2 * 4 + size)
    return build, moved / BYTES_PER_SECOND * 1e3 if device == "cuda" else None


def cases(device: str) -> list[Case]:
    """The table for a kind of device."""
    bf16, fp32 = torch.bfloat16, torch.float32
    four = [(100, 167), (50, 84), (25, 42), (13, 21)]  # an 800 x 1333 image at strides 8 to 64
    if device == "cpu":
        build, floor = _scan(1, 1024, 256, 16, 1, fp32, False, device)
        found = [Case("selective_scan", "B1 L1024 D256 N16 fp32", device, build, floor)]
        build, floor = _deform(four, 900, fp32, device)
        found.append(Case("ms_deform_attn", "decoder Q900 4 maps fp32", device, build, floor))
        return [*found, *_benchmark_scan_2d.cases(device), *_benchmark_delta.cases(device)]
    found = []
    for name, shape in {
        "Hymba training B4 L2176 D3200 N16 bf16 z": (4, 2176, 3200, 16, 1, bf16, True),
        "aligned B4 L2048 D3200 N16 bf16 z": (4, 2048, 3200, 16, 1, bf16, True),
        "Hymba prefill B1 L8320 D3200 N16 bf16 z": (1, 8320, 3200, 16, 1, bf16, True),
        "MaskMamba B2 L16384 D1280 N16 bf16": (2, 16384, 1280, 16, 1, bf16, False),
        "MaskMamba B64 L257 D1280 N16 bf16": (64, 257, 1280, 16, 1, bf16, False),
        "MambaAD 8x8 B16 L64 D8192 G8 N16 fp32": (16, 64, 8192, 16, 8, fp32, False),
        "MambaAD 64x64 B16 L4096 D1024 G8 N16 fp32": (16, 4096, 1024, 16, 8, fp32, False),
    }.items():
        build, floor = _scan(*shape, device)
        found.append(Case("selective_scan", name, device, build, floor))
    for name, shape in {
        "Hymba B4 L2176 D3200 W4 SiLU bf16": (4, 2176, 3200, 4, "causal", True, bf16),
        "DeltaNet B8 L2048 D2048 W4 SiLU bf16": (8, 2048, 2048, 4, "causal", True, bf16),
        "same-padded B8 L2048 D2048 W3 bf16": (8, 2048, 2048, 3, "same", False, bf16),
    }.items():
        build, floor = _conv(*shape, device)
        found.append(Case("causal_conv1d", name, device, build, floor))
    five = [(200, 334), *four]
    deform: dict[str, tuple[list[tuple[int, int]], int | None, torch.dtype]] = {
        "encoder Q22223 4 maps fp32": (four, None, fp32),
        "encoder Q22223 4 maps bf16": (four, None, bf16),
        "encoder Q89023 5 maps fp32": (five, None, fp32),
        "encoder Q89023 5 maps bf16": (five, None, bf16),
        "decoder Q900 4 maps fp32": (four, 900, fp32),
        "decoder Q900 4 maps bf16": (four, 900, bf16),
    }
    for name, (maps, queries, dtype) in deform.items():
        build, floor = _deform(maps, queries, dtype, device)
        found.append(Case("ms_deform_attn", name, device, build, floor))
    others = (_benchmark_scan_2d, _benchmark_delta, _benchmark_long, _benchmark_attention)
    return [*found, *(case for module in others for case in module.cases(device))]


def time_cpu(call: Callable[[], Any], seconds: float) -> float:
    """CPU time of the calling thread in ms, the best of several calls: robust on a busy machine."""
    call()
    best, spent, n = float("inf"), 0.0, 0
    while n < 2 or spent < seconds:
        start = time.process_time()
        call()
        took = time.process_time() - start
        best, spent, n = min(best, took), spent + took, n + 1
    return best * 1e3


def time_cuda(call: Callable[[], Any], seconds: float) -> float:
    """Median of device events in ms, the L2 cache overwritten before each call.

    The device waits before the first event until the host has enqueued the whole call: what is measured is the device's
    time, for every contender, whatever the processor and its other work.
    """
    flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    enqueue = 0.0
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        enqueue = time.perf_counter() - start
    wait = int(2e9 * min(2 * enqueue + 2e-4, 0.02))  # cycles of a clock of at most 2 GHz
    torch.cuda.synchronize()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 100):
        flush.zero_()
        torch.cuda._sleep(wait)
        begin, done = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        done.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(done))
    return sorted(times)[len(times) // 2]


def run_case(case: Case, *, seconds: float = 0.3, peers: bool = True) -> list[dict[str, Any]]:
    """One row per contender: forward without gradients, forward and backward, peak memory, difference, ratios."""
    clock = time_cuda if case.device == "cuda" else time_cpu
    rows: list[dict[str, Any]] = []
    first: Tensor | None = None
    for c in case.build():
        if c.peer and not peers:
            continue
        row: dict[str, Any] = {"op": case.op, "shape": case.name, "backend": c.name, "peer": c.peer}
        with torch.no_grad():
            y = c.to_common(c.call()).float()
            first = y if first is None else first
            row["difference"] = ((y - first).norm() / first.norm()).item()
            row["fwd_ms"] = clock(c.call, seconds)
        if case.floor_ms is not None:
            row["floor_ms"] = case.floor_ms
            row["of_floor"] = case.floor_ms / row["fwd_ms"]
        if case.backward:
            g = torch.randn_like(c.call())

            def step(c: Contender = c, g: Tensor = g) -> None:
                torch.autograd.grad(c.call(), c.leaves, g)

            if case.device == "cuda":
                gc.collect()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                step()
                row["peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
            row["fwd_bwd_ms"] = clock(step, seconds)
        rows.append(row)
    for row in rows:
        for key in ("fwd_ms", "fwd_bwd_ms"):
            rivals = [r[key] for r in rows if r["peer"] and key in r]
            if not row["peer"] and rivals and key in row:
                row[key.replace("_ms", "_x_best_peer")] = min(rivals) / row[key]
    return rows


def benchmark(
    device: str,
    op: str | None = None,
    *,
    seconds: float = 0.3,
    peers: bool = True,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run the table; a contender that fails is an error, since a missing row would look like a missing rival."""
    table = [c for c in cases(device) if op is None or c.op == op]
    if not table:
        raise UnknownNameError(unknown("benchmarked op", str(op), {c.op for c in cases(device)}, f"(on {device})"))
    rows = []
    for case in table:
        found = run_case(case, seconds=seconds, peers=peers)
        if not found:
            raise BackendError(f"nothing runs {case.name} on {device}; see `hybridzoo doctor`")
        for row in found:
            log(_line(row))
        rows += found
    return rows


def _line(row: dict[str, Any]) -> str:
    text = f"{row['op']:15s} {row['shape']:44s} {row['backend']:26s} fwd {row['fwd_ms']:9.3f}"
    text += f"  fwd+bwd {row['fwd_bwd_ms']:9.3f}" if "fwd_bwd_ms" in row else ""
    if "fwd_x_best_peer" in row:
        text += f"  {row['fwd_x_best_peer']:.2f}x / {row.get('fwd_bwd_x_best_peer', float('nan')):.2f}x"
    return text
