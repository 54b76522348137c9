"""Triton kernels of `selective_scan`: channel-last, sequential in time, the state in registers.

A program (one warp) owns BD channels and all their states in one segment and walks its steps; nothing is scanned
associatively (that costs 3 times the instructions). Where batch x channels give too few programs, the sequence is cut
into chunks: end state of each chunk from zero, then the states at the chunk starts (the decay of a chunk is
exp(A sum delta)), then the output. For the backward it keeps a state every few steps.

The loops are over a few steps at a time, all loads of which come first as whole tiles: with the stages of `tl.range`
they are then copied into shared memory while earlier steps compute. The compiler moves loads into registers down to
where they are used, so that each step would wait for memory several times.

Chunk tables (int32): chunk_seg[c] segment, chunk_start[c] first step in its row, chunk_len[c] steps (0: unused),
seg_chunk[s] first chunk of segment s. Rows are batch entries, or, PACKED, all segments lie in row 0.
A and delta work in base 2: exp(delta A) = exp2(delta A log2 e). B and C are fp32.

With a `path` (G, L) every group of channels walks the rows in an order of its own: step t of group g reads and writes
row path[g, t] of every tensor where it lies. u and the gradient of y then have the channels of one group, for all.
"""

# ruff: noqa: RUF005 (Triton has no tuple unpacking in a display; `place` serves all kernels)
from __future__ import annotations

import triton
import triton.language as tl

from hybridzoo.ops.selective_scan._kernels_tiles import (
    LOG2E,
    advance,
    get,
    get_rows,
    get_steps,
    get_tiles,
    moved,
    origin_of,
    place,
    put,
    put_tiles,
    row_of,
    row_tiles,
    rows_of,
    scaled,
    sigmoid,
    softplus,
    zero_tiles,
)


