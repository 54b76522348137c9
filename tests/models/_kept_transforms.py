"""A long convolution in eval mode by the Triton kernels (in the interpreter): how often it transforms its taps, and how
far it is from a fresh one of the same weights after everything that changes them.

Not a test module: the interpreter has to be chosen before the kernels are imported.
"""

from __future__ import annotations

import copy
import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor, nn

from hybridzoo.layers.chela import long_conv as module
from hybridzoo.ops.long_conv import _run_triton as run
from hybridzoo.ops.long_conv import triton

module.long_conv = run
found: dict[str, list[float]] = {}  # step -> transforms of taps, error
count = 0
taps_of = triton._taps


def counted(*args):
    global count
    count += 1
    return taps_of(*args)


triton._taps = counted


def fresh(layer: nn.Module, x: Tensor) -> Tensor:
    other = module.MultiScaleConv(2, 96, kernel_dim=8, bidirectional=layer.bidirectional).eval()
    other.to(layer.D.dtype).load_state_dict(layer.state_dict())
    return other(x)


@torch.no_grad()
def check(name: str, x: Tensor, calls: int = 2) -> None:
    global count
    want, count = fresh(layer, x), 0
    errors = [float((layer(x).double() - want.double()).abs().max()) for _ in range(calls)]
    found[name] = [count, max(errors)]


torch.manual_seed(0)
for both in (False, True):
    label = "both sides, " if both else ""
    layer = module.MultiScaleConv(2, 96, kernel_dim=8, bidirectional=both)
    layer.init_weights()
    layer.eval()
    x = torch.randn(2, 80, 2, dtype=torch.float16)
    check(f"{label}two calls", x)
    check(f"{label}more rows", torch.cat([x, x]))
    check(f"{label}another length", x[:, :33])
    check(f"{label}another type", x[:, :33].float())
    optimizer = torch.optim.AdamW(layer.parameters(), 0.1)
    with torch.enable_grad():
        layer(x.float()).square().sum().backward()
    optimizer.step()
    check(f"{label}optimizer", x)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        layer.D.add_(1.0)
    check(f"{label}skip in place", x)
    layer.load_state_dict(other.state_dict())
    check(f"{label}load_state_dict", x)
    with torch.no_grad():
        layer.kernel_norm.mul_(2.0)
    check(f"{label}a buffer", x)
    layer.kernel_list[1] = nn.Parameter(torch.randn_like(layer.kernel_list[1]))
    check(f"{label}a new parameter", x)
    layer.half().float()
    check(f"{label}cast and back", x)
    layer.kernel_list[0].data.mul_(2.0)
    layer.eval()
    check(f"{label}through data, then eval", x)
print(json.dumps(found))
