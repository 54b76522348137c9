"""Triton kernels of `selective_scan`: channel-last, sequential in time, the state in registers.

A program owns BD channels x NP states of one segment and walks its steps; nothing is scanned associatively (that costs
3 times the instructions). Where batch x channels give too few programs, the sequence is cut into chunks: end state of
each chunk from zero, then the states at the chunk starts (the decay of a chunk is exp(A sum delta)), then the output.
The states at chunk starts are all that the backward needs.

Chunk tables (int32): chunk_seg[c] segment, chunk_start[c] first step in its row, chunk_len[c] steps (0: unused),
seg_chunk[s] first chunk of segment s. Rows are batch entries, or, PACKED, all segments lie in row 0.
A and delta work in base 2: exp(delta A) = exp2(delta A log2 e).

With a `path` (G, L) every group of channels walks the rows in an order of its own: step t of group g reads and writes
row path[g, t] of every tensor where it lies. u and the gradient of y then have the channels of one group, for all.
"""

# ruff: noqa: RUF005, RUF059 (Triton has no tuple unpacking in a display; _place serves all kernels)
from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def _softplus(x):
    """As torch's: the identity above 20. A series where log2(1 + e) would lose the digits of a small e."""
    e = tl.exp2(tl.minimum(x, 20.0) * LOG2E)
    series = e * (1.0 - e * (0.5 - e * (0.3333333333 - e * (0.25 - e * 0.2))))
    return tl.where(x > 20.0, x, tl.where(e < 0.03125, series, tl.log2(1.0 + e) * LN2))


@triton.jit
def _place(blk, A, DG, NBG, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr):
    """Block of channels -> group, channels, state indices, their masks, A in base 2."""
    g = blk // NBG
    inner = (blk % NBG) * BD + tl.arange(0, BD)
    md = inner < DG
    d = g * DG + inner
    n = tl.arange(0, NP)
    mn = n < N
    mdn = md[:, None] & mn[None, :]
    dn = d[:, None] * N + n[None, :]
    a = tl.load(A + dn, mask=mdn, other=0.0).to(tl.float32) * LOG2E
    return g, d, md, n, mn, dn, mdn, a


@triton.jit
def _row(path, g, L, start, t, T):
    """Row of a step relative to where pointers were put: the chunk's start, or with a path the batch entry's."""
    if path is None:
        row = t
    else:
        row = tl.load(path + g * L + start + t, mask=t < T, other=0).to(tl.int64)
    return row


@triton.jit
def _origin(path, start, d, g, DG):
    """Where pointers are put (see `_row`), and the channels of tensors that all groups share."""
    if path is None:
        origin = start
        shared = d
    else:
        origin = start * 0
        shared = d - g * DG
    return origin, shared


@triton.jit
def _delta(raw, valid, SOFTPLUS: tl.constexpr):
    """A step past the end has delta 0: decay 1, no input."""
    if SOFTPLUS:
        raw = _softplus(raw)
    return tl.where(valid, raw, 0.0)


@triton.jit
def chunk_state_kernel(
    u, dt, A, Bm, bias, reset, path, ends, sums, alive,
    chunk_seg, chunk_start, chunk_len, DM, DG, NBG, L,
    sub, sul, sdb, sdl, sbb, sbl, sbg,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, UN: tl.constexpr,
):  # fmt: skip
    """State at the end of every chunk from zero, the chunk's sum of delta, and 0 in `alive` if a reset lies in it."""
    g, d, md, n, mn, dn, mdn, a = _place(tl.program_id(0), A, DG, NBG, N, NP, BD)
    c = tl.program_id(1).to(tl.int64)
    start = tl.load(chunk_start + c).to(tl.int64)
    T = tl.load(chunk_len + c)
    b = 0 if PACKED else tl.load(chunk_seg + c).to(tl.int64)
    origin, shared = _origin(path, start, d, g, DG)
    pu = u + b * sub + origin * sul + shared
    pd = dt + b * sdb + origin * sdl + d
    pb = Bm + b * sbb + origin * sbl + g * sbg + n
    if bias is not None:
        bi = tl.load(bias + d, mask=md, other=0.0).to(tl.float32)
    h = tl.zeros([BD, NP], tl.float32)
    total = tl.zeros([BD], tl.float32)
    live = 1.0
    for t in range(0, T, UN):
        # all loads of UN steps first: a load does not move across the barrier of a layout change
        dts = ()
        us = ()
        Bs = ()
        for i in tl.static_range(UN):
            ok = t + i < T
            row = _row(path, g, L, start, t + i, T)
            dts = dts + (tl.load(pd + row * sdl, mask=md & ok, other=0.0),)
            us = us + (tl.load(pu + row * sul, mask=md & ok, other=0.0),)
            Bs = Bs + (tl.load(pb + row * sbl, mask=mn & ok, other=0.0),)
        for i in tl.static_range(UN):
            raw = dts[i].to(tl.float32)
            if bias is not None:
                raw += bi
            delta = _delta(raw, t + i < T, SOFTPLUS)
            x = tl.exp2(delta[:, None] * a)
            if reset is not None:
                keep = 1.0 - tl.load(reset + b * L + start + t + i, mask=t + i < T, other=0).to(tl.float32)
                x = x * keep
                live = live * keep
            h = h * x + (delta * us[i].to(tl.float32))[:, None] * Bs[i].to(tl.float32)[None, :]
            total += delta
    tl.store(ends + c * DM * N + dn, h, mask=mdn)
    tl.store(sums + c * DM + d, total, mask=md)
    if reset is not None:
        tl.store(alive + c, live)  # every block of channels writes the same value


