"""Triton kernels of `long_conv` for 16-bit inputs: the transforms of `_kernels.py` as products of fp16, sums in fp32.

fp16 has the mantissa of tf32 at half the width. Its range is kept by powers of two: the tables are scaled so that a
transform keeps root mean squares (by `unit`), a segment is divided by its own before it is transformed ("size"), and so
is a spectrum of taps. A product of two spectra then stays below N, and what the sizes take away comes back in fp32.

A spectrum is an int32 for each frequency, fp16 Re in the low half and Im in the high one: (..., N) with N = N1 N2.
Rows are walked in a loop because the tables then stay in shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hybridzoo.ops.long_conv._kernels import load_taps, positions, square, taps_spectrum

TINY = tl.constexpr(1e-18)


@triton.jit
def pack(re, im):
    low = re.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (im.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def unpack(packed):
    re = (packed & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
    im = (packed >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return re.to(tl.float32), im.to(tl.float32)


@triton.jit
def size_of(square_sum, N: tl.constexpr):
    """The power of two below the root mean square, within what can be inverted."""
    bits = tl.sqrt(square_sum * (1.0 / N)).to(tl.int32, bitcast=True) & 0x7F800000
    return tl.minimum(tl.maximum(bits.to(tl.float32, bitcast=True), TINY), 1e18)


@triton.jit
def load_first(tables, N1: tl.constexpr):
    """Re and Im of F1."""
    return square(tables, N1, N1), square(tables + N1 * N1, N1, N1)


@triton.jit
def load_second(tables, N1: tl.constexpr, N2: tl.constexpr):
    """Re and Im of F2."""
    return square(tables + 2 * N1 * N1, N2, N2), square(tables + 2 * N1 * N1 + N2 * N2, N2, N2)


@triton.jit
def transform(tile, f1r, f1i, f2r, f2i, turns, N1: tl.constexpr, N2: tl.constexpr):
    """(N1, N2) fp32 -> its spectrum times `unit` over its size, and the size."""
    size = size_of(tl.sum(tl.sum(tile * tile, 1), 0), N1 * N2)
    tile = (tile * (1.0 / size)).to(tl.float16)
    ur = tl.dot(f1r, tile)
    ui = tl.dot(f1i, tile)
    tr, ti = unpack(square(turns, N1, N2))
    vr = (ur * tr - ui * ti).to(tl.float16)
    vi = (ur * ti + ui * tr).to(tl.float16)
    zr = tl.dot(vr, f2r)
    zr = tl.dot(-vi, f2i, zr)
    zi = tl.dot(vr, f2i)
    zi = tl.dot(vi, f2r, zi)
    return zr, zi, size


@triton.jit
def inverse(zr, zi, f1r, f1i, f2r, f2i, turns, N1: tl.constexpr, N2: tl.constexpr):
    """N `unit` times the real part of the segment whose spectrum this is."""
    zr, zi = zr.to(tl.float16), zi.to(tl.float16)
    vr = tl.dot(zr, f2r)
    vr = tl.dot(zi, f2i, vr)
    vi = tl.dot(zi, f2r)
    vi = tl.dot(-zr, f2i, vi)
    tr, ti = unpack(square(turns, N1, N2))
    ur = (vr * tr + vi * ti).to(tl.float16)
    ui = (vi * tr - vr * ti).to(tl.float16)
    x = tl.dot(tl.trans(f1r), ur)
    return tl.dot(tl.trans(f1i), ui, x)


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
def load_spectrum(spectra, number, FLIP: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr):
    """Spectrum `number`; FLIP: its conjugate."""
    zr, zi = unpack(square(spectra + number.to(tl.int64) * N1 * N2, N1, N2))
    if FLIP:
        zi = -zi
    return zr, zi


@triton.jit
def taps_kernel(kernel, ahead, skip, tables, spectra, sizes, TAPS, AHEAD, LOWEST, N1: tl.constexpr, N2: tl.constexpr):
    """H_m of a channel, packed, and its size; `tables` are those of `_kernels.py`."""
    channel = tl.program_id(1)
    zr, zi = taps_spectrum(kernel, ahead, skip, tables, channel, LOWEST, TAPS, AHEAD, N1, N2, "tf32")
    size = size_of(tl.sum(tl.sum(zr * zr + zi * zi, 1), 0), N1 * N2)
    number = channel * tl.num_programs(0) + tl.program_id(0)
    place = spectra + number.to(tl.int64) * N1 * N2 + positions(N1, N2)
    tl.store(place, pack(zr * (1.0 / size), zi * (1.0 / size)))
    tl.store(sizes + number, size)


@triton.jit
def conv_kernel(
    x, spectra, sizes, y, tables, turns, B, D, L, PER, scale,
    FLIP: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
):  # fmt: skip
    """PER batch rows of one segment, of one channel, from input to output; FLIP: with the taps turned around."""
    part, channel = tl.program_id(0), tl.program_id(1)
    f1r, f1i = load_first(tables, N1)
    f2r, f2i = load_second(tables, N1, N2)
    scale *= tl.load(sizes + channel)
    # what is read again for each row would not fit into registers
    for b in tl.range(part * PER, tl.minimum(part * PER + PER, B), disable_licm=True, num_stages=1):
        row = b * D + channel
        zr, zi, size = transform(load_segment(x, row, 0, L, N1, N2), f1r, f1i, f2r, f2i, turns, N1, N2)
        hr, hi = load_spectrum(spectra, channel, FLIP, N1, N2)
        pr = zr * hr - zi * hi
        pi = zr * hi + zi * hr
        out = inverse(pr, pi, f1r, f1i, f2r, f2i, turns, N1, N2)
        store_segment(y, out * (size * scale), row, 0, L, N1, N2)


@triton.jit
def transform_kernel(
    x, ahead, skip, spectra, sizes, tables, turns, ROWS, S, LOWEST, L, AHEAD, PER, N1: tl.constexpr, N2: tl.constexpr
):
    """Spectra (ROWS, S, N), times `unit`, and sizes (ROWS, S) of the segments from LOWEST on; PER of them a program.

    x is (ROWS, L); of taps there may be `ahead` and `skip` (`load_taps`).
    """
    first = tl.program_id(0) * PER
    f1r, f1i = load_first(tables, N1)
    f2r, f2i = load_second(tables, N1, N2)
    for step in tl.range(0, tl.minimum(PER, ROWS * S - first), disable_licm=True, num_stages=1):
        i = first + step
        lag = (i % S + LOWEST) * N1 * N2 + positions(N1, N2)
        tile = load_taps(x, ahead, skip, i // S, lag, L, AHEAD)
        zr, zi, size = transform(tile, f1r, f1i, f2r, f2i, turns, N1, N2)
        tl.store(spectra + i.to(tl.int64) * N1 * N2 + positions(N1, N2), pack(zr, zi))
        tl.store(sizes + i, size)


@triton.jit
def combine_kernel(
    spectra, sizes, taps, taps_sizes, y, tables, turns, B, D, L, S, M, LOWEST, PER, scale,
    CAUSAL: tl.constexpr, FLIP: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
):  # fmt: skip
    """A segment of the output of PER batch rows, from the spectra of the inputs and of the M segments of taps."""
    part, segment, channel = tl.program_id(0), tl.program_id(1), tl.program_id(2)  # a channel's read the same spectra
    f1r, f1i = load_first(tables, N1)
    f2r, f2i = load_second(tables, N1, N2)
    low = segment if CAUSAL and FLIP else 0
    high = segment + 1 if CAUSAL and not FLIP else S
    for b in tl.range(part * PER, tl.minimum(part * PER + PER, B), disable_licm=True, num_stages=1):
        row = b * D + channel
        whole = 0.0
        for j in range(low, high):
            m = (j - segment if FLIP else segment - j) - LOWEST
            whole += tl.load(sizes + row * S + j) * tl.load(taps_sizes + channel * M + m)
        whole = tl.maximum(whole, TINY)  # a bound of the sum: shares of it keep fp16's range
        pr = tl.zeros([N1, N2], tl.float32)
        pi = tl.zeros([N1, N2], tl.float32)
        for j in range(low, high):
            m = (j - segment if FLIP else segment - j) - LOWEST
            share = tl.load(sizes + row * S + j) * tl.load(taps_sizes + channel * M + m) / whole
            zr, zi = load_spectrum(spectra, row * S + j, False, N1, N2)
            hr, hi = load_spectrum(taps, channel * M + m, FLIP, N1, N2)
            pr += (zr * hr - zi * hi) * share
            pi += (zr * hi + zi * hr) * share
        out = inverse(pr, pi, f1r, f1i, f2r, f2i, turns, N1, N2)
        store_segment(y, out * (whole * scale), row, segment, L, N1, N2)


@triton.jit
def gradient_kernel(x, grad, partial, tables, turns, B, D, L, PER, scale, N1: tl.constexpr, N2: tl.constexpr):
    """The share of PER batch rows of one segment in the gradient of the taps' spectrum: fp32 (parts, D, 2, N)."""
    part, channel = tl.program_id(0), tl.program_id(1)
    f1r, f1i = load_first(tables, N1)
    f2r, f2i = load_second(tables, N1, N2)
    totalr = tl.zeros([N1, N2], tl.float32)
    totali = tl.zeros([N1, N2], tl.float32)
    for b in tl.range(part * PER, tl.minimum(part * PER + PER, B), disable_licm=True, num_stages=1):
        row = b * D + channel
        zr, zi, size = transform(load_segment(x, row, 0, L, N1, N2), f1r, f1i, f2r, f2i, turns, N1, N2)
        held = pack(zr, zi)
        gr, gi, other = transform(load_segment(grad, row, 0, L, N1, N2), f1r, f1i, f2r, f2i, turns, N1, N2)
        zr, zi = unpack(held)
        weight = size * other * scale
        totalr += (zr * gr + zi * gi) * weight
        totali += (zr * gi - zi * gr) * weight
    place = partial + (part * D + channel).to(tl.int64) * 2 * N1 * N2 + positions(N1, N2)
    tl.store(place, totalr)
    tl.store(place + N1 * N2, totali)


@triton.jit
def product_kernel(
    spectra, sizes, grads, grads_sizes, totals, B, D, S, M, LOWEST, scale, N: tl.constexpr, BLOCK: tl.constexpr
):
    """Gradient of H_m: over rows and segments, the conjugate spectra of x times those of the output's gradient."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = tl.program_id(1)
    channel = tl.program_id(2)
    shift = m + LOWEST
    totalr = tl.zeros([BLOCK], tl.float32)
    totali = tl.zeros([BLOCK], tl.float32)
    for b in range(B):
        for j in range(tl.maximum(0, -shift), tl.minimum(S, S - shift)):
            number = (b * D + channel) * S + j
            weight = tl.load(sizes + number) * tl.load(grads_sizes + number + shift) * scale
            zr, zi = unpack(tl.load(spectra + number.to(tl.int64) * N + at))
            gr, gi = unpack(tl.load(grads + (number + shift).to(tl.int64) * N + at))
            totalr += (zr * gr + zi * gi) * weight
            totali += (zr * gi - zi * gr) * weight
    place = (channel.to(tl.int64) * M + m) * 2 * N + at
    tl.store(totals + place, totalr)
    tl.store(totals + place + N, totali)
