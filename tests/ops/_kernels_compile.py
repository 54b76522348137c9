"""Compiles what calls of our ops launch, for a GPU that need not be there; prints one JSON line: case -> problem,
or "skip" -> why nothing can be compiled here.

    python tests/ops/_kernels_compile.py [OP ...]

Triton's interpreter runs kernels as Python: it sees neither types nor code that is not reached, so a kernel may be
right in it and not compile, above all where an argument is None. Here an op runs on CPU tensors with every launch
replaced by a compilation for sm_90 (outputs stay unwritten), down to the GPU dialect: later stages take most of the
time. Not a test module: the tests start it in a process of its own, which leaves theirs as it is.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from hybridzoo.ops._selftest import run_example
from hybridzoo.ops.dispatch import Example, get_op

TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64", torch.bool: "i1",
    torch.uint8: "u8", torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip

TAPS = ("taps_kernel", "taps_backward_kernel")  # of long_conv; its others take long and have no optional arguments
TOGETHER = ("transform_kernel", "product_kernel", "correlate_kernel", "inverse_kernel")  # of a few 16-bit segments
TOGETHER = (*TOGETHER, "product_bounds_kernel", "correlate_bounds_kernel")
Case = tuple[str, tuple[str, ...], tuple[str, ...]]
CASES: dict[str, list[Case]] = {  # op -> name of an example, what is None in it, names of kernels (all if empty)
    "causal_conv1d": [
        ("causal", (), ()),
        ("causal", ("bias", "activation"), ()),
        ("bf16", ("bias",), ()),
        ("packed", (), ()),
        ("packed", ("bias", "initial_state", "activation"), ()),
        ("state", ("bias",), ()),
    ],
    "linear": [
        ("M37-K33-N20-fp32", (), ()),
        ("M37-K33-N20-fp32", ("bias",), ()),
        ("M17000-K30-N66-fp32", (), ()),
        ("M17000-K30-N66-fp32", ("bias",), ()),
    ],
    "rank_product": [("M70-K2-R4-D40-fp32", (), ()), ("M130-K3-R20-D150-fp32", (), ())],
    "conv2d_relu": [
        ("B2-5x7-C40-N33-3x3-fp32", (), ()),
        ("B1-9x6-C32-N64-3x3-residual-fp32", ("residual",), ()),
        ("B2-128x132-C20-N24-1x1-fp32", (), ()),
    ],
    "concat_last": [("M70-K8-4-16-16-fp32", (), ())],
    "depthwise_conv2d": [("B2-9x10-C40-bias-silu-fp32", (), ()), ("B2-9x10-C40-bias-silu-fp32", ("bias",), ())],
    "hybrid_attention": [("rows without gradients", (), ()), ("decode", (), ())],
    "linear_attention": [
        ("long, normalised, decay", (), ()),
        ("long, normalised, decay", ("decay", "initial_state"), ()),
        ("non-causal, normalised", (), ()),
    ],
    "delta_rule": [("packed", (), ()), ("plain", ("initial_state",), ())],
    "long_conv": [
        ("short", (), TAPS),
        ("short", ("skip",), TAPS),
        ("bidirectional", (), TAPS),
        ("bf16, segments", (), TOGETHER),
        ("bf16, segments", ("skip",), TOGETHER),
        ("bf16, segments, bidirectional", (), TOGETHER),
    ],
    "selective_scan": [("full, groups", (), ()), ("packed", ("z", "D", "dt_bias", "initial_state"), ())],
}


class _Enough(Exception):
    """Raised where compilation is to stop."""


def type_of(value: Any) -> tuple[str, bool]:
    """The type Triton gives an argument, and whether it takes it as divisible by 16."""
    if value is None or (type(value) is int and value == 1):
        return "constexpr", False
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype], value.data_ptr() % 16 == 0
    if isinstance(value, bool):
        return "i1", False
    if isinstance(value, int):
        return ("i32" if -(2**31) <= value < 2**31 else "i64"), value % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    raise TypeError(f"a kernel's argument is {type(value).__name__}")


def compile_kernel(kernel: Any, args: tuple[Any, ...], named: dict[str, Any], whole: bool) -> None:
    """Compile one launch for sm_90.

    Args:
        kernel: a `triton.jit` function.
        args: its arguments, in order, without the constexpr parameters.
        named: the constexpr parameters, and options of the compiler (`num_warps`).
        whole: down to machine code, instead of to the GPU dialect.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {name: value for name, value in named.items() if name in kernel.arg_names}
    options = {name: value for name, value in named.items() if name not in constants}
    names = [name for name in kernel.arg_names if name not in constants]
    assert len(names) == len(args), (names, len(args))
    signature: dict[str, str] = dict.fromkeys(kernel.arg_names, "constexpr")
    values, attributes = {(kernel.arg_names.index(name),): value for name, value in constants.items()}, {}
    for name, arg in zip(names, args):
        place = (kernel.arg_names.index(name),)
        signature[name], divisible = type_of(arg)
        if signature[name] == "constexpr":
            values[place] = arg
        elif divisible:
            attributes[place] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    with _stopping_early(not whole), suppress(_Enough):
        triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@contextmanager
