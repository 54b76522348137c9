"""fp32 products on tensor cores, for Triton kernels: each operand as the sum of two TF32 numbers, three products.

Triton's own `input_precision="tf32x3"` on four warps or more brings both parts of an operand through shared memory into
the order that Hopper's warp-group products need. The one or two warps of a small program form no group: they read the
operands once, split them in registers, and need neither order nor barriers in between. On an H200 the small programs
win for gradients and where a product is small, the groups for large products forwards (by up to a third): ops choose.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _halves(x):
    """x rounded to TF32 (11 bits), and the rest, which is exact; of the rest the tensor cores take 11 bits more.

    A NaN stays one through the rest; infinities become NaN.
    """
    high = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def add_product(a, b, out):
    """`out + a b`: (M, K), (K, N), (M, N), all fp32; what is left out is 2^-22 of a product.

    The products of one call are summed on the tensor cores, which round towards zero; `out` is added to their sum.
    """
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    sums = tl.dot(a_low, b_high, input_precision="tf32")
    sums = tl.dot(a_high, b_low, sums, input_precision="tf32")
    return out + tl.dot(a_high, b_high, sums, input_precision="tf32")
