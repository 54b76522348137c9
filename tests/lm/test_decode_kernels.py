"""The kernels of a decoding step give what the torch functions give that they stand for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# the interpreter cuts fp32 to bf16 instead of rounding
LIMITS = {"torch.float32": 2e-6, "torch.bfloat16": 2e-2, "torch.float16": 1e-3}


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
)
def test_kernels_give_what_torch_gives(device: str) -> None:
    pytest.importorskip("triton")
    script = Path(__file__).with_name("_decode_kernels.py")
    run = subprocess.run([sys.executable, script, device], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    errors = json.loads(run.stdout.splitlines()[-1])
    assert len(errors) == 3 * 15
    for name, error in errors.items():
        assert error < LIMITS[name.rpartition(" ")[2]], (name, error)