def _stopping_early(early: bool) -> Iterator[None]:
    from triton.backends.nvidia.compiler import CUDABackend

    def stop(*_: Any) -> None:
        raise _Enough

    def stages(self: Any, found: dict[str, Any], *rest: Any, **more: Any) -> None:
        original(self, found, *rest, **more)
        for name in found:
            if name not in ("ttir", "ttgir"):
                found[name] = stop

    original = CUDABackend.add_stages
    CUDABackend.add_stages = stages if early else original
    try:
        yield
    finally:
        CUDABackend.add_stages = original


@contextmanager
def launches(whole: bool = False, only: Collection[str] = ()) -> Iterator[list[str]]:
    """Inside, launches compile instead of running; yields the list of kernels compiled, which grows.

    Args:
        whole: down to machine code, instead of to the GPU dialect.
        only: names of kernels to compile, all if empty.

    Raises:
        RuntimeError: a kernel does not compile; the text names it and its arguments.
    """
    from triton.runtime.jit import JITFunction

    done: list[str] = []
    seen: set[str] = set()

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        types = [f"{type_of(arg)[0]}{' % 16' * type_of(arg)[1]}" for arg in args]
        what = f"{self.fn.__module__}.{self.fn.__name__}({', '.join(types)}, {named})"
        if what in seen or (only and self.fn.__name__ not in only):
            return
        seen.add(what)
        try:
            compile_kernel(self, args, named, whole)
        except Exception as error:
            raise RuntimeError(f"{what} does not compile: {type(error).__name__}: {error}") from error
        done.append(self.fn.__name__)

    original = JITFunction.run
    JITFunction.run = run
    try:
        yield done
    finally:
        JITFunction.run = original


def problem(op: str, name: str, absent: tuple[str, ...], only: tuple[str, ...]) -> str:
    """Why the kernels of an example do not compile with some of its arguments None; "" if they do."""
    found = get_op(op)
    example = next(e for e in found.examples(torch.device("cpu")) if e.name == name)
    assert all(example.call[key] is not None for key in absent), (op, name, absent)
    call = {key: None if key in absent else value for key, value in example.call.items()}
    backend = next(b for b in found.backends if b.name == "triton")
    try:
        with launches(only=only) as done:
            run_example(backend, Example(name, call, tuple(k for k in example.differentiable if k not in absent)))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if done else "nothing was launched"


def obstacle() -> str:
    """Why Triton cannot compile for sm_90 on this machine; "" if it can."""
    import triton
    import triton.language as tl

    @triton.jit
    def one(x):
        tl.store(x, 1.0)

    try:
        compile_kernel(one, (torch.empty(1),), {}, whole=False)
    except Exception as error:
        return f"triton {triton.__version__} cannot compile for sm_90 here: {type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if reason := obstacle():
        print(json.dumps({"skip": reason}))
        sys.exit()
    found = {
        f"{op}: {name}, without {absent}": problem(op, name, absent, only)
        for op in sys.argv[1:] or CASES
        for name, absent, only in CASES[op]
    }
    print(json.dumps(found))
