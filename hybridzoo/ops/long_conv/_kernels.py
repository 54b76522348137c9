"""Triton kernels of `long_conv`: Fourier transforms as matrix products, a row of the input in registers.

A sequence is cut into S segments of N = N1 N2 positions. With weights a_n = exp(i pi n / 2N) a cyclic transform of
length N multiplies polynomials modulo z^N = i: what runs over the end comes back as the imaginary part. So the product
of two real segments is low + i high, both halves of the whole convolution, and nothing is padded with zeros. Segment m
of the taps (lags mN to mN + N - 1, m < 0 look ahead) takes input j to outputs j + m (low) and j + m + 1 (high):

    y_i = Re inverse( sum over j of H_(i-j) X_j ),   H_m = transform(taps_m - i taps_(m-1))

A transform is two matrix products with a rotation between them. Index n = n1 N2 + n2, frequency k1 + N1 k2 at [k1, k2]:

    Z = ((F1 x) * T) F2;   the weights a are folded into F1 and T (`triton.tables`)

Re and Im lie in planes of N each, Im behind Re. Products of fp32 inputs are three of tf32. 16-bit inputs have kernels
of their own (`_kernels_half.py`) and share only those over the taps, whose products are single ones of tf32 then.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def square(table, A: tl.constexpr, B: tl.constexpr):
    """(A, B) table."""
    return tl.load(table + tl.arange(0, A)[:, None] * B + tl.arange(0, B)[None, :])


@triton.jit
def turn_columns(ur, ui, tables, N1: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr):
    """The rest of a transform: (N1, N2) after F1 -> spectrum."""
    rotation = tables + 4 * N1 * N1
    tr = square(rotation, N1, N2)
    ti = square(rotation + N1 * N2, N1, N2)
    vr = ur * tr - ui * ti
    vi = ur * ti + ui * tr
    f2 = rotation + 2 * N1 * N2
    fr = square(f2, N2, N2)
    fi = square(f2 + N2 * N2, N2, N2)
    zr = tl.dot(vr, fr, input_precision=PRECISION)
    zr = tl.dot(-vi, fi, zr, input_precision=PRECISION)
    zi = tl.dot(vr, fi, input_precision=PRECISION)
    zi = tl.dot(vi, fr, zi, input_precision=PRECISION)
    return zr, zi


@triton.jit
def transform(x, tables, N1: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr):
    """Spectrum of a real (N1, N2) segment."""
    ur = tl.dot(square(tables, N1, N1), x, input_precision=PRECISION)
    ui = tl.dot(square(tables + N1 * N1, N1, N1), x, input_precision=PRECISION)
    return turn_columns(ur, ui, tables, N1, N2, PRECISION)


@triton.jit
def inverse(zr, zi, tables, N1: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr):
    """Real part of the segment whose spectrum this is."""
    rotation = tables + 4 * N1 * N1
    f2 = rotation + 2 * N1 * N2
    fr = square(f2, N2, N2)
    fi = square(f2 + N2 * N2, N2, N2)
    vr = tl.dot(zr, fr, input_precision=PRECISION)
    vr = tl.dot(zi, fi, vr, input_precision=PRECISION)
    vi = tl.dot(zi, fr, input_precision=PRECISION)
    vi = tl.dot(-zr, fi, vi, input_precision=PRECISION)
    tr = square(rotation, N1, N2)
    ti = square(rotation + N1 * N2, N1, N2)
    ur = vr * tr + vi * ti
    ui = vi * tr - vr * ti
    x = tl.dot(square(tables + 2 * N1 * N1, N1, N1), ur, input_precision=PRECISION)
    x = tl.dot(square(tables + 3 * N1 * N1, N1, N1), ui, x, input_precision=PRECISION)
    return x * (1.0 / (N1 * N2))


@triton.jit
def positions(N1: tl.constexpr, N2: tl.constexpr):
    """(N1, N2) index of a segment's position or frequency."""
    return tl.arange(0, N1)[:, None] * N2 + tl.arange(0, N2)[None, :]


@triton.jit
def load_segment(x, row, segment, L, N1: tl.constexpr, N2: tl.constexpr):
    """(N1, N2) fp32 segment of a row of a (rows, L) tensor, zero behind the end."""
    at = segment * N1 * N2 + positions(N1, N2)
    return tl.load(x + row.to(tl.int64) * L + at, mask=at < L, other=0.0).to(tl.float32)


@triton.jit
def store_segment(x, tile, row, segment, L, N1: tl.constexpr, N2: tl.constexpr):
    at = segment * N1 * N2 + positions(N1, N2)
    tl.store(x + row.to(tl.int64) * L + at, tile.to(x.dtype.element_ty), mask=at < L)


