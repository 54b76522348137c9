"""Triton kernel of the output of `selective_scan` (see `_kernels` for the legend)."""

# ruff: noqa: RUF005, SIM102 (Triton has no tuple unpacking in a display; constexpr conditions are decided when a kernel is compiled, the others when it runs)
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
    sum_states,
    zero_tiles,
)


@triton.jit
def _steps(
    h, a, pu, pd, pz, pb, pc, py, bi, Dv, reset, at, path, g, L, start, t, sul, sdl, szl, DM, md, w,
    SBL: tl.constexpr, SCL: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr,
    N: tl.constexpr, NQ: tl.constexpr, W: tl.constexpr, BD: tl.constexpr, FULL: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """COUNT steps from t. All loads first, all stores last: the compiler moves no load above a store."""
    many = rows_of(path, g, L, start, t, COUNT)
    deltas = get_steps(pd, many, sdl, md, FULL, COUNT, BD)
    us = get_steps(pu, many, sul, md, FULL, COUNT, BD)
    zs = us
    if HAS_Z:
        zs = get_steps(pz, many, szl, md, FULL, COUNT, BD)
    rows = ()
    for i in tl.static_range(COUNT):
        rows = rows + (row_of(path, g, L, start, t, i),)
    Bs = get_rows(pb, many, SBL, rows[0], w, N, NQ, W, COUNT)
    Cs = get_rows(pc, many, SCL, rows[0], w, N, NQ, W, COUNT)
    outs = ()
    for i in tl.static_range(COUNT):
        B = row_tiles(Bs, i, NQ)
        C = row_tiles(Cs, i, NQ)
        delta = deltas[i] + bi
        if SOFTPLUS:
            delta = softplus(delta)
        if reset is not None:
            h = scaled(h, 1.0 - tl.load(reset + at + t + i).to(tl.float32), NQ)
        h = advance(h, a, delta, delta * us[i], B, NQ)
        o = sum_states(h, C, NQ)
        if HAS_D:
            o += Dv * us[i]
        if HAS_Z:
            o = o * zs[i] * sigmoid(zs[i])
        outs = outs + (o,)
    for i in tl.static_range(COUNT):
        put(py + rows[i] * DM, outs[i], md, FULL)
    return h


@triton.jit
def output_kernel(
    u, dt, z, A, Bm, Cm, D, bias, reset, path, init, states, y, kept, final,
    chunk_seg, chunk_start, chunk_len, seg_chunk, DM, DG, NBG, L,
    sub, sul, sdb, sdl, szb, szl, sbb, sbg, scb, scg,
    SBL: tl.constexpr, SCL: tl.constexpr,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, FULL: tl.constexpr,
    ONE_PASS: tl.constexpr, KEEP: tl.constexpr, PER: tl.constexpr,
    NQ: tl.constexpr, W: tl.constexpr, BD: tl.constexpr, UN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Output, from the state in `states` chunk by chunk, or in ONE_PASS over a segment.

    KEEP: a state is kept every KEEP steps, PER of them in a chunk; 0: none.
    """
    g, d, md, w, dn = place(tl.program_id(0), DG, NBG, N, BD, W)
    a = scaled(get_tiles(A + dn, md, w, False, N, NQ, W, BD, FULL), LOG2E, NQ)
    c = tl.program_id(1).to(tl.int64)
    if ONE_PASS:
        seg = c
        c = tl.load(seg_chunk + seg).to(tl.int64)
        end = tl.load(seg_chunk + seg + 1)
        start = tl.load(chunk_start + c).to(tl.int64)
        T = 0
        if end > c:
            T = (tl.load(chunk_start + end - 1) + tl.load(chunk_len + end - 1) - start).to(tl.int32)
        if init is not None:
            h = get_tiles(init + seg * DM * N + dn, md, w, False, N, NQ, W, BD, FULL)
        else:
            h = zero_tiles(BD, NQ, W)
    else:
        seg = tl.load(chunk_seg + c).to(tl.int64)
        start = tl.load(chunk_start + c).to(tl.int64)
        T = tl.load(chunk_len + c)
        h = get_tiles(states + c * DM * N + dn, md, w, False, N, NQ, W, BD, FULL)
    b = 0 if PACKED else seg
    bi = 0.0
    if bias is not None:
        bi = get(bias + d, md, FULL)
    Dv = 0.0
    if D is not None:
        Dv = get(D + d, md, FULL)
    origin, shared = origin_of(path, start, d, g, DG)
    pu = u + b * sub + origin * sul + shared
    pd = dt + b * sdb + origin * sdl + d
    pb = Bm + b * sbb + origin * SBL + g * sbg
    pc = Cm + b * scb + origin * SCL + g * scg
    py = y + (b * L + origin) * DM + d
    pz = py
    if z is not None:
        pz = z + b * szb + origin * szl + d
    ob = pb
    oc = pc
    at = b * L + start
    full = T // UN * UN
    for t in tl.range(0, full, UN, num_stages=STAGES):  # loads of 4 bytes a thread and more are copied ahead
        if KEEP > 0:
            if t % KEEP == 0:
                put_tiles(kept + (c * PER + t // KEEP) * DM * N + dn, h, md, w, False, N, NQ, W, BD, FULL)
        h = _steps(
            h, a, pu, pd, pz, ob, oc, py, bi, Dv, reset, at, path, g, L, start, t, sul, sdl, szl, DM, md, w, SBL, SCL,
            D is not None, z is not None, SOFTPLUS, N, NQ, W, BD, FULL, UN,
        )  # fmt: skip
        pu = moved(path, pu, UN * sul)
        pd = moved(path, pd, UN * sdl)
        pz = moved(path, pz, UN * szl)
        ob = moved(path, ob, UN * SBL)
        oc = moved(path, oc, UN * SCL)
        py = moved(path, py, UN * DM)
    for t in range(full, T):
        if KEEP > 0:
            if t % KEEP == 0:
                put_tiles(kept + (c * PER + t // KEEP) * DM * N + dn, h, md, w, False, N, NQ, W, BD, FULL)
        h = _steps(
            h, a, pu, pd, pz, ob, oc, py, bi, Dv, reset, at, path, g, L, start, t, sul, sdl, szl, DM, md, w, SBL, SCL,
            D is not None, z is not None, SOFTPLUS, N, NQ, W, BD, FULL, 1,
        )  # fmt: skip
        pu = moved(path, pu, sul)
        pd = moved(path, pd, sdl)
        pz = moved(path, pz, szl)
        ob = moved(path, ob, SBL)
        oc = moved(path, oc, SCL)
        py = moved(path, py, DM)
    if ONE_PASS:
        put_tiles(final + seg * DM * N + dn, h, md, w, False, N, NQ, W, BD, FULL)
