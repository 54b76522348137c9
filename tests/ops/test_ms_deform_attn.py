"""`ms_deform_attn` against Co-DETR's own outputs and gradients, and against bilinear sampling written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridzoo.errors import InputError
from hybridzoo.ops._selftest import relative_error
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


def test_sixteen_bit_values_are_sampled_in_fp32():
    value = FIXTURE["value"].bfloat16()
    got = ms_deform_attn(value, FIXTURE["spatial_shapes"], FIXTURE["sampling_locations"], FIXTURE["attention_weights"])
    assert got.dtype == torch.bfloat16
    want = ms_deform_attn(
        value.double(),
        FIXTURE["spatial_shapes"],
        FIXTURE["sampling_locations"].double(),
        FIXTURE["attention_weights"].double(),
    )
    assert relative_error(got, want) < 4e-3


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value": torch.zeros(2, 9, 4, 8)}, "value must be (B, 14, H, D) for maps of [(3, 4), (1, 2)]"),
        ({"attention_weights": torch.zeros(2, 5, 4, 3, 2)}, "attention_weights must be (2, Q, 4, 2, P)"),
        ({"sampling_locations": torch.zeros(2, 5, 4, 2, 3, 3)}, "sampling_locations must be (2, 5, 4, 2, 3, 2)"),
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
