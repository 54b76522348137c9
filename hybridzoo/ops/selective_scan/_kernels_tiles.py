"""What the Triton kernels of `selective_scan` share: where a program's channels and states lie, and single steps.

A program owns BD channels of one group and all their states, as a tuple of NQ tiles of BD x W states. With W = 4 and
BD = 32 a thread of the single warp holds one channel: sums over the states stay in the thread, and what is per channel
(softplus, gate) is computed once.
"""

# ruff: noqa: RUF005 (Triton has no tuple unpacking in a display)
from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def _softplus_of(x, e, s):
    """max(x, 0) + log(1 + e) = max(x, 0) + 2 atanh(s): relative error 4e-9 for e in [0, 1], and no branch.

    Around a logarithm the compiler builds branches, and no load moves up across a branch: that cost more than the rest.
    """
    t = s * s
    series = 2.0 + t * (0.66666315 + t * (0.4002491 + t * (0.27960603 + t * 0.28178336)))
    return tl.maximum(x, 0.0) + s * series


@triton.jit
def softplus_and_slope(x):
    e = tl.exp2(tl.abs(x) * -LOG2E)
    both = 1.0 / ((1.0 + e) * (2.0 + e))  # one division for two
    return _softplus_of(x, e, e * (1.0 + e) * both), tl.where(x > 0.0, 1.0, e) * (2.0 + e) * both


@triton.jit
def softplus(x):
    e = tl.exp2(tl.abs(x) * -LOG2E)
    return _softplus_of(x, e, e / (2.0 + e))


@triton.jit
def get(p, mask, FULL: tl.constexpr):
    """A load that needs no mask if the block is FULL."""
    if FULL:
        x = tl.load(p)
    else:
        x = tl.load(p, mask=mask, other=0.0)
    return x.to(tl.float32)


@triton.jit
def put(p, x, mask, FULL: tl.constexpr):
    x = x.to(p.dtype.element_ty)
    if FULL:
        tl.store(p, x)
    else:
        tl.store(p, x, mask=mask)


@triton.jit
def place(blk, DG, NBG, N: tl.constexpr, BD: tl.constexpr, W: tl.constexpr):
    """Block of channels -> group, channels, their mask, states of a tile, and offsets of a channel's first state."""
    g = blk // NBG
    inner = (blk % NBG) * BD + tl.arange(0, BD)
    d = g * DG + inner
    return g, d, inner < DG, tl.arange(0, W), d[:, None] * N


@triton.jit
def states_of(q, w, TURN: tl.constexpr, NQ: tl.constexpr, W: tl.constexpr, BD: tl.constexpr):
    """The states in tile q, (BD, W). With TURN the channels are NQ parts, and part j begins with its j-th tile.

    So arranged, adding up over the parts halves the tiles each time (`put_sum`).
    """
    part = tl.arange(0, BD) // (BD // NQ) if TURN else tl.arange(0, BD) * 0
    return ((q + part) % NQ)[:, None] * W + w[None, :]


@triton.jit
def get_tiles(
    p,
    md,
    w,
    TURN: tl.constexpr,
    N: tl.constexpr,
    NQ: tl.constexpr,
    W: tl.constexpr,
    BD: tl.constexpr,
    FULL: tl.constexpr,
):
    """The tiles of a (D, N) tensor, zero outside."""
    out = ()
    for q in tl.static_range(NQ):
        n = states_of(q, w, TURN, NQ, W, BD)
        out = out + (get(p + n, md[:, None] & (n < N), FULL and NQ * W == N),)
    return out


@triton.jit
def put_tiles(
    p,
    x,
    md,
    w,
    TURN: tl.constexpr,
    N: tl.constexpr,
    NQ: tl.constexpr,
    W: tl.constexpr,
    BD: tl.constexpr,
    FULL: tl.constexpr,
):
    for q in tl.static_range(NQ):
        n = states_of(q, w, TURN, NQ, W, BD)
        put(p + n, x[q], md[:, None] & (n < N), FULL and NQ * W == N)


@triton.jit
def get_turned(p, turn, NQ: tl.constexpr, W: tl.constexpr):
    """The same in TURN from a row that is written twice in a row: tile after tile from `turn`, a channel's first."""
    out = ()
    for q in tl.static_range(NQ):
        out = out + (tl.load(p + turn + q * W),)
    return out


@triton.jit
def _halved(x, d, w, HALF: tl.constexpr, PART: tl.constexpr, BD: tl.constexpr):
    """Add up pairs of parts: each channel keeps HALF the tiles and gets the same states' from HALF parts before."""
    other = ((d + BD - HALF * PART) % BD)[:, None] + (w * 0)[None, :]
    out = ()
    for q in tl.static_range(HALF):
        out = out + (x[q] + tl.gather(x[q + HALF], other, 0),)
    return out


