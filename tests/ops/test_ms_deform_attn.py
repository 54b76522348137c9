"""`ms_deform_attn` against Co-DETR's own outputs and gradients, and bilinear sampling written out; our kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridzoo.errors import InputError
from hybridzoo.ops._selftest import relative_error
from hybridzoo.ops.dispatch import get_op
from hybridzoo.ops.ms_deform_attn import ms_deform_attn

FIXTURE = load_file(Path(__file__).resolve().parent.parent / "fixtures" / "ops" / "codetr_msda.safetensors")


@pytest.mark.parametrize("suffix", ["", "64"])
def test_codetrs_own_outputs_and_gradients(suffix):
    wide = torch.float64 if suffix else torch.float32
    names = ("value", "sampling_locations", "attention_weights")
    value, locations, weights = (FIXTURE[n].to(wide).clone().requires_grad_() for n in names)
    out = ms_deform_attn(value, FIXTURE["spatial_shapes"], locations, weights)
    limit = 1e-10 if suffix else 1e-5
    assert relative_error(out, FIXTURE[f"out{suffix}"]) < limit
    grads = torch.autograd.grad(out, (value, locations, weights), FIXTURE["grad_out"].to(wide))
    for grad, name in zip(grads, ("value", "loc", "attn")):
        assert relative_error(grad, FIXTURE[f"grad_{name}{suffix}"]) < limit, name


def test_equals_sampling_written_out():
    shapes = [(3, 4), (1, 2)]
    value = torch.randn(1, 14, 2, 3, dtype=torch.float64)
    locations = torch.rand(1, 5, 2, 2, 3, 2, dtype=torch.float64) * 1.6 - 0.3  # a fifth of the points lie outside
    weights = torch.rand(1, 5, 2, 2, 3, dtype=torch.float64)
    want = torch.zeros(1, 5, 2, 3, dtype=torch.float64)
    for q, h, level, p in torch.cartesian_prod(*(torch.arange(n) for n in (5, 2, 2, 3))).tolist():
        rows, cols = shapes[level]
        base = sum(a * b for a, b in shapes[:level])
        x, y = (locations[0, q, h, level, p] * torch.tensor([cols, rows]) - 0.5).tolist()
        for row in range(rows):
            for col in range(cols):
                share = max(0.0, 1 - abs(x - col)) * max(0.0, 1 - abs(y - row))
                want[0, q, h] += weights[0, q, h, level, p] * share * value[0, base + row * cols + col, h]
    got = ms_deform_attn(value, shapes, locations, weights)
    torch.testing.assert_close(got, want.flatten(2))


def test_gradcheck():
    torch.manual_seed(0)
    shapes = [(3, 4), (1, 2)]
    value = torch.randn(2, 14, 2, 3, dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor([[4, 3], [2, 1]], dtype=torch.float64).view(2, 1, 2)
    steps, shares = torch.rand(2, 2, 3, 2, 2, 2, 2, dtype=torch.float64)
    # from outside to outside, never within a finite difference of a pixel centre, where the gradient jumps
    locations = ((((steps * (sizes + 2)).floor() - 0.5) + 0.1 + 0.8 * shares) / sizes).requires_grad_()
    weights = torch.rand(2, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: ms_deform_attn(x[0], shapes, *x[1:]), (value, locations, weights))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_every_dtype_is_sampled_in_fp32(dtype, limit):
    """Weights in the values' dtype or in fp32, locations in fp32."""
    names = ("value", "sampling_locations", "attention_weights")
    for third in {dtype, torch.float32}:
        leaves = [FIXTURE[n].to(t, copy=True).requires_grad_() for n, t in zip(names, (dtype, torch.float32, third))]
        wide = [x.detach().double().requires_grad_() for x in leaves]
        got, want = (ms_deform_attn(x[0], FIXTURE["spatial_shapes"], *x[1:]) for x in (leaves, wide))
        assert got.dtype == dtype
        assert relative_error(got, want) < limit
        gradient = FIXTURE["grad_out"].to(dtype)
        found = torch.autograd.grad(got, leaves, gradient)
        for name, grad, leaf, exact in zip(names, found, leaves, torch.autograd.grad(want, wide, gradient.double())):
            assert grad.dtype == leaf.dtype
            assert relative_error(grad, exact) < limit, name


@pytest.mark.parametrize("how", ["compile", "export"])
def test_traces(how):
    shapes = FIXTURE["spatial_shapes"].tolist()
    rest = (FIXTURE["sampling_locations"], FIXTURE["attention_weights"])

    class Layer(torch.nn.Module):
        def forward(self, value):
            return ms_deform_attn(value, shapes, *rest)

    layer, value = Layer(), FIXTURE["value"]
    traced = (
        torch.compile(layer, fullgraph=True, backend="aot_eager")
        if how == "compile"
        else torch.export.export(layer, (value,)).module()
    )
    torch.testing.assert_close(traced(value), layer(value))


