"""Triton kernels of `long_conv` for 16-bit inputs of a few segments: all spectra of a channel meet in registers.

The sum over segments, y_i = sum over j of H_(i-j) X_j, is apart for each frequency. A program takes some frequencies of
a channel, reads the spectra of all segments once and has every sum from registers: memory is read once, where
`combine_kernel` reads it S / 2 times. The taps come as transforms T_m of their segments, H_m = T_m - i T_(m-1).

The sums are unrolled. SEGMENTS is S rounded up to a power of two; spectra that do not exist are zero. Re and Im lie
side by side in (BLOCK, 2) tiles: the compiler's time grows with the square of the number of operations.
"""
# ruff: noqa: RUF005  (a starred tuple is not Triton)

from __future__ import annotations

import triton
import triton.language as tl

from hybridzoo.ops.long_conv._kernels import positions
from hybridzoo.ops.long_conv._kernels_half import TINY, inverse, load_first, load_second, load_spectrum, pack, unpack


@triton.jit
def sizes_at(sizes, first, at, count):
    """Sizes at the places `at`, zero outside 0 to count - 1."""
    return tl.load(sizes + first + at, mask=(at >= 0) & (at < count), other=0.0)


@triton.jit
def product_bounds_kernel(
    sizes, taps_sizes, bounds, D, S, CAUSAL: tl.constexpr, FLIP: tl.constexpr, SEGMENTS: tl.constexpr
):
    """(B, D, S): what the spectra that `product_kernel` makes stay below, but for the spectra's own largest values."""
    channel = tl.program_id(1)
    first = (tl.program_id(0) * D + channel) * S
    i = tl.arange(0, SEGMENTS)
    j = tl.arange(0, SEGMENTS)[None, :]
    count = S if CAUSAL else 2 * S
    m = (j - i[:, None] if FLIP else i[:, None] - j) + (count - S)
    there = (j < S) & (m < count)  # what does not exist has no size
    near = tl.where(there, sizes_at(taps_sizes, channel * count, m, count), 0.0)
    far = tl.where(there & (m >= 0), sizes_at(taps_sizes, channel * count, m - 1, count), 0.0)
    inputs = sizes_at(sizes, first, j, S)
    whole = tl.sum(inputs * (near + far), 1)
    scale = tl.max(tl.max(inputs, 1), 0) * tl.max(tl.max(near, 1), 0)
    tl.store(bounds + first + i, tl.maximum(whole, scale * 1e-30), mask=i < S)  # their quotient stays finite


@triton.jit
def correlate_bounds_kernel(
    sizes, grads_sizes, bounds, B, D, S, CAUSAL: tl.constexpr, SEGMENTS: tl.constexpr, LAGS: tl.constexpr
):
    """(D, S or 2 S): the same for `correlate_kernel`."""
    channel = tl.program_id(0)
    k = tl.arange(0, LAGS)
    j = tl.arange(0, SEGMENTS)[None, :]
    count = S if CAUSAL else 2 * S
    m = k[:, None] - (count - S)
    whole = tl.zeros([LAGS], tl.float32)
    for b in range(B):
        first = (b * D + channel) * S
        pairs = sizes_at(grads_sizes, first, j + m, S) + sizes_at(grads_sizes, first, j + m + 1, S)
        whole += tl.sum(sizes_at(sizes, first, j, S) * pairs, 1)
    tl.store(bounds + channel * count + k, tl.maximum(whole, TINY * TINY), mask=k < count)


@triton.jit
def load_spectra(
    spectra, sizes, first, at, missing, count, RELATIVE: tl.constexpr, MOST: tl.constexpr, N: tl.constexpr
):
    """Tuple of (BLOCK, 2) spectra at the frequencies `at`, times their sizes, and the largest size.

    `count` of MOST exist, behind `missing`. RELATIVE: they are divided by the largest size.
    """
    largest = 0.0
    scales = ()
    for j in tl.static_range(MOST):
        place = sizes + first + j - missing
        scale = tl.load(place, mask=(j >= missing) & (j < missing + count), other=0.0)
        largest = tl.maximum(largest, scale)
        scales = scales + (scale,)
    factor = 1.0 / largest if RELATIVE else 1.0
    found = ()
    for j in tl.static_range(MOST):
        place = spectra + (first + j - missing).to(tl.int64) * N + at
        z = tl.join(*unpack(tl.load(place, mask=(j >= missing) & (j < missing + count), other=0)))
        found = found + (z * (scales[j] * factor),)
    return found, largest


@triton.jit
def times(z, SIGN: tl.constexpr):
    """z i SIGN."""
    re, im = tl.split(z)
    if SIGN > 0:
        return tl.join(-im, re)
    return tl.join(im, -re)


@triton.jit
def both(z):
    """(re, re) and (im, im): z w = re w + im (i w)."""
    re, im = tl.split(z)
    return tl.join(re, re), tl.join(im, im)


