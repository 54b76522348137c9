"""Triton kernels of the gradients of `selective_scan` (see `_kernels` for the legend).

The forward kept a state every KEEP steps. From it the states are recomputed, one parked every FINE steps; then, last
block first, from each of these again, one parked every SUB steps, and the steps of the block are walked backwards SUB
at a time with their states in registers. So little is parked at a time that it stays in the cache: what was parked
for a whole chunk went to memory and back. dB and dC are summed over the block's channels and written to one partial
buffer per block, so there are no atomics and the result does not depend on scheduling.
"""

# ruff: noqa: RUF005 (Triton has no tuple unpacking in a display)
from __future__ import annotations

import triton
import triton.language as tl

from hybridzoo.ops.selective_scan._kernels_tiles import (
    LN2,
    LOG2E,
    advance,
    get,
    get_steps,
    get_tiles,
    get_turned,
    moved,
    origin_of,
    place,
    put,
    put_sum,
    put_tiles,
    row_of,
    rows_of,
    scaled,
    sigmoid,
    softplus,
    softplus_and_slope,
    states_of,
    sum_channels,
    sum_states,
    zero_tiles,
)


@triton.jit
def _through_gate(gy, z):
    """Gradient of the ungated output, and what the gate's gradient is besides the ungated output."""
    s = sigmoid(z)
    return gy * z * s, gy * s * (1.0 + z * (1.0 - s))


@triton.jit
def _park(p, h, NQ: tl.constexpr, SIZE: tl.constexpr):
    for q in tl.static_range(NQ):
        tl.store(p + q * SIZE, h[q])


@triton.jit
def _unpark(p, NQ: tl.constexpr, SIZE: tl.constexpr):
    out = ()
    for q in tl.static_range(NQ):
        out = out + (tl.load(p + q * SIZE),)
    return out