def test_compiles_for_any_map_size():
    """Gradients, too; one graph serves several sizes."""

    def layer(image, locations, weights):
        height, width = image.shape[1:3]
        return ms_deform_attn(image.flatten(1, 2), [(height, width)], locations, weights).square().sum()

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for height, width in ((5, 7), (6, 4)):
        leaves = [torch.rand(*size, requires_grad=True) for size in ((2, height, width, 2, 3), (2, 4, 2, 1, 3, 2))]
        leaves.append(torch.rand(2, 4, 2, 1, 3, requires_grad=True))
        got, want = (torch.autograd.grad(f(*leaves), leaves) for f in (compiled, layer))
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value": torch.zeros(2, 9, 4, 8)}, "value must be (B, 14, H, D) for maps of [(3, 4), (1, 2)]"),
        ({"attention_weights": torch.zeros(2, 5, 4, 3, 2)}, "attention_weights must be (2, Q, 4, 2, P)"),
        ({"sampling_locations": torch.zeros(2, 5, 4, 2, 3, 3)}, "sampling_locations must be (2, 5, 4, 2, 3, 2)"),
        ({"spatial_shapes": torch.tensor([3, 4, 1, 2])}, "must be integers (L, 2), a (height, width) for each map"),
        ({"spatial_shapes": torch.tensor([[3.0, 4], [1, 2]])}, "it is (2, 2) torch.float32"),
        ({"spatial_shapes": [(3, 4), (2, 0)]}, "each at least 1; it is [(3, 4), (2, 0)]"),
        ({"spatial_shapes": []}, "at least one (height, width)"),
        ({"value": torch.zeros(2, 14, 4, 8).int()}, "value must be floating-point, it is torch.int32; use .float()"),
        ({"value": torch.zeros(2, 14, 4, 8).double()}, "value is torch.float64, sampling_locations is torch.float32"),
        ({"attention_weights": torch.zeros(2, 5, 4, 2, 3, device="meta")}, "is on meta, value on cpu"),
    ],
)
def test_bad_inputs_are_named(change, words):
    call = {
        "value": torch.zeros(2, 14, 4, 8),
        "spatial_shapes": [(3, 4), (1, 2)],
        "sampling_locations": torch.zeros(2, 5, 4, 2, 3, 2),
        "attention_weights": torch.zeros(2, 5, 4, 2, 3),
    }
    with pytest.raises(InputError) as caught:
        ms_deform_attn(**{**call, **change})
    assert words in str(caught.value)


def _call(**change):
    call = {
        "value": torch.zeros(2, 14, 4, 8),
        "shapes": [(3, 4), (1, 2)],
        "locations": torch.zeros(2, 5, 4, 2, 3, 2),
        "weights": torch.zeros(2, 5, 4, 2, 3),
    }
    return {**call, **change}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": torch.zeros(2, 5, 4, 2, 3).double()}, "weights is torch.float64"),
        ({"value": torch.zeros(2, 14, 4, 300)}, "at most 256 channels a head in registers, value has 300"),
        ({"weights": torch.zeros(2, 5, 4, 2, 17)}, "at most 16 points a map, there are 17"),
        ({"value": torch.zeros(0, 14, 4, 8), "locations": torch.zeros(0, 5, 4, 2, 3, 2)}, "an input is empty"),
    ],
)
def test_calls_that_the_kernels_refuse(change, words):
    triton = get_op("ms_deform_attn").backends[0]
    assert triton.name == "triton"
    assert triton.supports(_call()) is None
    assert words in str(triton.supports(_call(**change)))


def test_no_queries_and_no_batch():
    value, shapes = torch.zeros(2, 14, 4, 8), [(3, 4), (1, 2)]
    assert ms_deform_attn(value, shapes, torch.zeros(2, 0, 4, 2, 3, 2), torch.zeros(2, 0, 4, 2, 3)).shape == (2, 0, 32)
    out = ms_deform_attn(value[:0], shapes, torch.zeros(0, 5, 4, 2, 3, 2), torch.zeros(0, 5, 4, 2, 3))
    assert out.shape == (0, 5, 32)


@pytest.mark.parametrize(
    "case",
    [
        *("L1-P1-D8", "L2-P3-D12-B2-H3", "L3-P2-D5-blocks", "L4-P8-D16", "L5-P4-D32", "L1-P7-D40", "Q1"),
        *("L1-P5-D64-tile-below-one-query", "borders", "far-outside", "bf16", "fp16", "strided", "nan", "opcheck"),
    ],
)
def test_triton_kernels_equal_the_reference(kernel_errors, case):
    """Outputs and every gradient, memory poisoned beforehand, in Triton's interpreter; and `torch.library.opcheck`."""
    errors = kernel_errors("ms_deform_attn")[case]
    if case not in ("strided", "nan", "opcheck"):
        assert set(errors) == {"out.0", "grad.value", "grad.locations", "grad.weights"}
    assert errors
    limit = {"bf16": 1.5e-2, "fp16": 4e-3}.get(case, 5e-6)
    assert {k: e for k, e in errors.items() if not e <= limit} == {}