@triton.jit
def load_spectrum(z, number, N1: tl.constexpr, N2: tl.constexpr):
    """Spectrum `number` of a (..., 2, N) tensor."""
    place = z + number.to(tl.int64) * 2 * N1 * N2 + positions(N1, N2)
    return tl.load(place), tl.load(place + N1 * N2)


@triton.jit
def store_spectrum(z, zr, zi, number, N1: tl.constexpr, N2: tl.constexpr):
    place = z + number.to(tl.int64) * 2 * N1 * N2 + positions(N1, N2)
    tl.store(place, zr)
    tl.store(place + N1 * N2, zi)


@triton.jit
def swap_kernel(x, y, ROWS, COLUMNS, TILE: tl.constexpr):
    """(B, ROWS, COLUMNS) -> (B, COLUMNS, ROWS)."""
    base = tl.program_id(2).to(tl.int64) * ROWS * COLUMNS
    r = tl.program_id(0) * TILE + tl.arange(0, TILE)
    c = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = (r < ROWS)[:, None] & (c < COLUMNS)[None, :]
    tile = tl.load(x + base + r.to(tl.int64)[:, None] * COLUMNS + c[None, :], mask=mask, other=0.0)
    tl.store(y + base + c.to(tl.int64)[:, None] * ROWS + r[None, :], tl.trans(tile), mask=tl.trans(mask))


@triton.jit
def load_taps(kernel, ahead, skip, channel, lag, TAPS, AHEAD):
    """Taps of the lags given: `kernel` from 0 on, `ahead` from -1 down; `skip` is added to lag 0."""
    value = tl.load(kernel + channel.to(tl.int64) * TAPS + lag, mask=(lag >= 0) & (lag < TAPS), other=0.0)
    value = value.to(tl.float32)
    if ahead is not None:
        later = (lag < 0) & (lag >= -AHEAD)
        value += tl.load(ahead + channel.to(tl.int64) * AHEAD - 1 - lag, mask=later, other=0.0).to(tl.float32)
    if skip is not None:
        value = tl.where(lag == 0, value + tl.load(skip + channel).to(tl.float32), value)
    return value