@triton.jit
def _recompute(
    h, a, pu, pd, pbc, turn, park, bi, reset, at, path, g, L, start, t, sul, sdl, md,
    SBC: tl.constexpr, SOFTPLUS: tl.constexpr, N: tl.constexpr, NQ: tl.constexpr, W: tl.constexpr, BD: tl.constexpr,
    FULL: tl.constexpr, COUNT: tl.constexpr, SUB: tl.constexpr,
):  # fmt: skip
    """The state COUNT steps after t; one is parked every SUB steps if there is a place to `park` it."""
    many = rows_of(path, g, L, start, t, COUNT)
    deltas = get_steps(pd, many, sdl, md, FULL, COUNT, BD)
    us = get_steps(pu, many, sul, md, FULL, COUNT, BD)
    for i in tl.static_range(COUNT):
        if park is not None and i % SUB == 0:
            _park(park + i // SUB * (BD * NQ * W), h, NQ, BD * W)
        delta = deltas[i] + bi
        if SOFTPLUS:
            delta = softplus(delta)
        if reset is not None:
            h = scaled(h, 1.0 - tl.load(reset + at + t + i).to(tl.float32), NQ)
        B = get_turned(pbc + row_of(path, g, L, start, t, i) * SBC, turn, NQ, W)
        h = advance(h, a, delta, delta * us[i], B, NQ)
    return h


@triton.jit
def _steps_back(
    hs, grad, sum_A, sum_D, sum_bias, a, t, start, at, path, g, L,
    pu, pd, pz, pg, pbc, turn, pdu, pdd, pdz, pdbc, bi, Dv, reset,
    sul, sdl, szl, sgl, DM, md, w,
    SBC: tl.constexpr, SN: tl.constexpr, SPLITS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    SOFTPLUS: tl.constexpr, SUB: tl.constexpr,
    N: tl.constexpr, NQ: tl.constexpr, W: tl.constexpr, BD: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """SUB steps from t, forwards from the state before them, and back."""
    pu = moved(path, pu, t * sul)
    pd = moved(path, pd, t * sdl)
    pz = moved(path, pz, t * szl)
    pg = moved(path, pg, t * sgl)
    pbc = moved(path, pbc, t * SBC)
    pdu = moved(path, pdu, t * DM)
    pdd = moved(path, pdd, t * DM)
    pdz = moved(path, pdz, t * DM)
    pdbc = moved(path, pdbc, t * SN)
    h = hs
    many = rows_of(path, g, L, start, t, SUB)
    raws = get_steps(pd, many, sdl, md, FULL, SUB, BD)
    us = get_steps(pu, many, sul, md, FULL, SUB, BD)
    gys = get_steps(pg, many, sgl, md, FULL, SUB, BD)
    zs = gys
    if HAS_Z:
        zs = get_steps(pz, many, szl, md, FULL, SUB, BD)
    rows = ()
    for i in tl.static_range(SUB):
        rows = rows + (row_of(path, g, L, start, t, i),)
    deltas = ()
    slopes = ()
    gs = ()
    befores = ()
    decays = ()
    dzs = ()
    dCs = ()
    for i in tl.static_range(SUB):
        delta = raws[i] + bi
        gy = gys[i]
        slope = delta * 0.0 + 1.0
        if SOFTPLUS:
            delta, slope = softplus_and_slope(delta)
        B = get_turned(pbc + rows[i] * SBC, turn, NQ, W)
        drive = delta * us[i]
        keep = 1.0
        if reset is not None:
            keep = 1.0 - tl.load(reset + at + t + i).to(tl.float32)
        befores = befores + (h,)
        new = ()
        xs = ()
        for q in tl.static_range(NQ):
            x = tl.exp2(delta[:, None] * a[q])
            if reset is not None:
                x = x * keep
            xs = xs + (x,)
            new = new + (h[q] * x + drive[:, None] * B[q],)
        h = new
        if HAS_Z:
            C = get_turned(pbc + rows[i] * SBC + 2 * NQ * W, turn, NQ, W)
            out = sum_states(h, C, NQ)
            if HAS_D:
                out += Dv * us[i]
            gy, through = _through_gate(gy, zs[i])
            dzs = dzs + (out * through,)
        dCs = dCs + (sum_channels(scaled(h, gy[:, None], NQ), w, NQ, W, BD, SPLITS),)
        deltas = deltas + (delta,)
        slopes = slopes + (slope,)
        gs = gs + (gy,)
        decays = decays + (xs,)
    dBs = ()
    d_us = ()
    d_dts = ()
    for i in tl.static_range(SUB - 1, -1, -1):
        delta = deltas[i]
        B = get_turned(pbc + rows[i] * SBC, turn, NQ, W)
        C = get_turned(pbc + rows[i] * SBC + 2 * NQ * W, turn, NQ, W)
        gained = ()
        for q in tl.static_range(NQ):
            gained = gained + (grad[q] + gs[i][:, None] * C[q],)
        dBs = (sum_channels(scaled(gained, (delta * us[i])[:, None], NQ), w, NQ, W, BD, SPLITS),) + dBs
        through_B = sum_states(gained, B, NQ)
        back = ()
        sums = ()
        d_delta = delta[:, None] * 0.0
        for q in tl.static_range(NQ):
            left = gained[q] * decays[i][q]
            inner = left * befores[i][q]  # gradient of delta A
            d_delta += inner * a[q]
            sums = sums + (sum_A[q] + inner * delta[:, None],)
            back = back + (left,)
        grad = back
        sum_A = sums
        d_dt = (tl.sum(d_delta, 1) * LN2 + through_B * us[i]) * slopes[i]
        d_u = through_B * delta
        if HAS_D:
            d_u += Dv * gs[i]
            sum_D += gs[i] * us[i]
        sum_bias += d_dt
        d_us = (d_u,) + d_us
        d_dts = (d_dt,) + d_dts
    for i in tl.static_range(SUB):
        if HAS_Z:
            put(pdz + rows[i] * DM, dzs[i], md, FULL)
        put(pdu + rows[i] * DM, d_us[i], md, FULL)
        put(pdd + rows[i] * DM, d_dts[i], md, FULL)
        put_sum(pdbc + rows[i] * SN, dBs[i], N, NQ, W, BD, SPLITS)
        put_sum(pdbc + rows[i] * SN + N, dCs[i], N, NQ, W, BD, SPLITS)
    return grad, sum_A, sum_D, sum_bias


@triton.jit
def _block_back(
    h, grad, sum_A, sum_D, sum_bias, a, first, T, start, at, path, g, L,
    pu, pd, pz, pg, pbc, turn, park, pdu, pdd, pdz, pdbc, bi, Dv, reset,
    sul, sdl, szl, sgl, DM, md, w,
    SBC: tl.constexpr, SN: tl.constexpr, SPLITS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    SOFTPLUS: tl.constexpr, SUB: tl.constexpr,
    N: tl.constexpr, NQ: tl.constexpr, W: tl.constexpr, BD: tl.constexpr, FULL: tl.constexpr,
    UN: tl.constexpr, PARKED: tl.constexpr,
):  # fmt: skip
    """T steps from step `first`, from the state before them: recomputed, parked, and walked back."""
    tl.debug_barrier()  # the last block's parked states have been read
    full = T // UN * UN
    spare = park + (PARKED - 1) * (BD * NQ * W)  # what is parked there is not read
    for k in tl.range(0, full, UN, num_stages=1):
        t = first + k
        h = _recompute(
            h, a, moved(path, pu, t * sul), moved(path, pd, t * sdl), moved(path, pbc, t * SBC), turn,
            park + k // SUB * (BD * NQ * W), bi, reset, at, path, g, L, start,
            t, sul, sdl, md, SBC, SOFTPLUS, N, NQ, W, BD, FULL, UN, SUB,
        )  # fmt: skip
    # steps that do not fill a SUB are parked and walked back one by one
    paired = T // SUB * SUB
    for k in range(full, T):
        t = first + k
        if k % SUB == 0 or k >= paired:
            _park(park + (k // SUB + tl.maximum(k - paired, 0)) * (BD * NQ * W), h, NQ, BD * W)
        h = _recompute(
            h, a, moved(path, pu, t * sul), moved(path, pd, t * sdl), moved(path, pbc, t * SBC), turn,
            spare, bi, reset, at, path, g, L, start,
            t, sul, sdl, md, SBC, SOFTPLUS, N, NQ, W, BD, FULL, 1, SUB,
        )  # fmt: skip
    tl.debug_barrier()
    if SUB > 1:
        for m in range(0, T - paired):
            k = T - 1 - m
            h = _unpark(park + (paired // SUB + k - paired) * (BD * NQ * W), NQ, BD * W)
            grad, sum_A, sum_D, sum_bias = _steps_back(
                h, grad, sum_A, sum_D, sum_bias, a, first + k, start, at, path, g, L,
                pu, pd, pz, pg, pbc, turn, pdu, pdd, pdz, pdbc, bi, Dv, reset, sul, sdl, szl, sgl, DM, md, w,
                SBC, SN, SPLITS, HAS_D, HAS_Z, SOFTPLUS, 1, N, NQ, W, BD, FULL,
            )  # fmt: skip
    for m in tl.range(0, paired, SUB, num_stages=1):
        k = paired - SUB - m
        h = _unpark(park + k // SUB * (BD * NQ * W), NQ, BD * W)
        grad, sum_A, sum_D, sum_bias = _steps_back(
            h, grad, sum_A, sum_D, sum_bias, a, first + k, start, at, path, g, L,
            pu, pd, pz, pg, pbc, turn, pdu, pdd, pdz, pdbc, bi, Dv, reset, sul, sdl, szl, sgl, DM, md, w,
            SBC, SN, SPLITS, HAS_D, HAS_Z, SOFTPLUS, SUB, N, NQ, W, BD, FULL,
        )  # fmt: skip
    return grad, sum_A, sum_D, sum_bias


@triton.jit
def gradient_kernel(
    u, dt, z, gy, A, BC, D, bias, reset, path, kept, carry, d_final, park,
    du, ddt, dz, dA, dBC, dD, dbias, d_init,
    chunk_seg, chunk_start, chunk_len, seg_chunk, DM, DG, NBG, L, batch, blocks, works, share,
    sub, sul, sdb, sdl, szb, szl,
    G: tl.constexpr, N: tl.constexpr, SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, FULL: tl.constexpr,
    ONE_PASS: tl.constexpr, NQ: tl.constexpr, W: tl.constexpr, BD: tl.constexpr, SUB: tl.constexpr,
    SPLITS: tl.constexpr, PARKED: tl.constexpr, SLOTS: tl.constexpr, UN: tl.constexpr,
    CHUNK: tl.constexpr, KEEP: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    """A program takes every share-th chunk (in ONE_PASS segment) of its block of channels."""
    blk = tl.program_id(0) % blocks
    own = (tl.program_id(0) // blocks).to(tl.int64)
    g, d, md, w, dn = place(blk, DG, NBG, N, BD, W)
    a = scaled(get_tiles(A + dn, md, w, True, N, NQ, W, BD, FULL), LOG2E, NQ)
    slot = (tl.arange(0, BD) * W)[:, None] + w[None, :]
    park += tl.program_id(0).to(tl.int64) * SLOTS * BD * NQ * W
    bi = 0.0
    if bias is not None:
        bi = get(bias + d, md, FULL)
    Dv = 0.0
    if D is not None:
        Dv = get(D + d, md, FULL)
    sum_A = zero_tiles(BD, NQ, W)
    sum_D = tl.zeros([BD], tl.float32)
    sum_bias = tl.zeros([BD], tl.float32)
    sgl = DM if path is None else DG
    SN: tl.constexpr = G * 2 * N
    SBC: tl.constexpr = G * 4 * NQ * W
    turn = states_of(0, w, True, NQ, W, BD)
    for visit in range(0, tl.cdiv(works - own, share)):
        work = own + visit * share
        if ONE_PASS:
            seg = work
            first = tl.load(seg_chunk + seg).to(tl.int64)
            count = (tl.load(seg_chunk + seg + 1) - first).to(tl.int32)
            if d_final is not None:
                grad = get_tiles(d_final + seg * DM * N + dn, md, w, True, N, NQ, W, BD, FULL)
            else:
                grad = zero_tiles(BD, NQ, W)
        else:
            first = work
            count = 1
            seg = tl.load(chunk_seg + work).to(tl.int64)
            grad = get_tiles(carry + first * DM * N + dn, md, w, True, N, NQ, W, BD, FULL)
        b = 0 if PACKED else seg
        for k in range(0, count):
            c = first + count - 1 - k
            start = tl.load(chunk_start + c).to(tl.int64)
            T = tl.load(chunk_len + c)
            origin, shared = origin_of(path, start, d, g, DG)
            pu = u + b * sub + origin * sul + shared
            pd = dt + b * sdb + origin * sdl + d
            pbc = BC + (b * L + origin) * SBC + g * (4 * NQ * W)
            pg = gy + (b * L + origin) * sgl + shared
            po = (b * L + origin) * DM + d
            pn = (((blk % NBG) * batch * L + b * L + origin) * G + g) * (2 * N)
            pz = pd
            pdz = ddt + po
            if z is not None:
                pz = z + b * szb + origin * szl + d
                pdz = dz + po
            at = b * L + start
            for j in range(0, tl.cdiv(T, KEEP)):
                block = tl.cdiv(T, KEEP) - 1 - j
                far = block * KEEP
                many = tl.minimum(T - far, KEEP)
                h = get_tiles(kept + (c * (CHUNK // KEEP) + block) * DM * N + dn, md, w, True, N, NQ, W, BD, FULL)
                if FINE < KEEP:
                    for f in range(0, tl.cdiv(many, FINE)):
                        _park(park + (PARKED + f) * (BD * NQ * W) + slot, h, NQ, BD * W)
                        if (f + 1) * FINE < many:
                            for t in tl.range(far + f * FINE, far + (f + 1) * FINE, UN, num_stages=1):
                                h = _recompute(
                                    h, a, moved(path, pu, t * sul), moved(path, pd, t * sdl), moved(path, pbc, t * SBC),
                                    turn, None, bi, reset, at, path, g, L, start,
                                    t, sul, sdl, md, SBC, SOFTPLUS, N, NQ, W, BD, FULL, UN, SUB,
                                )  # fmt: skip
                    tl.debug_barrier()
                for f in range(0, tl.cdiv(many, FINE)):
                    part = tl.cdiv(many, FINE) - 1 - f
                    if FINE < KEEP:
                        h = _unpark(park + (PARKED + part) * (BD * NQ * W) + slot, NQ, BD * W)
                    grad, sum_A, sum_D, sum_bias = _block_back(
                        h, grad, sum_A, sum_D, sum_bias, a, far + part * FINE, tl.minimum(many - part * FINE, FINE),
                        start, at, path, g, L, pu, pd, pz, pg, pbc, turn, park + slot, du + po, ddt + po, pdz, dBC + pn,
                        bi, Dv, reset, sul, sdl, szl, sgl, DM, md, w, SBC, SN, SPLITS, D is not None, z is not None,
                        SOFTPLUS, SUB, N, NQ, W, BD, FULL, UN, PARKED,
                    )  # fmt: skip
        if ONE_PASS:
            put_tiles(d_init + seg * DM * N + dn, grad, md, w, True, N, NQ, W, BD, FULL)
    put_tiles(dA + own * DM * N + dn, sum_A, md, w, True, N, NQ, W, BD, FULL)
    if D is not None:
        put(dD + own * DM + d, sum_D, md, FULL)
    if bias is not None:
        put(dbias + own * DM + d, sum_bias, md, FULL)
