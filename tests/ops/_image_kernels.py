"""Runs the Triton kernels of the image ops in Triton's interpreter; prints one JSON line: check -> "" or what is wrong.

Not a test module: the interpreter has to be chosen before the kernels are imported, so the test starts this file in a
process of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from hybridzoo.ops import selftest

OP = sys.argv[1]
torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True  # torch.empty comes filled with NaN


def opcheck_arguments() -> tuple:
    torch.manual_seed(0)
    x, rows, vector = torch.randn(2, 6, 4, 8), torch.randn(12, 8), torch.randn(8)
    leaf = [t.clone().requires_grad_() for t in (x, rows, vector)]
    return {
        "depthwise_conv2d": ([leaf[0], torch.randn(2, 3, 2, 8)], torch.randn(16, 1, 3, 3), "residual", None),
        "instance_norm_silu": (torch.randn(2, 24, 8, requires_grad=True), 1e-5),
        "layer_norm_gate": (leaf[1], rows, leaf[2], vector, 1e-5),
        "max_pool3x3": (leaf[0], True),
        "avg_pool2x2": (leaf[0],),
        "bias_gelu": (leaf[1], leaf[2]),
        "conv2d_relu": (x, torch.randn(5, 8, 3, 3), vector[:5], None, 2, True, False),
        "rank_product": (torch.randn(20, 2, 3, requires_grad=True), torch.randn(2, 5, 3, requires_grad=True)),
        "linear": (leaf[1], torch.randn(5, 8, requires_grad=True), torch.randn(5, requires_grad=True)),
        "add_layer_norm": (leaf[1], rows, vector, vector, torch.rand(2), leaf[2], vector, 1e-6, torch.float32),
        "scaled_residual": (leaf[1], rows, leaf[2], vector, torch.rand(2), torch.float32),
    }[OP]


results = {}
for row in selftest("cpu", OP):
    if row.backend == "triton":
        results[row.example] = "" if row.ok else f"{row.worst} {row.error:.1e} > {row.tolerance:.1e} {row.detail}"

if OP == "conv2d_relu":  # warp groups for small convolutions too
    triton = importlib.import_module("hybridzoo.ops.conv2d_relu.triton")
    triton.GROUPS = 0  # type: ignore[attr-defined]
    for row in selftest("cpu", OP):
        if row.backend == "triton":
            results[f"{row.example}, groups"] = "" if row.ok else f"{row.worst} {row.error:.1e} > {row.tolerance:.1e}"

if OP != "concat_last":  # it has no operator for graphs
    importlib.import_module(f"hybridzoo.ops.{OP}.custom_op")
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(getattr(torch.ops.hybridzoo, OP).default, opcheck_arguments())
    results["opcheck"] = ""
print(json.dumps(results))