@triton.jit
def taps_spectrum(
    kernel, ahead, skip, tables, channel, LOWEST, TAPS, AHEAD,
    N1: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """H_m of a channel, m = LOWEST + program."""
    lag = (tl.program_id(0) + LOWEST) * N1 * N2 + positions(N1, N2)
    here = load_taps(kernel, ahead, skip, channel, lag, TAPS, AHEAD)
    before = load_taps(kernel, ahead, skip, channel, lag - N1 * N2, TAPS, AHEAD)
    fr = square(tables, N1, N1)
    fi = square(tables + N1 * N1, N1, N1)
    ur = tl.dot(fr, here, input_precision=PRECISION)
    ur = tl.dot(fi, before, ur, input_precision=PRECISION)  # (fr + i fi) (here - i before)
    ui = tl.dot(fi, here, input_precision=PRECISION)
    ui = tl.dot(fr, -before, ui, input_precision=PRECISION)
    return turn_columns(ur, ui, tables, N1, N2, PRECISION)


@triton.jit
def taps_kernel(
    kernel, ahead, skip, tables, spectra, TAPS, AHEAD, LOWEST,
    N1: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(1)
    zr, zi = taps_spectrum(kernel, ahead, skip, tables, channel, LOWEST, TAPS, AHEAD, N1, N2, PRECISION)
    store_spectrum(spectra, zr, zi, channel * tl.num_programs(0) + tl.program_id(0), N1, N2)


@triton.jit
def conv_kernel(
    x, spectra, y, tables, D, L, FLIP: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr
):
    """A row of one segment from input to output; FLIP: with the taps turned around, for gradients."""
    row = tl.program_id(0)
    zr, zi = transform(load_segment(x, row, 0, L, N1, N2), tables, N1, N2, PRECISION)
    hr, hi = load_spectrum(spectra, row % D, N1, N2)
    if FLIP:
        hi = -hi
    pr = zr * hr - zi * hi
    pi = zr * hi + zi * hr
    store_segment(y, inverse(pr, pi, tables, N1, N2, PRECISION), row, 0, L, N1, N2)


@triton.jit
def transform_kernel(x, tables, spectra, L, N1: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr):
    """Spectra of all segments of all rows."""
    row, segment = tl.program_id(0), tl.program_id(1)
    zr, zi = transform(load_segment(x, row, segment, L, N1, N2), tables, N1, N2, PRECISION)
    store_spectrum(spectra, zr, zi, row * tl.num_programs(1) + segment, N1, N2)


@triton.jit
def combine_kernel(
    spectra, taps, y, tables, D, L, M, LOWEST, CAUSAL: tl.constexpr, FLIP: tl.constexpr,
    N1: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A segment of the output from the spectra of the inputs and of the M segments of taps."""
    row, segment = tl.program_id(0), tl.program_id(1)
    S = tl.num_programs(1)
    pr = tl.zeros([N1, N2], tl.float32)
    pi = tl.zeros([N1, N2], tl.float32)
    low = segment if CAUSAL and FLIP else 0
    high = segment + 1 if CAUSAL and not FLIP else S
    for j in range(low, high):
        m = (j - segment if FLIP else segment - j) - LOWEST
        zr, zi = load_spectrum(spectra, row * S + j, N1, N2)
        hr, hi = load_spectrum(taps, (row % D) * M + m, N1, N2)
        if FLIP:
            hi = -hi
        pr += zr * hr - zi * hi
        pi += zr * hi + zi * hr
    store_segment(y, inverse(pr, pi, tables, N1, N2, PRECISION), row, segment, L, N1, N2)


@triton.jit
def gradient_kernel(
    x, grad, taps, grad_x, partial, tables, B, D, L, PER,
    N1: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of one segment: the gradient of x, and this program's part (PER batch rows) of the taps' spectrum's."""
    part, channel = tl.program_id(0), tl.program_id(1)
    totalr = tl.zeros([N1, N2], tl.float32)
    totali = tl.zeros([N1, N2], tl.float32)
    # tables and taps are read again for each row: kept in registers they would spill
    for b in tl.range(part * PER, tl.minimum(part * PER + PER, B), disable_licm=True):
        row = b * D + channel
        zr, zi = transform(load_segment(x, row, 0, L, N1, N2), tables, N1, N2, PRECISION)
        gr, gi = transform(load_segment(grad, row, 0, L, N1, N2), tables, N1, N2, PRECISION)
        totalr += zr * gr + zi * gi
        totali += zr * gi - zi * gr
        hr, hi = load_spectrum(taps, channel, N1, N2)
        pr = gr * hr + gi * hi
        pi = gi * hr - gr * hi
        store_segment(grad_x, inverse(pr, pi, tables, N1, N2, PRECISION), row, 0, L, N1, N2)
    store_spectrum(partial, totalr, totali, part * D + channel, N1, N2)


@triton.jit
def product_kernel(spectra, grads, totals, B, D, S, M, LOWEST, N, BLOCK: tl.constexpr):
    """Gradient of H_m: over rows and segments, the conjugate spectra of x times those of the output's gradient."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = tl.program_id(1)
    channel = tl.program_id(2)
    shift = m + LOWEST
    totalr = tl.zeros([BLOCK], tl.float32)
    totali = tl.zeros([BLOCK], tl.float32)
    for b in range(B):
        for j in range(tl.maximum(0, -shift), tl.minimum(S, S - shift)):
            place = ((b * D + channel).to(tl.int64) * S + j) * 2 * N + at
            zr, zi = tl.load(spectra + place), tl.load(spectra + place + N)
            place += shift * 2 * N
            gr, gi = tl.load(grads + place), tl.load(grads + place + N)
            totalr += zr * gr + zi * gi
            totali += zr * gi - zi * gr
    place = (channel.to(tl.int64) * M + m) * 2 * N + at
    tl.store(totals + place, totalr)
    tl.store(totals + place + N, totali)


@triton.jit
def taps_backward_kernel(
    totals, grad_kernel, grad_ahead, tables, PARTS, D, M, LOWEST, FIRST, TAPS, AHEAD,
    N1: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of taps_m, m = FIRST + program: it is in H_m, and times -i in H_(m+1). `totals` come in PARTS parts."""
    channel = tl.program_id(1)
    segment = tl.program_id(0) + FIRST
    m = segment - LOWEST
    zr = tl.zeros([N1, N2], tl.float32)
    zi = tl.zeros([N1, N2], tl.float32)
    for part in range(PARTS):
        owner = (part * D + channel) * M
        if (m >= 0) & (m < M):
            hr, hi = load_spectrum(totals, owner + m, N1, N2)
            zr += hr
            zi += hi
        if m + 1 < M:
            hr, hi = load_spectrum(totals, owner + m + 1, N1, N2)
            zr -= hi
            zi += hr
    value = inverse(zr, zi, tables, N1, N2, PRECISION)
    lag = segment * N1 * N2 + positions(N1, N2)
    tl.store(grad_kernel + channel.to(tl.int64) * TAPS + lag, value, mask=(lag >= 0) & (lag < TAPS))
    if grad_ahead is not None:
        tl.store(grad_ahead + channel.to(tl.int64) * AHEAD - 1 - lag, value, mask=(lag < 0) & (lag >= -AHEAD))
