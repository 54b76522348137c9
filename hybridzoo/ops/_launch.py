"""Launching Triton kernels with less work on the host.

Triton's own launch binds, specialises and hashes every argument on each call, 50 to 100 microseconds for kernels with
thirty arguments: more than many of them take on the device. Here a call whose integers, dtypes and pointer alignments
have been seen before goes straight to the compiled kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_compiled: dict[tuple, tuple[Any, tuple]] = {}


def cdiv(a: int, b: int) -> int:
    """a / b rounded up (`triton.cdiv` costs tens of microseconds on the host)."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n >= 1."""
    return 1 << (n - 1).bit_length()


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int = 4, **constants: Any) -> None:
    """Run `kernel[grid](*args, num_warps=num_warps, **constants)`.

    Args:
        kernel: a `triton.jit` function whose constexpr parameters come last.
        grid: programs per axis.
        args: tensors, integers and floats, in the order of the signature.
        num_warps: warps a program.
        constants: every constexpr parameter.
    """
    key: list[Any] = [kernel, num_warps, *constants.values()]
    for arg in args:
        if isinstance(arg, Tensor):
            key += (arg.dtype, arg.data_ptr() % 16 == 0)
        else:
            key.append(arg)
    key.append(torch.cuda.current_device() if args[0].is_cuda else -1)
    found = _compiled.get(tuple(key))
    if found is None:
        compiled = kernel[grid](*args, num_warps=num_warps, **constants)
        if hasattr(compiled, "packed_metadata"):  # the interpreter compiles nothing
            order = [name for name in kernel.arg_names if name in constants]
            _compiled[tuple(key)] = compiled, tuple(constants[name] for name in order)
        return
    compiled, values = found
    compiled[(*grid, 1, 1)[:3]](*args, *values)
