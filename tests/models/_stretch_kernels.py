"""The Triton kernels of `layers/chela/stretch.py` beside its torch operations: in Triton's interpreter, or on `cuda`.

Not a test module: the interpreter has to be chosen before the kernels are imported.
"""

from __future__ import annotations

import json
import os
import sys

if sys.argv[1] == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import torch

from hybridzoo.layers.chela import stretch

CASES = {  # kernels (S, rows, D, k), doublings of the first one, taps
    "one": (1, 1, 2, 4, 0, 4),
    "cut": (4, 2, 3, 5, 0, 37),
    "doubled": (5, 1, 2, 8, 1, 256),
    "cut-in-the-last": (6, 1, 1, 32, 0, 1000),
    "wider-than-a-program": (3, 1, 2, 40, 3, 10**6),
    "not-a-power-of-two": (8, 1, 1, 20, 0, 2560),
}

errors = {}
for name, (count, rows, channels, width, doublings, taps) in CASES.items():
    torch.manual_seed(0)
    leaf = torch.randn(count, rows, channels, width, device=sys.argv[1], requires_grad=True)
    wide = leaf.detach().double().requires_grad_()
    want = stretch.laid_out(wide, doublings, taps)
    got = stretch.launched(leaf, doublings, want.shape[2])
    weight = torch.randn_like(want)
    pairs = {"out": (got, want)}
    pairs["grad"] = torch.autograd.grad(got, leaf, weight.float())[0], torch.autograd.grad(want, wide, weight)[0]
    for what, (a, b) in pairs.items():
        errors[f"{name} {what}"] = float((a.detach().double() - b.detach()).norm() / b.detach().norm())
print(json.dumps(errors))
