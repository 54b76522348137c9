"""Launches of the Triton kernels of `selective_scan`: chunk tables, buffers, and how the work is cut."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2
from hybridzoo.ops.selective_scan._kernels import carry_kernel, chunk_state_kernel, reverse_state_kernel
from hybridzoo.ops.selective_scan._kernels_backward import gradient_kernel
from hybridzoo.ops.selective_scan._kernels_forward import output_kernel


class Backward(NamedTuple):
    """How the backward recomputes states: constants that decide speed and memory only (see `_kernels_backward`)."""

    keep: int = 8  # steps between states that the forward keeps: 4 N / 8 bytes per (step, channel)
    fine: int = 8  # steps whose states are parked at a time
    sub: int = 2  # steps walked back at a time; 2 take 255 registers, 1 takes 168
    registers: int = 255  # at most, a thread
    programs_per_sm: int = 8  # as many as these registers let run at once


class Tuning(NamedTuple):
    """Constants that decide speed and memory only."""

    chunk_training: int = 64
    chunk_inference: int = 128
    chunk_least: int = 32  # of inference, where longer chunks would leave the device idle
    filled_per_sm: int = 16  # programs that walk chunks, from which on the device is busy
    tile: int = 512  # channels x states of a program: at one warp 16 fp32 registers a thread for the state
    unroll: int = 8
    state_unroll: int = 8
    stages: int = 3  # of the loops over `unroll` steps: loads are started stages - 1 ahead
    warps: int = 1
    carry_block: int = 128
    carry_unroll: int = 8
    backward_tile: int = 512
    backward_unroll: int = 8
    backward_warps: int = 1
    enough_per_sm: int = 4  # programs that walk whole segments, from which on chunks are not worth a second pass
    backward_enough_per_sm: int = 6
    backward: Backward = Backward()
    # with paths a position has the channels of all directions, so that fewer states are kept
    backward_on_paths: Backward = Backward(keep=64, sub=1, registers=168, programs_per_sm=12)


TUNING = Tuning()


class Plan(NamedTuple):
    """How a call is cut: channels per program, chunk length, whether a program walks a whole segment."""

    NP: int
    BD: int
    W: int
    per_group: int
    blocks: int
    chunk: int
    one_pass: bool
    warps: int


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def make_plan(u: Tensor, d_state: int, groups: int, segments: int, keep: bool, backward: bool) -> Plan:
    """The chunks of a backward are those of its forward; depends on shapes only."""
    NP = max(4, next_power_of_2(d_state))
    channels = u.shape[2] // groups
    tile = TUNING.backward_tile if backward else TUNING.tile
    BD = max(4, min(tile // NP, 32 if backward else 128, next_power_of_2(channels)))
    per_group = cdiv(channels, BD)
    chunk = TUNING.chunk_training if keep else TUNING.chunk_inference
    rows = u.shape[0] * u.shape[1]
    enough_per_sm = TUNING.backward_enough_per_sm if backward else TUNING.enough_per_sm
    enough = per_group * groups * segments >= enough_per_sm * _multiprocessors(u.device)
    one_pass = enough or rows <= 2 * chunk * segments
    if not keep and not one_pass:  # a short walk ends sooner
        filled = TUNING.filled_per_sm * _multiprocessors(u.device)
        while chunk > TUNING.chunk_least and per_group * groups * cdiv(rows, chunk) < filled:
            chunk //= 2
    warps = TUNING.backward_warps if backward else TUNING.warps
    return Plan(NP, BD, min(NP, max(4, 128 * warps // BD)), per_group, per_group * groups, chunk, one_pass, warps)


@lru_cache(maxsize=64)
def _dense_tables(batch: int, length: int, chunk: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.inference_mode(False):
        n = -(-length // chunk)
        i32 = {"dtype": torch.int32, "device": device}
        seg = torch.arange(batch, **i32).repeat_interleave(n)
        start = (torch.arange(n, **i32) * chunk).repeat(batch)
        return seg, start, (length - start).clamp(max=chunk), torch.arange(batch + 1, **i32) * n


def _packed_tables(cu_seqlens: Tensor, length: int, chunk: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for segments of any length, without waiting for the device: as many chunks as there could be."""
    cu = cu_seqlens.to(torch.int64)
    segments = cu.numel() - 1
    per_segment = (cu.diff() + chunk - 1) // chunk
    seg_chunk = torch.nn.functional.pad(per_segment.cumsum(0), (1, 0))
    ids = torch.arange(-(-length // chunk) + segments, device=cu.device)
    seg = torch.searchsorted(seg_chunk[1:], ids, right=True).clamp(max=segments - 1)
    start = cu[seg] + (ids - seg_chunk[seg]) * chunk
    size = (cu[seg + 1] - start).clamp(0, chunk)
    return tuple(x.to(torch.int32) for x in (seg, start.clamp(max=length - 1), size, seg_chunk))


class _Launch:
    """What all kernels of one call share."""

    def __init__(
        self,
        u: Tensor,
        A: Tensor,
        B: Tensor,
        seq_idx: Tensor | None,
        cu_seqlens: Tensor | None,
        keep: bool,
        backward: bool = False,
    ) -> None:
        self.batch, self.length, self.channels = u.shape
        self.groups, self.states = B.shape[2], A.shape[1]
        self.packed = cu_seqlens is not None
        self.segments = self.batch if cu_seqlens is None else cu_seqlens.numel() - 1
        self.plan = make_plan(u, self.states, self.groups, self.segments, keep, backward)
        if cu_seqlens is None:
            self.tables = _dense_tables(self.batch, self.length, self.plan.chunk, u.device)
        else:
            self.tables = _packed_tables(cu_seqlens, self.length, self.plan.chunk)
        self.chunks = self.tables[0].numel()
        self.reset = None
        if seq_idx is not None:
            change = seq_idx[:, 1:] != seq_idx[:, :-1]
            self.reset = torch.nn.functional.pad(change, (1, 0)).to(torch.uint8).contiguous()
        self.work = self.segments if self.plan.one_pass else self.chunks
        self.dims = (self.channels, self.channels // self.groups, self.plan.per_group)
        self.device = u.device

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def chunk_buffers(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """States, sums of delta, and 0 where a reset lies in the chunk."""
        sums = self.empty(self.chunks, self.channels)
        alive = None if self.reset is None else self.empty(self.chunks)
        return self.empty(self.chunks, self.channels, self.states), sums, alive

    def tiles(self, softplus: bool) -> dict[str, Any]:
        p = self.plan
        return {
            "N": self.states,
            "SOFTPLUS": softplus,
            "PACKED": self.packed,
            "FULL": self.channels // self.groups % p.BD == 0,
            "NQ": p.NP // p.W,
            "W": p.W,
            "BD": p.BD,
            "num_warps": p.warps,
        }

    def carry(
        self,
        A: Tensor,
        init: Tensor | None,
        states: Tensor,
        sums: Tensor,
        alive: Tensor | None,
        out: Tensor,
        back: bool,
    ) -> None:
        """See `carry_kernel`."""
        block = TUNING.carry_block
        launch(carry_kernel, (cdiv(self.channels * self.states, block), self.segments),
            A, init, states, sums, alive, out, self.tables[3], self.channels,
            N=self.states, REVERSE=back, BE=block, UN=TUNING.carry_unroll, num_warps=1,
        )  # fmt: skip


def _unit(x: Tensor | None) -> Tensor | None:
    """Any strides but a dense last dimension: slices of a projection's output are read in place."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _wide(x: Tensor) -> Tensor:
    """B and C in fp32: they are small, and every block of channels reads them again."""
    return x.float() if x.dtype != torch.float32 else _unit(x)  # type: ignore[return-value]


def _doubled(B: Tensor, C: Tensor, NP: int) -> Tensor:
    """(B, L, G, 4 NP) fp32: B, B, C, C, with NP states each. See `get_turned`."""
    if B.shape[-1] < NP:
        B, C = (torch.nn.functional.pad(x, (0, NP - x.shape[-1])) for x in (B, C))
    return torch.cat((B, B, C, C), -1).float()


def _strides(x: Tensor | None, n: int) -> tuple[int, ...]:
    return (0,) * n if x is None else x.stride()[:n]


def _backward_of(paths: bool) -> Backward:
    """Its constants; a chunk is a multiple of the steps between kept states."""
    found = TUNING.backward_on_paths if paths else TUNING.backward
    return found._replace(keep=min(found.keep, TUNING.chunk_training))


def kept_states(length: int, batch: int, segments: int | None, paths: bool = False) -> int:
    """How many states a training forward keeps."""
    chunks = cdiv(length, TUNING.chunk_training)
    chunks = batch * chunks if segments is None else chunks + segments
    return chunks * (TUNING.chunk_training // _backward_of(paths).keep)


def scan_forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    keep: bool,
    path: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final states (S, D, N), and a state every few steps (`kept_states`, D, N), or nothing unless `keep`.

    With `path` (G, L) int32, the order in which each group of channels walks the rows, u has one group's channels.
    """
    u, dt, z, B, C = _unit(u), _unit(dt), _unit(z), _wide(B), _wide(C)
    A, D, dt_bias, initial_state = _dense(A), _dense(D), _dense(dt_bias), _dense(initial_state)
    run = _Launch(dt, A, B, seq_idx, cu_seqlens, keep)
    plan, (seg, start, size, seg_chunk) = run.plan, run.tables
    y = (torch.zeros if run.packed else torch.empty)(dt.shape, dtype=u.dtype, device=u.device)
    final = run.empty(run.segments, run.channels, run.states)
    every = _backward_of(path is not None).keep if keep else 0
    per = plan.chunk // every if keep else 0
    # short chunks leave some states out: zeros, so that what is returned is always the same
    make = torch.zeros if run.packed or run.length % plan.chunk else torch.empty
    kept = make((run.chunks * per, run.channels, run.states), device=u.device)
    states = None
    tiles = run.tiles(softplus)
    if not plan.one_pass:
        states, sums, alive = run.chunk_buffers()
        launch(chunk_state_kernel, (plan.blocks, run.chunks),
            u, dt, A, B, dt_bias, run.reset, path, states, sums, alive, seg, start, size, *run.dims, run.length,
            *_strides(u, 2), *_strides(dt, 2), B.stride(0), B.stride(2),
            SBL=B.stride(1), UN=TUNING.state_unroll, STAGES=TUNING.stages, **tiles,
        )  # fmt: skip
        run.carry(A, initial_state, states, sums, alive, final, back=False)
    launch(output_kernel, (plan.blocks, run.work),
        u, dt, z, A, B, C, D, dt_bias, run.reset, path, initial_state, states, y, kept, final,
        seg, start, size, seg_chunk, *run.dims, run.length, *_strides(u, 2), *_strides(dt, 2), *_strides(z, 2),
        B.stride(0), B.stride(2), C.stride(0), C.stride(2), SBL=B.stride(1), SCL=C.stride(1),
        ONE_PASS=plan.one_pass, KEEP=every, PER=per, UN=min(TUNING.unroll, every or plan.chunk),
        STAGES=TUNING.stages,
        **tiles,
    )  # fmt: skip
    return y, final, kept


def scan_backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    softplus: bool,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    kept: Tensor,
    path: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, dt, A, B, C, D, z, dt_bias, initial_state; those of absent inputs are empty tensors.

    With `path` the gradient of u has the channels of every group, to be summed, and `grad_y` those of one.
    """
    u, dt, z = _unit(u), _unit(dt), _unit(z)
    A, D, dt_bias, grad_y, grad_final = (_dense(x) for x in (A, D, dt_bias, grad_y, grad_final))
    run = _Launch(dt, A, B, seq_idx, cu_seqlens, keep=True, backward=True)
    plan, (seg, start, size, seg_chunk) = run.plan, run.tables
    tiles = run.tiles(softplus)
    make = torch.zeros_like if run.packed else torch.empty_like
    ddt = make(dt, memory_format=torch.contiguous_format)
    du = make(dt, dtype=u.dtype, memory_format=torch.contiguous_format)
    dz = None if z is None else make(z, memory_format=torch.contiguous_format)
    partial_shape = (plan.per_group, run.batch, run.length, run.groups, 2, run.states)
    dBC = (torch.zeros if run.packed else torch.empty)(partial_shape, device=u.device)
    BC = _doubled(B, C, plan.NP)
    d_init = run.empty(run.segments, run.channels, run.states)
    carry = None
    if not plan.one_pass:
        carry, sums, alive = run.chunk_buffers()
        launch(reverse_state_kernel, (plan.blocks, run.chunks),
            dt, z, grad_y, A, BC, dt_bias, run.reset, path, carry, sums, alive, seg, start, size, *run.dims, run.length,
            *_strides(dt, 2), *_strides(z, 2), G=run.groups, UN=TUNING.state_unroll, STAGES=TUNING.stages, **tiles,
        )  # fmt: skip
        run.carry(A, grad_final, carry, sums, alive, d_init, back=True)
    # as many programs as run at once; each sums the gradients of the weights over what it does
    way = _backward_of(path is not None)
    at_once = way.programs_per_sm * _multiprocessors(u.device)
    visits = cdiv(run.work, max(1, min(run.work, at_once // plan.blocks)))
    share = cdiv(run.work, visits)
    dA = run.empty(share, run.channels, run.states)
    dD = None if D is None else run.empty(share, run.channels)
    dbias = None if dt_bias is None else run.empty(share, run.channels)
    fine = min(way.fine, way.keep)
    sub = min(way.sub, fine)
    unroll = max(sub, min(TUNING.backward_unroll, fine))
    parked = fine // sub + sub + 1
    slots = parked + (way.keep // fine if fine < way.keep else 0)
    splits = min(plan.BD * plan.W // plan.NP, plan.W).bit_length() - 1
    park = run.empty(plan.blocks * share, slots, plan.BD, plan.NP)
    launch(gradient_kernel, (plan.blocks * share,),
        u, dt, z, grad_y, A, BC, D, dt_bias, run.reset, path, kept, carry, grad_final,
        park, du, ddt, dz, dA, dBC, dD, dbias, d_init,
        seg, start, size, seg_chunk, *run.dims, run.length, run.batch, plan.blocks, run.work, share,
        *_strides(u, 2), *_strides(dt, 2), *_strides(z, 2),
        G=run.groups, ONE_PASS=plan.one_pass, SUB=sub, SPLITS=splits, PARKED=parked, SLOTS=slots, UN=unroll,
        CHUNK=plan.chunk, KEEP=way.keep, FINE=fine, maxnreg=way.registers, **tiles,
    )  # fmt: skip
    dBC = dBC.sum(0)
    return (
        du,
        ddt,
        dA.sum(0).to(A.dtype),
        dBC[..., 0, :].to(B.dtype, copy=True, memory_format=torch.contiguous_format),
        dBC[..., 1, :].to(C.dtype, copy=True, memory_format=torch.contiguous_format),
        run.empty(0) if D is None or dD is None else dD.sum(0).to(D.dtype),
        run.empty(0) if dz is None else dz,
        run.empty(0) if dt_bias is None or dbias is None else dbias.sum(0).to(dt_bias.dtype),
        d_init,
    )
