"""`long_conv` against a sum over lags, and SGConv's own outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridzoo.errors import InputError
from hybridzoo.ops._selftest import relative_error
from hybridzoo.ops.dispatch import get_op
from hybridzoo.ops.long_conv import long_conv

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "ops"


def by_lags(x, kernel, reverse=None, skip=None):
    y = torch.zeros_like(x) if skip is None else skip * x
    for s in range(kernel.shape[1]):
        y = y + torch.nn.functional.pad(x, (0, 0, s, 0))[:, : x.shape[1]] * kernel[:, s]
    for s in range(1, 1 + (0 if reverse is None else reverse.shape[1])):
        y = y + torch.nn.functional.pad(x, (0, 0, 0, s))[:, s:] * reverse[:, s - 1]
    return y


@pytest.mark.parametrize(
    ("length", "taps", "ahead"),
    [(1, 1, 0), (2, 2, 1), (7, 3, 0), (48, 48, 47), (49, 49, 0), (49, 1, 48), (49, 20, 5), (100, 100, 99), (101, 3, 0)],
)
def test_equals_the_sum_over_lags(length, taps, ahead):
    x, kernel, skip = torch.randn(2, length, 3), torch.randn(3, taps), torch.randn(3)
    leaves = [x, kernel, skip, *([torch.randn(3, ahead)] if ahead else [])]
    leaves = [leaf.double().requires_grad_() for leaf in leaves]
    x, kernel, skip, reverse = [*leaves, None][:4]
    got, want = long_conv(x, kernel, reverse, skip), by_lags(x, kernel, reverse, skip)
    weight = torch.randn_like(want)
    grads = [torch.autograd.grad(y, leaves, weight) for y in (got, want)]
    for g, w in zip((got, *grads[0]), (want, *grads[1])):
        assert relative_error(g, w) < 1e-12


@pytest.mark.parametrize(("length", "taps", "ahead"), [(1, 1, 0), (9, 4, 0), (9, 9, 8), (9, 2, 5)])
def test_exported_graphs_are_real_and_agree(length, taps, ahead):
    x, kernel = torch.randn(2, length, 3).double(), torch.randn(3, taps).double()
    reverse = torch.randn(3, ahead).double() if ahead else None

    class Layer(torch.nn.Module):
        def forward(self, x, kernel):
            return long_conv(x, kernel, reverse)

    program = torch.export.export(Layer(), (x, kernel))
    assert not any("fft" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x, kernel), by_lags(x, kernel, reverse))


@pytest.mark.parametrize("name", ["cat_bi", "sum_causal", "cat_causal_decayrange"])
def test_sgconvs_own_outputs(name):
    x = load_file(FIXTURES / f"sgconv_{name}.safetensors")
    length = x["in.x_bdl"].shape[2]
    folded = x["out.kernel"][0]  # the second half of a bidirectional one holds the lags -L .. -1
    reverse = folded[:, length + 1 :].flip(1) if folded.shape[1] > length else None
    y = long_conv(x["in.x_bdl"].transpose(1, 2), folded[:, :length], reverse, x["sd.D"][0])
    torch.testing.assert_close(y.transpose(1, 2), x["out.y_bdl"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [20, 300])
def test_sixteen_bit_inputs_are_computed_in_fp32(length):
    x, kernel = torch.randn(2, length, 3).bfloat16(), torch.randn(3, length).bfloat16()
    got = long_conv(x, kernel)
    assert got.dtype == torch.bfloat16
    assert relative_error(got, by_lags(x.double(), kernel.double())) < 4e-3


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((torch.zeros(2, 5), torch.zeros(3, 5)), "x must be (B, L, D)"),
        ((torch.zeros(2, 5, 3), torch.zeros(3, 6)), "kernel must be (3, 1 to 5), it is (3, 6)"),
        ((torch.zeros(2, 5, 3), torch.zeros(3, 5), torch.zeros(3, 5)), "reverse_kernel must be (3, 1 to 4)"),
        ((torch.zeros(2, 5, 3), torch.zeros(3, 5), None, torch.zeros(2)), "skip must be (3,)"),
    ],
)
def test_bad_inputs_are_named(args, words):
    with pytest.raises(InputError) as caught:
        long_conv(*args)
    assert words in str(caught.value)


def test_gradcheck():
    leaves = (torch.randn(1, 5, 2), torch.randn(2, 4), torch.randn(2, 3), torch.randn(2))
    assert torch.autograd.gradcheck(long_conv, [x.double().requires_grad_() for x in leaves])


def test_traces():
    x, kernel, ahead = torch.randn(2, 40, 3), torch.randn(3, 40), torch.randn(3, 39)

    def f(x):
        return long_conv(x, kernel, ahead)

    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


def test_slices_are_read_as_they_lie():
    wide = torch.randn(2, 30, 9).double()
    x, kernel = wide[..., 3:6], torch.randn(3, 60).double()[:, ::2]
    assert not x.is_contiguous()
    torch.testing.assert_close(long_conv(x, kernel), by_lags(x, kernel))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_values(scale):
    x, kernel = torch.randn(1, 50, 2) * scale, torch.randn(2, 50)
    assert relative_error(long_conv(x, kernel) / scale, by_lags(x.double(), kernel.double()) / scale) < 1e-5


HALF = ("bf16", "short-bf16", "tiny-bf16", "huge-bf16", "segments-fp16", "causal-segments-fp16", "few-taps-ahead-fp16")
HALF = (*HALF, "apart-fp16", "silence-bf16")
CASES = ("L1", "L2-both", "L255", "L256-both", "L257", "L700-both", "L1000-one-ahead", "oblong", "oblong-segments")


@pytest.mark.parametrize("case", [*CASES, "usual-300", "usual-1500", "usual-5000", *HALF, "strided", "opcheck"])
def test_triton_kernels_equal_the_reference(kernel_errors, case):
    """Outputs and gradients, memory poisoned beforehand, in Triton's interpreter; and `torch.library.opcheck`."""
    errors = kernel_errors("long_conv")[case]
    if case not in ("strided", "opcheck"):
        assert {"out.0", "grad.x", "grad.kernel"} <= set(errors)
        two_sided = case.endswith("both") or case in (
            "L1000-one-ahead",
            "oblong",
            "bf16",
            "usual-1500",
            "segments-fp16",
            "few-taps-ahead-fp16",
            "apart-fp16",
        )
        assert ("grad.reverse_kernel" in errors) == two_sided
    limit = 1.5e-2 if case.endswith("bf16") else 4e-3 if case.endswith("fp16") else 5e-6
    assert {k: e for k, e in errors.items() if not e <= limit} == {}


def test_calls_that_the_kernels_refuse():
    triton = get_op("long_conv").backends[0]
    call = {"x": torch.zeros(1, 4, 2), "kernel": torch.zeros(2, 4), "reverse_kernel": None, "skip": None}
    assert triton.name == "triton"
    assert triton.supports(call) is None
    assert "kernel is torch.float64" in str(triton.supports({**call, "kernel": torch.zeros(2, 4).double()}))
