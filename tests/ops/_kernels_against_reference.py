"""Runs our Triton kernels against the fp64 reference; prints one JSON line: case -> output or gradient -> error.

    python tests/ops/_kernels_against_reference.py selective_scan cpu     # Triton's interpreter
    python tests/ops/_kernels_against_reference.py selective_scan cuda    # the compiled kernels, and larger cases
    python tests/ops/_kernels_against_reference.py selective_scan cuda 0/8    # every eighth case: compiles in parallel

Not a test module: the interpreter has to be chosen before the kernels are imported, so the tests start this file in a
process of its own.
"""

from __future__ import annotations

import json
import warnings

import _kernels_common as common
import _kernels_mixing as mixing
import _kernels_scans as scans
import torch

SUITES = {
    "selective_scan": scans.run_scan,
    "causal_conv1d": scans.run_conv,
    "ms_deform_attn": mixing.run_msda,
    "delta_rule": mixing.run_delta,
    "selective_scan_2d": scans.run_scan_2d,
    "linear_attention": mixing.run_attention,
    "long_conv": mixing.run_long_conv,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    common.poison()
    print(json.dumps(SUITES[common.OP]()))
