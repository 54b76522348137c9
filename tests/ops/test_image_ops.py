"""Channels-last image ops: kernels against their torch definitions, bad calls, gradients of slices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hybridzoo.errors import InputError
from hybridzoo.ops.add_layer_norm import add_layer_norm
from hybridzoo.ops.avg_pool2x2 import avg_pool2x2
from hybridzoo.ops.bias_gelu import bias_gelu
from hybridzoo.ops.conv2d_relu import conv2d_relu
from hybridzoo.ops.depthwise_conv2d import depthwise_conv2d
from hybridzoo.ops.instance_norm_silu import instance_norm_silu
from hybridzoo.ops.layer_norm_gate import layer_norm_gate
from hybridzoo.ops.linear import linear
from hybridzoo.ops.max_pool3x3 import max_pool3x3
from hybridzoo.ops.rank_product import rank_product
from hybridzoo.ops.scaled_residual import scaled_residual

OPS = [
    "depthwise_conv2d",
    "instance_norm_silu",
    "layer_norm_gate",
    "max_pool3x3",
    "avg_pool2x2",
    "bias_gelu",
    "conv2d_relu",
    "linear",
    "rank_product",
    "concat_last",
    "add_layer_norm",
    "scaled_residual",
]
X = torch.zeros(2, 6, 4, 8)


@pytest.mark.parametrize("op", OPS)
def test_kernels_match_the_definition(op):
    """Outputs and gradients in Triton's interpreter with poisoned memory, and the operator's fake and autograd."""
    pytest.importorskip("triton")
    command = [sys.executable, str(Path(__file__).with_name("_image_kernels.py")), op]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    results = json.loads(process.stdout.splitlines()[-1])
    assert len(results) >= 4
    assert not any(results.values()), results


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: depthwise_conv2d(X, torch.zeros(4, 1, 3, 3)), r"8 channels need \(8, 1, 3, 3\)"),
        (lambda: depthwise_conv2d(X[0], torch.zeros(8, 1, 3, 3)), r"\(B, H, W, C\)"),
        (lambda: depthwise_conv2d([X, X.bfloat16()], torch.zeros(16, 1, 3, 3)), "one batch size and dtype"),
        (lambda: depthwise_conv2d(X, torch.zeros(8, 1, 3, 3), epilogue="relu"), "none, gelu, silu, residual"),
        (lambda: depthwise_conv2d(X, torch.zeros(8, 1, 4, 4)), "another odd size"),
        (lambda: depthwise_conv2d(X, torch.zeros(8, 1, 3, 3), torch.zeros(7)), r"bias has shape \(7,\)"),
        (lambda: instance_norm_silu(X[:, :1, :1]), "two positions or more"),
        (lambda: layer_norm_gate(X, X[:1], torch.zeros(8), torch.zeros(8)), "one shape"),
        (lambda: layer_norm_gate(X, X, torch.zeros(8), torch.zeros(7)), r"bias has shape \(7,\)"),
        (lambda: max_pool3x3(X.long()), "floating-point"),
        (lambda: avg_pool2x2(X[:, :1]), "H >= 2"),
        (lambda: bias_gelu(X, torch.zeros(7)), r"bias \(C,\)"),
        (lambda: conv2d_relu(X, torch.zeros(4, 7, 3, 3), torch.zeros(4)), "do not fit"),
        (lambda: conv2d_relu(X, torch.zeros(4, 8, 2, 2), torch.zeros(4)), "odd square kernel"),
        (lambda: conv2d_relu(X, torch.zeros(4, 8, 3, 3), torch.zeros(8)), "4 outputs need"),
        (lambda: conv2d_relu(X, torch.zeros(4, 8, 3, 3), torch.zeros(4), X), "the output's is"),
        (lambda: linear(X, torch.zeros(4, 7)), "do not fit"),
        (lambda: rank_product(X[0], torch.zeros(4, 5, 7)), "of one dtype do not fit"),
        (lambda: linear(X, torch.zeros(4, 8), torch.zeros(8)), "4 outputs need"),
        (lambda: add_layer_norm(X, X[:1], torch.zeros(8), torch.zeros(8)), "one shape"),
        (lambda: add_layer_norm(X, None, torch.zeros(7), torch.zeros(8)), "weight has shape"),
        (lambda: add_layer_norm(X, None, torch.zeros(8), torch.zeros(8), scale=torch.zeros(8)), "y is None"),
        (lambda: add_layer_norm(X, X, torch.zeros(8), torch.zeros(8), row_scale=torch.zeros(3)), "batch of 2"),
        (lambda: scaled_residual(X, X[:, :3]), "cannot be added"),
        (lambda: scaled_residual(X, X[:1], scale=torch.zeros(8)), "batch size"),
    ],
)
def test_bad_calls(call, text):
    with pytest.raises(InputError, match=text):
        call()


def test_depthwise_reads_slices_and_half_sized_parts():
    torch.manual_seed(0)
    whole, small = torch.randn(2, 6, 4, 12), torch.randn(2, 3, 2, 4)
    weight = torch.randn(12, 1, 3, 3)
    parts = [whole[..., 2:6], whole[..., 7:11], small]
    joined = torch.cat([*parts[:2], small.repeat_interleave(2, 1).repeat_interleave(2, 2)], dim=3)
    want = joined + depthwise_conv2d(joined, weight)
    torch.testing.assert_close(depthwise_conv2d(parts, weight, epilogue="residual"), want)


def test_instance_norm_takes_gradients_of_slices_and_large_means():
    torch.manual_seed(0)
    x = (1000 + torch.randn(2, 9, 7, 12)).requires_grad_()
    y = instance_norm_silu(x)
    want = torch.nn.functional.silu(torch.nn.functional.instance_norm(x.double().permute(0, 3, 1, 2)))
    torch.testing.assert_close(y.double(), want.permute(0, 2, 3, 1), atol=1e-3, rtol=0)
    whole = torch.cat([torch.zeros_like(y), y], dim=3)
    (got,) = torch.autograd.grad((whole**2).sum(), x)
    (other,) = torch.autograd.grad((instance_norm_silu(x) ** 2).sum(), x)
    torch.testing.assert_close(got, other)
