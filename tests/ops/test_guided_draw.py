"""`guided_draw`: the kernel in Triton's interpreter against torch, the distribution of what is drawn, and bad calls."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hybridzoo.errors import InputError
from hybridzoo.ops.guided_draw import guided_draw

INTERPRETED = """
import torch
from hybridzoo.ops import selftest
from hybridzoo.ops.guided_draw import guided_draw
torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty comes filled with NaN
rows = [row for row in selftest("cpu", "guided_draw") if row.backend == "triton"]
assert len(rows) == 4 and all(row.ok and not row.detail for row in rows), rows
x, y = torch.zeros(2, 3, 130), torch.zeros(2, 3, 130)
x[..., 5] = x[..., 99] = 7.0  # a tie: the first
wide = torch.randn(2, 3, 260)
for backend in ("torch", "triton"):
    codes, log_p = guided_draw(x, y, scale=0.0, backend=backend)
    assert (codes == 0).all() and torch.allclose(log_p, torch.tensor(-130.0).abs().log().neg().expand(2, 3)), backend
    assert (guided_draw(x, backend=backend)[0] == 5).all(), backend
found = [guided_draw(wide[..., :130], wide[..., 130:], scale=3.0, backend=b) for b in ("torch", "triton")]
assert torch.equal(found[0][0], found[1][0]) and torch.allclose(found[0][1], found[1][1], atol=1e-5)
"""


def test_kernel_matches_the_definition():
    pytest.importorskip("triton")
    command = [sys.executable, "-c", INTERPRETED]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]


def test_draws_follow_the_guided_probabilities():
    g = torch.Generator().manual_seed(0)
    logits, without = torch.randn(6, generator=g), torch.randn(6, generator=g)
    wanted = ((without + 1.5 * (logits - without)) / 0.7).softmax(-1)
    noise = torch.empty(20000, 6).exponential_(generator=g)
    codes, log_p = guided_draw(logits.expand(20000, 6), without.expand(20000, 6), noise, scale=1.5, temperature=0.7)
    assert codes.dtype == torch.int64
    assert (codes.bincount(minlength=6) / 20000 - wanted).abs().max() < 0.015
    torch.testing.assert_close(log_p.exp(), wanted[codes])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"without": torch.zeros(2, 4)}, r"without must have the shape of logits \(2, 3\)"),
        ({"noise": torch.ones(3)}, "noise must have"),
        ({"temperature": 0.0}, "leave out the noise"),
    ],
)
def test_bad_calls(options, words):
    with pytest.raises(InputError, match=words):
        guided_draw(torch.zeros(2, 3), **options)
