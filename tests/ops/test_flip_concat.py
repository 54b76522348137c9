"""`flip_concat`: the kernel in Triton's interpreter against torch, with gradients, and bad calls."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hybridzoo.errors import InputError
from hybridzoo.ops.flip_concat import flip_concat

INTERPRETED = """
import torch
from hybridzoo.ops import selftest
from hybridzoo.ops.flip_concat.custom_op import flip_concat_op
torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty comes filled with NaN
rows = [row for row in selftest("cpu", "flip_concat") if row.backend == "triton"]
assert len(rows) == 3 and all(row.ok for row in rows), rows
torch.use_deterministic_algorithms(False)
x, y = torch.randn(2, 5, 6, requires_grad=True), torch.randn(2, 5, 3, requires_grad=True)
torch.library.opcheck(flip_concat_op, (x, y))
torch.library.opcheck(flip_concat_op, (None, y))
"""


def test_kernel_matches_the_definition():
    pytest.importorskip("triton")
    command = [sys.executable, "-c", INTERPRETED]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]


def test_definition():
    first, second = torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    found = flip_concat(first, second)
    for t in range(5):
        assert torch.equal(found[:, t], torch.cat((first[:, t], second[:, 4 - t]), -1))
    assert torch.equal(flip_concat(None, second), found[..., 3:])


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (torch.zeros(2, 5, 3), torch.zeros(2, 4, 3), "do not fit"),
        (torch.zeros(2, 5), torch.zeros(2, 5, 3), "do not fit"),
        (None, torch.zeros(5, 3), "do not fit"),
        (torch.zeros(2, 5, 3), torch.zeros(2, 5, 3).half(), "one dtype"),
    ],
)
def test_bad_calls(first, second, words):
    with pytest.raises(InputError, match=words):
        flip_concat(first, second)
