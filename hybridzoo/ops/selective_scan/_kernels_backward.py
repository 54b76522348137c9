"""Triton kernel of the gradients of `selective_scan` (see `_kernels` for the legend).

Within a chunk the states are recomputed from its start, one is parked every SUB steps, and the steps are then walked
backwards SUB at a time with their states and decays in registers. dB and dC are summed over the block's channels and
written to one partial buffer per block, so there are no atomics and the result does not depend on scheduling.
"""

# ruff: noqa: RUF005 (Triton has no tuple unpacking in a display; _place serves all kernels)
from __future__ import annotations

import triton
import triton.language as tl

from hybridzoo.ops.selective_scan._tiles import LN2, LOG2E


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
            value, _unused = _scan_grad(pg, pz, md, ok, row, sgl, szl)
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


@triton.jit
def gradient_kernel(
    u, dt, z, gy, A, Bm, Cm, D, bias, reset, path, kept, carry, d_final, park,
    du, ddt, dz, dA, dB, dC, dD, dbias, d_init,
    chunk_seg, chunk_start, chunk_len, seg_chunk, DM, DG, NBG, L, G, batch, blocks, items,
    sub, sul, sdb, sdl, szb, szl, sbb, sbl, sbg, scb, scl, scg,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, ONE_PASS: tl.constexpr,
    NP: tl.constexpr, BD: tl.constexpr, SUB: tl.constexpr, PARKED: tl.constexpr,
):  # fmt: skip
    """A fixed number of programs takes the items (block of channels x chunk, or x segment in ONE_PASS) in turn."""
    slot = tl.arange(0, BD)[:, None] * NP + tl.arange(0, NP)[None, :]
    pid = tl.program_id(0).to(tl.int64)
    park += pid * PARKED * BD * NP
    for turn in range(0, tl.cdiv(items - pid, tl.num_programs(0))):
        item = pid + turn * tl.num_programs(0)
        blk = item % blocks
        work = item // blocks
        g, d, md, n, mn, dn, mdn, a = _place(blk, A, DG, NBG, N, NP, BD)
        if ONE_PASS:
            seg = work
            first = tl.load(seg_chunk + seg).to(tl.int64)
            count = tl.load(seg_chunk + seg + 1) - first
            if d_final is not None:
                grad = tl.load(d_final + seg * DM * N + dn, mask=mdn, other=0.0).to(tl.float32)
            else:
                grad = tl.zeros([BD, NP], tl.float32)
        else:
            first = work
            count = 1
            seg = tl.load(chunk_seg + work).to(tl.int64)
            grad = tl.load(carry + work * DM * N + dn, mask=mdn, other=0.0)
        b = 0 if PACKED else seg
        if bias is not None:
            bi = tl.load(bias + d, mask=md, other=0.0).to(tl.float32)
        if D is not None:
            Dv = tl.load(D + d, mask=md, other=0.0).to(tl.float32)
        sum_A = tl.zeros([BD, NP], tl.float32)
        sum_D = tl.zeros([BD], tl.float32)
        sum_bias = tl.zeros([BD], tl.float32)
        for k in range(0, count):
            c = first + count - 1 - k
            start = tl.load(chunk_start + c).to(tl.int64)
            T = tl.load(chunk_len + c)
            first_row = b * L + start
            origin, shared = _origin(path, start, d, g, DG)
            sgl = DM if path is None else DG
            pu = u + b * sub + origin * sul + shared
            pd = dt + b * sdb + origin * sdl + d
            pb = Bm + b * sbb + origin * sbl + g * sbg + n
            pc = Cm + b * scb + origin * scl + g * scg + n
            pg = gy + (b * L + origin) * sgl + shared
            po = (b * L + origin) * DM + d
            pn = (((blk % NBG) * batch * L + b * L + origin) * G + g) * N + n
            if z is not None:
                pz = z + b * szb + origin * szl + d
            else:
                pz = None
            h = tl.load(kept + c * DM * N + dn, mask=mdn, other=0.0)
            tl.debug_barrier()  # the last chunk's parked states have been read
            for t in range(0, T, SUB):
                tl.store(park + (t // SUB) * BD * NP + slot, h)
                for i in tl.static_range(SUB):
                    ok = t + i < T
                    row = _row(path, g, L, start, t + i, T)
                    raw = tl.load(pd + row * sdl, mask=md & ok, other=0.0).to(tl.float32)
                    if bias is not None:
                        raw += bi
                    delta = _delta(raw, ok, SOFTPLUS)
                    uv = tl.load(pu + row * sul, mask=md & ok, other=0.0).to(tl.float32)
                    Bv = tl.load(pb + row * sbl, mask=mn & ok, other=0.0).to(tl.float32)
                    x = tl.exp2(delta[:, None] * a)
                    if reset is not None:
                        x = x * (1.0 - tl.load(reset + first_row + t + i, mask=ok, other=0).to(tl.float32))
                    h = h * x + (delta * uv)[:, None] * Bv[None, :]
            tl.debug_barrier()
            subs = (T + SUB - 1) // SUB
            for m in range(0, subs):
                t = (subs - 1 - m) * SUB
                h = tl.load(park + (t // SUB) * BD * NP + slot)
                xs = ()
                carried = ()
                rows = ()
                us = ()
                raws = ()
                Bs = ()
                Cs = ()
                gs = ()
                for i in tl.static_range(SUB):
                    ok = t + i < T
                    row = _row(path, g, L, start, t + i, T)
                    raw = tl.load(pd + row * sdl, mask=md & ok, other=0.0).to(tl.float32)
                    uv = tl.load(pu + row * sul, mask=md & ok, other=0.0).to(tl.float32)
                    Bv = tl.load(pb + row * sbl, mask=mn & ok, other=0.0).to(tl.float32)
                    Cv = tl.load(pc + row * scl, mask=mn & ok, other=0.0).to(tl.float32)
                    value, through = _scan_grad(pg, pz, md, ok, row, sgl, szl)
                    if bias is not None:
                        raw += bi
                    delta = _delta(raw, ok, SOFTPLUS)
                    x = tl.exp2(delta[:, None] * a)
                    if reset is not None:
                        x = x * (1.0 - tl.load(reset + first_row + t + i, mask=ok, other=0).to(tl.float32))
                    h = h * x
                    carried = carried + (h,)
                    xs = xs + (x,)
                    h += (delta * uv)[:, None] * Bv[None, :]
                    if z is not None:
                        out = tl.sum(h * Cv[None, :], 1)
                        if D is not None:
                            out += Dv * uv
                        tl.store(dz + po + row * DM, (out * through).to(dz.dtype.element_ty), mask=md & ok)
                    tl.store(dC + pn + row * G * N, tl.sum(h * value[:, None], 0), mask=mn & ok)
                    rows = rows + (row,)
                    us = us + (uv,)
                    raws = raws + (raw,)
                    Bs = Bs + (Bv,)
                    Cs = Cs + (Cv,)
                    gs = gs + (value,)
                for i in tl.static_range(SUB - 1, -1, -1):
                    ok = t + i < T
                    delta = _delta(raws[i], ok, SOFTPLUS)
                    grad += gs[i][:, None] * Cs[i][None, :]
                    drive = tl.sum(grad * (delta * us[i])[:, None], 0)
                    tl.store(dB + pn + rows[i] * G * N, drive, mask=mn & ok)
                    through_B = tl.sum(grad * Bs[i][None, :], 1)
                    inner = grad * carried[i]  # gradient of delta A
                    grad = grad * xs[i]
                    sum_A += inner * delta[:, None]
                    d_delta = tl.sum(inner * a, 1) * LN2 + through_B * us[i]
                    d_u = through_B * delta
                    if D is not None:
                        d_u += Dv * gs[i]
                        sum_D += gs[i] * us[i]
                    if SOFTPLUS:
                        d_delta = tl.where(raws[i] > 20.0, d_delta, d_delta * _sigmoid(raws[i]))
                    d_delta = tl.where(ok, d_delta, 0.0)
                    sum_bias += d_delta
                    tl.store(du + po + rows[i] * DM, d_u.to(du.dtype.element_ty), mask=md & ok)
                    tl.store(ddt + po + rows[i] * DM, d_delta.to(ddt.dtype.element_ty), mask=md & ok)
        tl.store(dA + work * DM * N + dn, sum_A, mask=mdn)
        if D is not None:
            tl.store(dD + work * DM + d, sum_D, mask=md)
        if bias is not None:
            tl.store(dbias + work * DM + d, sum_bias, mask=md)
        if ONE_PASS:
            tl.store(d_init + seg * DM * N + dn, grad, mask=mdn)