@triton.jit
def _split_between(x, d, LEVEL: tl.constexpr, BD: tl.constexpr, WIDTH: tl.constexpr):
    """The same inside a tile: channels with bit LEVEL of their number keep its odd columns, the others the even."""
    even, odd = tl.split(tl.reshape(x, [BD, WIDTH // 2, 2]))
    upper = ((d >> LEVEL) & 1 == 1)[:, None]
    other = (d ^ (1 << LEVEL))[:, None] + tl.arange(0, WIDTH // 2)[None, :] * 0
    return tl.where(upper, odd, even) + tl.gather(tl.where(upper, even, odd), other, 0)


@triton.jit
def sum_channels(x, w, NQ: tl.constexpr, W: tl.constexpr, BD: tl.constexpr, SPLITS: tl.constexpr):
    """Sums over the channels of tiles that lie in TURN, spread over them for `put_sum`.

    SPLITS: log2 of the lesser of BD / NQ and W.
    """
    d = tl.arange(0, BD)
    for level in tl.static_range(1, 7):
        if NQ >> level > 0:
            x = _halved(x, d, w, NQ >> level, BD // NQ, BD)
    total = x[0]
    for level in tl.static_range(SPLITS):
        total = _split_between(total, d, level, BD, W >> level)
    for level in tl.static_range(SPLITS, 7):
        if (BD // NQ) >> level > 1:
            other = (d ^ (1 << level))[:, None] + tl.arange(0, W >> SPLITS)[None, :] * 0
            total += tl.gather(total, other, 0)
    return total


@triton.jit
def put_sum(p, total, N: tl.constexpr, NQ: tl.constexpr, W: tl.constexpr, BD: tl.constexpr, SPLITS: tl.constexpr):
    """Store the (N,) sums."""
    d = tl.arange(0, BD)
    column = (d & ((1 << SPLITS) - 1))[:, None] + (tl.arange(0, W >> SPLITS) << SPLITS)[None, :]
    n = (d // (BD // NQ) % NQ * W)[:, None] + column
    tl.store(p + n, total, mask=(d % (BD // NQ) < (1 << SPLITS))[:, None] & (n < N))


@triton.jit
def zero_tiles(BD: tl.constexpr, NQ: tl.constexpr, W: tl.constexpr):
    out = ()
    for _ in tl.static_range(NQ):
        out = out + (tl.zeros([BD, W], tl.float32),)
    return out


@triton.jit
def scaled(x, factor, NQ: tl.constexpr):
    out = ()
    for q in tl.static_range(NQ):
        out = out + (x[q] * factor,)
    return out


@triton.jit
def advance(h, a, delta, drive, B, NQ: tl.constexpr):
    """exp2(delta a) h + drive B"""
    out = ()
    for q in tl.static_range(NQ):
        out = out + (h[q] * tl.exp2(delta[:, None] * a[q]) + drive[:, None] * B[q],)
    return out


@triton.jit
def sum_states(x, y, NQ: tl.constexpr):
    """Sum over the states of x y."""
    out = x[0] * y[0]
    for q in tl.static_range(1, NQ):
        out += x[q] * y[q]
    return tl.sum(out, 1)


@triton.jit
def row_of(path, g, L, start, t, i: tl.constexpr):
    """Row of step t + i relative to where pointers were put: step t's (see `moved`), or with a path the first one."""
    if path is None:
        row = i
    else:
        row = tl.load(path + g * L + start + t + i).to(tl.int64)
    return row


@triton.jit
def moved(path, p, offset):
    """Without a path pointers walk along with the steps, so that offsets are small."""
    if path is None:
        p += offset
    return p


@triton.jit
def origin_of(path, start, d, g, DG):
    """Where pointers are put (see `row_of`), and the channels of tensors that all groups share."""
    if path is None:
        origin = start
        shared = d
    else:
        origin = start * 0
        shared = d - g * DG
    return origin, shared


@triton.jit
def rows_of(path, g, L, start, t, COUNT: tl.constexpr):
    """Rows of COUNT steps from t, as `row_of`."""
    rows = tl.arange(0, COUNT)
    if path is not None:
        rows = tl.load(path + g * L + start + t + rows).to(tl.int64)
    return rows


@triton.jit
def parted(x, H: tl.constexpr, COUNT: tl.constexpr):
    """The columns of x (H, COUNT), each (H,), in order: free where a thread holds its rows whole."""
    tiles = (x,)
    for level in tl.static_range(10):
        if COUNT >> level > 1:
            evens = ()
            odds = ()
            for i in tl.static_range(1 << level):
                even, odd = tl.split(tl.reshape(tiles[i], [H, COUNT >> level + 1, 2]))
                evens = evens + (even,)
                odds = odds + (odd,)
            tiles = evens + odds
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (tl.reshape(tiles[i], [H]),)
    return out


@triton.jit
def get_steps(p, rows, stride, md, FULL: tl.constexpr, COUNT: tl.constexpr, BD: tl.constexpr):
    """COUNT steps of a (B, L, D) tensor in one load: a tuple of (BD,)."""
    return parted(get(p[:, None] + (rows * stride)[None, :], md[:, None], FULL), BD, COUNT)


@triton.jit
def get_rows(p, rows, stride, row, w, N: tl.constexpr, NQ: tl.constexpr, W: tl.constexpr, COUNT: tl.constexpr):
    """COUNT rows of B or C as (W,) tiles for all channels alike, step after step.

    Several rows in one load, which is copied ahead; of a single `row` each thread reads what it needs.
    """
    if COUNT == 1:
        tiles = ()
        for q in tl.static_range(NQ):
            tiles = tiles + (get(p + row * stride + (q * W + w), q * W + w < N, NQ * W == N),)
    else:
        n = tl.arange(0, NQ * W)[None, :]
        x = get(p + (rows * stride)[:, None] + n, n < N, NQ * W == N)
        tiles = parted(tl.permute(tl.reshape(x, [COUNT * NQ, W]), (1, 0)), W, COUNT * NQ)
    return tiles


@triton.jit
def row_tiles(tiles, i: tl.constexpr, NQ: tl.constexpr):
    """Row i of what `get_rows` gives, as (1, W)."""
    out = ()
    for q in tl.static_range(NQ):
        out = out + (tiles[i * NQ + q][None, :],)
    return out