@triton.jit
def carry_kernel(
    A, init, states, sums, alive, final, seg_chunk, DM, DG, NBG,
    N: tl.constexpr, REVERSE: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Turn what each chunk adds into what enters it, in place, along a segment (from its end if REVERSE)."""
    g, d, md, n, mn, dn, mdn, a = _place(tl.program_id(0), A, DG, NBG, N, NP, BD)
    s = tl.program_id(1).to(tl.int64)
    first = tl.load(seg_chunk + s).to(tl.int64)
    count = tl.load(seg_chunk + s + 1) - first
    if init is not None:
        h = tl.load(init + s * DM * N + dn, mask=mdn, other=0.0).to(tl.float32)
    else:
        h = tl.zeros([BD, NP], tl.float32)
    for k in range(0, count):
        if REVERSE:
            c = first + count - 1 - k
        else:
            c = first + k
        added = tl.load(states + c * DM * N + dn, mask=mdn, other=0.0)
        decay = tl.exp2(tl.load(sums + c * DM + d, mask=md, other=0.0)[:, None] * a)
        if alive is not None:
            decay = decay * tl.load(alive + c)
        tl.store(states + c * DM * N + dn, h, mask=mdn)
        h = h * decay + added
    tl.store(final + s * DM * N + dn, h, mask=mdn)


@triton.jit
def output_kernel(
    u, dt, z, A, Bm, Cm, D, bias, reset, path, init, y, kept, final,
    chunk_seg, chunk_start, chunk_len, seg_chunk, DM, DG, NBG, L,
    sub, sul, sdb, sdl, szb, szl, sbb, sbl, sbg, scb, scl, scg,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, ONE_PASS: tl.constexpr, KEEP: tl.constexpr,
    NP: tl.constexpr, BD: tl.constexpr, UN: tl.constexpr,
):  # fmt: skip
    """Output, from the state in `kept` chunk by chunk, or in ONE_PASS over a segment, writing `kept` if KEEP."""
    g, d, md, n, mn, dn, mdn, a = _place(tl.program_id(0), A, DG, NBG, N, NP, BD)
    if ONE_PASS:
        seg = tl.program_id(1).to(tl.int64)
        first = tl.load(seg_chunk + seg).to(tl.int64)
        count = tl.load(seg_chunk + seg + 1) - first
        if init is not None:
            h = tl.load(init + seg * DM * N + dn, mask=mdn, other=0.0).to(tl.float32)
        else:
            h = tl.zeros([BD, NP], tl.float32)
    else:
        first = tl.program_id(1).to(tl.int64)
        count = 1
        seg = tl.load(chunk_seg + first).to(tl.int64)
        h = tl.load(kept + first * DM * N + dn, mask=mdn, other=0.0)
    b = 0 if PACKED else seg
    if bias is not None:
        bi = tl.load(bias + d, mask=md, other=0.0).to(tl.float32)
    if D is not None:
        Dv = tl.load(D + d, mask=md, other=0.0).to(tl.float32)
    for k in range(0, count):
        c = first + k
        if ONE_PASS and KEEP:
            tl.store(kept + c * DM * N + dn, h, mask=mdn)
        start = tl.load(chunk_start + c).to(tl.int64)
        T = tl.load(chunk_len + c)
        origin, shared = _origin(path, start, d, g, DG)
        pu = u + b * sub + origin * sul + shared
        pd = dt + b * sdb + origin * sdl + d
        pb = Bm + b * sbb + origin * sbl + g * sbg + n
        pc = Cm + b * scb + origin * scl + g * scg + n
        py = y + (b * L + origin) * DM + d
        if z is not None:
            pz = z + b * szb + origin * szl + d
        for t in range(0, T, UN):
            dts = ()
            us = ()
            Bs = ()
            Cs = ()
            zs = ()
            ys = ()
            rows = ()
            for i in tl.static_range(UN):
                ok = t + i < T
                row = _row(path, g, L, start, t + i, T)
                rows = rows + (row,)
                dts = dts + (tl.load(pd + row * sdl, mask=md & ok, other=0.0),)
                us = us + (tl.load(pu + row * sul, mask=md & ok, other=0.0),)
                Bs = Bs + (tl.load(pb + row * sbl, mask=mn & ok, other=0.0),)
                Cs = Cs + (tl.load(pc + row * scl, mask=mn & ok, other=0.0),)
                if z is not None:
                    zs = zs + (tl.load(pz + row * szl, mask=md & ok, other=0.0),)
            for i in tl.static_range(UN):
                raw = dts[i].to(tl.float32)
                if bias is not None:
                    raw += bi
                delta = _delta(raw, t + i < T, SOFTPLUS)
                uv = us[i].to(tl.float32)
                x = tl.exp2(delta[:, None] * a)
                if reset is not None:
                    x = x * (1.0 - tl.load(reset + b * L + start + t + i, mask=t + i < T, other=0).to(tl.float32))
                h = h * x + (delta * uv)[:, None] * Bs[i].to(tl.float32)[None, :]
                o = tl.sum(h * Cs[i].to(tl.float32)[None, :], 1)
                if D is not None:
                    o += Dv * uv
                if z is not None:
                    zv = zs[i].to(tl.float32)
                    o = o * zv * _sigmoid(zv)
                ys = ys + (o,)
            for i in tl.static_range(UN):
                tl.store(py + rows[i] * DM, ys[i].to(y.dtype.element_ty), mask=md & (t + i < T))
    if ONE_PASS:
        tl.store(final + seg * DM * N + dn, h, mask=mdn)


@triton.jit
def _scan_grad(pg, pz, md, ok, t, sgl, szl):
    """Gradient of the ungated output at a step, its gate value, and silu'(gate) times the output gradient."""
    gy = tl.load(pg + t * sgl, mask=md & ok, other=0.0).to(tl.float32)
    through = gy
    if pz is not None:
        zv = tl.load(pz + t * szl, mask=md & ok, other=0.0).to(tl.float32)
        sig = _sigmoid(zv)
        through = gy * sig * (1.0 + zv * (1.0 - sig))
        gy = gy * zv * sig
    return gy, through


@triton.jit
def reverse_state_kernel(
    dt, z, gy, A, Cm, bias, reset, path, states, sums, alive,
    chunk_seg, chunk_start, chunk_len, DM, DG, NBG, L,
    sdb, sdl, szb, szl, scb, scl, scg,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, UN: tl.constexpr,
):  # fmt: skip
    """What every chunk adds to the gradient of the state before it, with the sum of delta and `alive` as above."""
    g, d, md, n, mn, dn, mdn, a = _place(tl.program_id(0), A, DG, NBG, N, NP, BD)
    c = tl.program_id(1).to(tl.int64)
    start = tl.load(chunk_start + c).to(tl.int64)
    T = tl.load(chunk_len + c)
    b = 0 if PACKED else tl.load(chunk_seg + c).to(tl.int64)
    origin, shared = _origin(path, start, d, g, DG)
    sgl = DM if path is None else DG
    pd = dt + b * sdb + origin * sdl + d
    pc = Cm + b * scb + origin * scl + g * scg + n
    pg = gy + (b * L + origin) * sgl + shared
    if z is not None:
        pz = z + b * szb + origin * szl + d
    else:
        pz = None
    if bias is not None:
        bi = tl.load(bias + d, mask=md, other=0.0).to(tl.float32)
    r = tl.zeros([BD, NP], tl.float32)
    total = tl.zeros([BD], tl.float32)
    live = 1.0
    blocks = (T + UN - 1) // UN
    for k in range(0, blocks):
        t = (blocks - 1 - k) * UN
        dts = ()
        gs = ()
        Cs = ()
        for i in tl.static_range(UN):
            ok = t + i < T
            row = _row(path, g, L, start, t + i, T)
            dts = dts + (tl.load(pd + row * sdl, mask=md & ok, other=0.0),)
            Cs = Cs + (tl.load(pc + row * scl, mask=mn & ok, other=0.0),)
            value, unused = _scan_grad(pg, pz, md, ok, row, sgl, szl)
            gs = gs + (value,)
        for i in tl.static_range(UN - 1, -1, -1):
            raw = dts[i].to(tl.float32)
            if bias is not None:
                raw += bi
            delta = _delta(raw, t + i < T, SOFTPLUS)
            x = tl.exp2(delta[:, None] * a)
            if reset is not None:
                keep = 1.0 - tl.load(reset + b * L + start + t + i, mask=t + i < T, other=0).to(tl.float32)
                x = x * keep
                live = live * keep
            r = (r + gs[i][:, None] * Cs[i].to(tl.float32)[None, :]) * x
            total += delta
    tl.store(states + c * DM * N + dn, r, mask=mdn)
    tl.store(sums + c * DM + d, total, mask=md)
    if reset is not None:
        tl.store(alive + c, live)
