"""Triton kernel of the output of `selective_scan` in one pass (see `_kernels` for the legend).

The threads of a warp share its channels: each keeps a few states of one or more channels, so that even few channels
give enough warps to hide what loads take. What is per channel (softplus, gate) is computed for UN steps at a time,
spread over all threads.
"""

# ruff: noqa: RUF005, SIM102 (no tuple unpacking in a display; constexpr conditions are decided when compiled)
from __future__ import annotations

import triton
import triton.language as tl

from hybridzoo.ops.selective_scan._kernels_tiles import LOG2E, origin_of, sigmoid, softplus


@triton.jit
def _rows_of(path, g, L, start, t, T, UN: tl.constexpr):
    """Rows of UN steps from t relative to where pointers were put: the segment's start, with a path the entry's."""
    step = t + tl.arange(0, UN)
    if path is None:
        row = step
    else:
        row = tl.load(path + g * L + start + step, mask=step < T, other=0)
    return row.to(tl.int64), step < T


@triton.jit
def walk_kernel(
    u, dt, z, A, Bm, Cm, D, bias, reset, path, init, y, kept, final,
    chunk_start, chunk_len, seg_chunk, DM, DG, NBG, L,
    sub, sul, sdb, sdl, szb, szl, sbb, sbg, scb, scg,
    SBL: tl.constexpr, SCL: tl.constexpr,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, KEEP: tl.constexpr, CHUNK: tl.constexpr,
    NP: tl.constexpr, BD: tl.constexpr, UN: tl.constexpr,
):  # fmt: skip
    """Output of a segment, writing the states at chunk starts into `kept` if KEEP."""
    blk = tl.program_id(0)
    seg = tl.program_id(1).to(tl.int64)
    g = blk // NBG
    inner = (blk % NBG) * BD + tl.arange(0, BD)
    md = inner < DG
    d = g * DG + inner
    n = tl.arange(0, NP)
    mn = n < N
    mdn = md[:, None] & mn[None, :]
    dn = d[:, None] * N + n[None, :]
    a = tl.load(A + dn, mask=mdn, other=0.0).to(tl.float32) * LOG2E
    c = tl.load(seg_chunk + seg).to(tl.int64)
    end = tl.load(seg_chunk + seg + 1)
    start = tl.load(chunk_start + c).to(tl.int64)
    T = 0
    if end > c:
        T = (tl.load(chunk_start + end - 1) + tl.load(chunk_len + end - 1) - start).to(tl.int32)
    if init is not None:
        h = tl.load(init + seg * DM * N + dn, mask=mdn, other=0.0).to(tl.float32)
    else:
        h = tl.zeros([BD, NP], tl.float32)
    b = 0 if PACKED else seg
    origin, shared = origin_of(path, start, d, g, DG)
    pu = u + b * sub + origin * sul + shared[:, None]
    pd = dt + b * sdb + origin * sdl + d[:, None]
    pz = pd
    if z is not None:
        pz = z + b * szb + origin * szl + d[:, None]
    py = y + (b * L + origin) * DM + d[:, None]
    pb = Bm + b * sbb + origin * SBL + g * sbg + n
    pc = Cm + b * scb + origin * SCL + g * scg + n
    bi = tl.zeros([BD], tl.float32)
    if bias is not None:
        bi = tl.load(bias + d, mask=md, other=0.0).to(tl.float32)
    Dv = tl.zeros([BD], tl.float32)
    if D is not None:
        Dv = tl.load(D + d, mask=md, other=0.0).to(tl.float32)
    # the next UN steps are loaded before these are computed
    rows, ok = _rows_of(path, g, L, start, 0, T, UN)
    next_dt = tl.load(pd + (rows * sdl)[None, :], mask=md[:, None] & ok[None, :], other=0.0)
    next_u = tl.load(pu + (rows * sul)[None, :], mask=md[:, None] & ok[None, :], other=0.0)
    next_z = next_dt
    if z is not None:
        next_z = tl.load(pz + (rows * szl)[None, :], mask=md[:, None] & ok[None, :], other=0.0)
    for t in range(0, T, UN):
        if KEEP:
            if t % CHUNK == 0:
                tl.store(kept + (c + t // CHUNK) * DM * N + dn, h, mask=mdn)
        mask = md[:, None] & ok[None, :]
        delta = next_dt.to(tl.float32) + bi[:, None]
        uv = next_u.to(tl.float32)
        zv = next_z.to(tl.float32)
        at = rows
        rows, more = _rows_of(path, g, L, start, t + UN, T, UN)
        next_dt = tl.load(pd + (rows * sdl)[None, :], mask=md[:, None] & more[None, :], other=0.0)
        next_u = tl.load(pu + (rows * sul)[None, :], mask=md[:, None] & more[None, :], other=0.0)
        if z is not None:
            next_z = tl.load(pz + (rows * szl)[None, :], mask=md[:, None] & more[None, :], other=0.0)
        tl.debug_barrier()  # or the compiler moves these loads down to where they are used
        Bs = ()
        Cs = ()
        for i in tl.static_range(UN):
            row = i
            if path is not None:
                row = tl.load(path + g * L + start + t + i, mask=t + i < T, other=0).to(tl.int64)
            Bs = Bs + (tl.load(pb + row * SBL, mask=mn & (t + i < T), other=0.0),)
            Cs = Cs + (tl.load(pc + row * SCL, mask=mn & (t + i < T), other=0.0),)
        if path is None:
            pb += UN * SBL
            pc += UN * SCL
        if SOFTPLUS:
            delta = softplus(delta)
        delta = tl.where(ok[None, :], delta, 0.0)  # past the end: decay 1, no input
        drive = delta * uv
        out = tl.zeros([BD, UN], tl.float32)
        for i in tl.static_range(UN):
            which = tl.full([BD, 1], i, tl.int32)
            x = tl.exp2(tl.gather(delta, which, 1) * a)
            if reset is not None:
                x = x * (1.0 - tl.load(reset + b * L + start + t + i, mask=t + i < T, other=0).to(tl.float32))
            h = h * x + tl.gather(drive, which, 1) * Bs[i].to(tl.float32)[None, :]
            o = tl.sum(h * Cs[i].to(tl.float32)[None, :], 1)
            out = tl.where((tl.arange(0, UN) == i)[None, :], o[:, None], out)
        if D is not None:
            out += Dv[:, None] * uv
        if z is not None:
            out = out * zv * sigmoid(zv)
        tl.store(py + (at * DM)[None, :], out.to(y.dtype.element_ty), mask=mask)
        ok = more
    tl.store(final + seg * DM * N + dn, h, mask=mdn)