@triton.jit
def product_kernel(
    spectra, sizes, taps, taps_sizes, bounds, out, D, S,
    CAUSAL: tl.constexpr, FLIP: tl.constexpr, SEGMENTS: tl.constexpr, WHOLE: tl.constexpr, N: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Spectra (B, D, S, N) of the output, divided by the bounds (B, D, S). `out` may be `spectra`.

    taps: T_m from m = 0 on (D, S, N), or from m = -S on (D, 2 S, N) if not CAUSAL.
    FLIP: with the taps turned around, for gradients. WHOLE: S is SEGMENTS.
    """
    if WHOLE:
        S = SEGMENTS
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(2)
    first = (tl.program_id(1) * D + channel) * S
    BEFORE: tl.constexpr = 0 if CAUSAL else SEGMENTS  # of the taps' transforms lie before m = 0
    count = S if CAUSAL else 2 * S
    missing = 0 if CAUSAL else SEGMENTS - S
    t, most = load_spectra(taps, taps_sizes, channel * count, at, missing, count, True, SEGMENTS + BEFORE, N)
    h = (t[0],)  # by m + BEFORE
    for k in tl.static_range(1, SEGMENTS + BEFORE):
        h = h + (t[k] + times(t[k - 1], -1),)
    x, largest = load_spectra(spectra, sizes, first, at, 0, S, True, SEGMENTS, N)
    turned = ()
    re = ()
    im = ()
    for k in tl.static_range(SEGMENTS):
        turned = turned + (times(x[k], -1 if FLIP else 1),)
    for k in tl.static_range(SEGMENTS + BEFORE):
        r, i = both(h[k])
        re = re + (r,)
        im = im + (i,)
    for i in tl.static_range(SEGMENTS):
        total = tl.zeros([BLOCK, 2], tl.float32)
        if FLIP:
            for j in tl.static_range(i if CAUSAL else 0, SEGMENTS):
                total = tl.fma(x[j], re[j - i + BEFORE], tl.fma(turned[j], im[j - i + BEFORE], total))
        else:
            for j in tl.static_range(0, i + 1 if CAUSAL else SEGMENTS):
                total = tl.fma(x[j], re[i - j + BEFORE], tl.fma(turned[j], im[i - j + BEFORE], total))
        bound = tl.load(bounds + first + i, mask=i < S, other=1.0)
        re_i, im_i = tl.split(total * (largest / bound * most))
        tl.store(out + (first + i).to(tl.int64) * N + at, pack(re_i, im_i), mask=i < S)


@triton.jit
def correlate_kernel(
    spectra, sizes, grads, grads_sizes, bounds, out, B, D, S,
    CAUSAL: tl.constexpr, SEGMENTS: tl.constexpr, WHOLE: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Spectra of the gradient of the taps' segments, laid out as T_m, divided by the bounds.

    That of H_m is the sum over rows and segments of conj(X_j) G_(j+m); segment m is in H_m, and times -i in H_(m+1).
    """
    if WHOLE:
        S = SEGMENTS
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1)
    BEFORE: tl.constexpr = 0 if CAUSAL else SEGMENTS
    LAGS: tl.constexpr = SEGMENTS + BEFORE
    totals = ()
    for _k in tl.static_range(LAGS + 1):  # the last one stays zero
        totals = totals + (tl.zeros([BLOCK, 2], tl.float32),)
    for b in range(B):
        first = (b * D + channel) * S
        x, _ = load_spectra(spectra, sizes, first, at, 0, S, False, SEGMENTS, N)
        g, _ = load_spectra(grads, grads_sizes, first, at, 0, S, False, SEGMENTS, N)
        re = ()
        im = ()
        turned = ()
        for k in tl.static_range(SEGMENTS):
            r, i = both(x[k])
            re = re + (r,)
            im = im + (i,)
            turned = turned + (times(g[k], -1),)
        new = ()
        for k in tl.static_range(LAGS + 1):
            total = totals[k]
            for j in tl.static_range(max(0, BEFORE - k), max(0, min(SEGMENTS, LAGS - k))):
                total = tl.fma(g[j + k - BEFORE], re[j], tl.fma(turned[j + k - BEFORE], im[j], total))
            new = new + (total,)
        totals = new
    count = S if CAUSAL else 2 * S
    for k in tl.static_range(LAGS):
        place = k - (LAGS - BEFORE - S if not CAUSAL else 0)
        there = (place >= 0) & (place < count)
        bound = tl.load(bounds + channel * count + place, mask=there, other=1.0)
        re_k, im_k = tl.split((totals[k] + times(totals[k + 1], 1)) * (1.0 / bound))
        tl.store(out + (channel * count + place).to(tl.int64) * N + at, pack(re_k, im_k), mask=there)


@triton.jit
def inverse_kernel(
    spectra, bounds, y, ahead, tables, turns, ROWS, S, LOWEST, L, AHEAD, PER, scale,
    N1: tl.constexpr, N2: tl.constexpr,
):  # fmt: skip
    """Segments from LOWEST on of y (ROWS, L) from their spectra (ROWS, S, N); PER of them a program.

    Of taps those before lag 0 go to `ahead` (ROWS, AHEAD), turned around.
    """
    first = tl.program_id(0) * PER
    f1r, f1i = load_first(tables, N1)
    f2r, f2i = load_second(tables, N1, N2)
    for step in tl.range(0, tl.minimum(PER, ROWS * S - first), disable_licm=True, num_stages=1):
        i = first + step
        row = (i // S).to(tl.int64)
        zr, zi = load_spectrum(spectra, i, False, N1, N2)
        value = inverse(zr, zi, f1r, f1i, f2r, f2i, turns, N1, N2) * (tl.load(bounds + i) * scale)
        lag = (i % S + LOWEST) * N1 * N2 + positions(N1, N2)
        tl.store(y + row * L + lag, value.to(y.dtype.element_ty), mask=(lag >= 0) & (lag < L))
        if ahead is not None:
            tl.store(ahead + row * AHEAD - 1 - lag, value, mask=(lag < 0) & (lag >= -AHEAD))