@triton.jit
def _absorb(
    h, total, live, a, pu, pd, pb, bi, reset, at, path, g, L, start, t, sul, sdl, md, w,
    SBL: tl.constexpr, SOFTPLUS: tl.constexpr,
    N: tl.constexpr, NQ: tl.constexpr, W: tl.constexpr, BD: tl.constexpr, FULL: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    rows = rows_of(path, g, L, start, t, COUNT)
    deltas = get_steps(pd, rows, sdl, md, FULL, COUNT, BD)
    us = get_steps(pu, rows, sul, md, FULL, COUNT, BD)
    Bs = get_rows(pb, rows, SBL, row_of(path, g, L, start, t, 0), w, N, NQ, W, COUNT)
    for i in tl.static_range(COUNT):
        if reset is not None:
            keep = 1.0 - tl.load(reset + at + t + i).to(tl.float32)
            h = scaled(h, keep, NQ)
            live = live * keep
        delta = deltas[i] + bi
        if SOFTPLUS:
            delta = softplus(delta)
        h = advance(h, a, delta, delta * us[i], row_tiles(Bs, i, NQ), NQ)
        total += delta
    return h, total, live


@triton.jit
def chunk_state_kernel(
    u, dt, A, Bm, bias, reset, path, ends, sums, alive,
    chunk_seg, chunk_start, chunk_len, DM, DG, NBG, L,
    sub, sul, sdb, sdl, sbb, sbg,
    SBL: tl.constexpr, N: tl.constexpr, SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, FULL: tl.constexpr,
    NQ: tl.constexpr, W: tl.constexpr, BD: tl.constexpr, UN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """State at the end of every chunk from zero, the chunk's sum of delta, and 0 in `alive` if a reset lies in it."""
    g, d, md, w, dn = place(tl.program_id(0), DG, NBG, N, BD, W)
    a = scaled(get_tiles(A + dn, md, w, False, N, NQ, W, BD, FULL), LOG2E, NQ)
    c = tl.program_id(1).to(tl.int64)
    start = tl.load(chunk_start + c).to(tl.int64)
    T = tl.load(chunk_len + c)
    b = 0 if PACKED else tl.load(chunk_seg + c).to(tl.int64)
    bi = 0.0
    if bias is not None:
        bi = get(bias + d, md, FULL)
    origin, shared = origin_of(path, start, d, g, DG)
    pu = u + b * sub + origin * sul + shared
    pd = dt + b * sdb + origin * sdl + d
    pb = Bm + b * sbb + origin * SBL + g * sbg
    h = zero_tiles(BD, NQ, W)
    total = tl.zeros([BD], tl.float32)
    live = 1.0
    full = T // UN * UN
    for t in tl.range(0, full, UN, num_stages=STAGES):
        h, total, live = _absorb(
            h, total, live, a, pu, pd, pb, bi, reset, b * L + start, path, g, L, start, t, sul, sdl, md, w,
            SBL, SOFTPLUS, N, NQ, W, BD, FULL, UN,
        )  # fmt: skip
        pu = moved(path, pu, UN * sul)
        pd = moved(path, pd, UN * sdl)
        pb = moved(path, pb, UN * SBL)
    for t in range(full, T):
        h, total, live = _absorb(
            h, total, live, a, pu, pd, pb, bi, reset, b * L + start, path, g, L, start, t, sul, sdl, md, w,
            SBL, SOFTPLUS, N, NQ, W, BD, FULL, 1,
        )  # fmt: skip
        pu = moved(path, pu, sul)
        pd = moved(path, pd, sdl)
        pb = moved(path, pb, SBL)
    put_tiles(ends + c * DM * N + dn, h, md, w, False, N, NQ, W, BD, FULL)
    put(sums + c * DM + d, total, md, FULL)
    if reset is not None:
        tl.store(alive + c, live)  # every block of channels writes the same value


@triton.jit
def _take_back(
    r, total, live, a, pd, pz, pg, pbc, bi, reset, at, path, g, L, start, t, sdl, szl, sgl, md, w,
    SBC: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr,
    N: tl.constexpr, NQ: tl.constexpr, W: tl.constexpr, BD: tl.constexpr, FULL: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    rows = rows_of(path, g, L, start, t, COUNT)
    deltas = get_steps(moved(path, pd, t * sdl), rows, sdl, md, FULL, COUNT, BD)
    gys = get_steps(moved(path, pg, t * sgl), rows, sgl, md, FULL, COUNT, BD)
    zs = gys
    if HAS_Z:
        zs = get_steps(moved(path, pz, t * szl), rows, szl, md, FULL, COUNT, BD)
    pc = moved(path, pbc, t * SBC) + 2 * NQ * W
    Cs = get_rows(pc, rows, SBC, row_of(path, g, L, start, t, 0), w, N, NQ, W, COUNT)
    for i in tl.static_range(COUNT - 1, -1, -1):
        C = row_tiles(Cs, i, NQ)
        delta = deltas[i] + bi
        if SOFTPLUS:
            delta = softplus(delta)
        gy = gys[i]
        if HAS_Z:
            gy = gy * zs[i] * sigmoid(zs[i])
        out = ()
        for q in tl.static_range(NQ):
            out = out + ((r[q] + gy[:, None] * C[q]) * tl.exp2(delta[:, None] * a[q]),)
        r = out
        total += delta
        if reset is not None:
            keep = 1.0 - tl.load(reset + at + t + i).to(tl.float32)
            r = scaled(r, keep, NQ)
            live = live * keep
    return r, total, live


@triton.jit
def reverse_state_kernel(
    dt, z, gy, A, BC, bias, reset, path, states, sums, alive,
    chunk_seg, chunk_start, chunk_len, DM, DG, NBG, L,
    sdb, sdl, szb, szl,
    G: tl.constexpr, N: tl.constexpr, SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, FULL: tl.constexpr,
    NQ: tl.constexpr, W: tl.constexpr, BD: tl.constexpr, UN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """What every chunk adds to the gradient of the state before it, with the sum of delta and `alive` as above."""
    g, d, md, w, dn = place(tl.program_id(0), DG, NBG, N, BD, W)
    a = scaled(get_tiles(A + dn, md, w, False, N, NQ, W, BD, FULL), LOG2E, NQ)
    c = tl.program_id(1).to(tl.int64)
    start = tl.load(chunk_start + c).to(tl.int64)
    T = tl.load(chunk_len + c)
    b = 0 if PACKED else tl.load(chunk_seg + c).to(tl.int64)
    origin, shared = origin_of(path, start, d, g, DG)
    sgl = DM if path is None else DG
    pd = dt + b * sdb + origin * sdl + d
    SBC: tl.constexpr = G * 4 * NQ * W
    pbc = BC + (b * L + origin) * SBC + g * (4 * NQ * W)
    pg = gy + (b * L + origin) * sgl + shared
    pz = pd
    if z is not None:
        pz = z + b * szb + origin * szl + d
    bi = 0.0
    if bias is not None:
        bi = get(bias + d, md, FULL)
    r = zero_tiles(BD, NQ, W)
    total = tl.zeros([BD], tl.float32)
    live = 1.0
    at = b * L + start
    full = T // UN * UN
    for k in range(0, T - full):
        r, total, live = _take_back(
            r, total, live, a, pd, pz, pg, pbc, bi, reset, at, path, g, L, start, T - 1 - k, sdl, szl, sgl, md, w,
            SBC, z is not None, SOFTPLUS, N, NQ, W, BD, FULL, 1,
        )  # fmt: skip
    for k in tl.range(0, full, UN, num_stages=STAGES):
        r, total, live = _take_back(
            r, total, live, a, pd, pz, pg, pbc, bi, reset, at, path, g, L, start, full - UN - k, sdl, szl, sgl, md, w,
            SBC, z is not None, SOFTPLUS, N, NQ, W, BD, FULL, UN,
        )  # fmt: skip
    put_tiles(states + c * DM * N + dn, r, md, w, False, N, NQ, W, BD, FULL)
    put(sums + c * DM + d, total, md, FULL)
    if reset is not None:
        tl.store(alive + c, live)


@triton.jit
def carry_kernel(
    A, init, states, sums, alive, final, seg_chunk, DM,
    N: tl.constexpr, REVERSE: tl.constexpr, BE: tl.constexpr, UN: tl.constexpr,
):  # fmt: skip
    """Turn what each chunk adds into what enters it, in place, along a segment (from its end if REVERSE)."""
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    me = e < DM * N
    d = e // N
    s = tl.program_id(1).to(tl.int64)
    first = tl.load(seg_chunk + s).to(tl.int64)
    count = tl.load(seg_chunk + s + 1) - first
    a = tl.load(A + e, mask=me, other=0.0).to(tl.float32) * LOG2E
    if init is not None:
        h = tl.load(init + s * DM * N + e, mask=me, other=0.0).to(tl.float32)
    else:
        h = tl.zeros([BE], tl.float32)
    for k in range(0, count, UN):
        added = ()
        decays = ()
        for i in tl.static_range(UN):  # all loads first: they are what takes time
            c = first + (count - 1 - k - i if REVERSE else k + i)
            ok = me & (k + i < count)
            added = added + (tl.load(states + c * DM * N + e, mask=ok, other=0.0),)
            decay = tl.exp2(tl.load(sums + c * DM + d, mask=ok, other=0.0) * a)
            if alive is not None:
                decay = decay * tl.load(alive + c, mask=k + i < count, other=1.0)
            decays = decays + (decay,)
        for i in tl.static_range(UN):
            c = first + (count - 1 - k - i if REVERSE else k + i)
            tl.store(states + c * DM * N + e, h, mask=me & (k + i < count))
            h = h * decays[i] + added[i]
    tl.store(final + s * DM * N + e, h, mask=me)
