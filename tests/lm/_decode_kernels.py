"""Every kernel of `decode_kernels` beside the torch function it stands for: in Triton's interpreter, or on `cuda`."""

from __future__ import annotations

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1" if sys.argv[1] == "cpu" else "0"

import torch

from hybridzoo.layers import decode_kernels as kernels
from hybridzoo.layers import delta_mixer, fused, selective_ssm
from hybridzoo.ops.causal_conv1d import causal_conv1d_step
from hybridzoo.ops.delta_rule import delta_rule_step

errors: dict[str, float] = {}


def compare(name: str, ours, want) -> None:
    assert ours is not None, f"{name}: the launch does not know the call"
    ours, want = (x if isinstance(x, tuple) else (x,) for x in (ours, want))
    for a, b in zip(ours, want, strict=True):
        assert a.shape == b.shape, name
        assert a.dtype == b.dtype, name
        error = float((a.double() - b.double()).norm() / b.double().norm())
        errors[name] = max(errors.get(name, 0.0), error)


def with_gradients(fn, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.enable_grad():
        out = fn(*leaves)
    weight = torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)
    return (out.detach(), *torch.autograd.grad(out, leaves, weight))


@torch.no_grad()
def cases(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    label = str(dtype)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(dtype)

    batch = 3
    for width in (48, 200):
        x, y = rand(batch, 1, width), rand(batch, 1, width)
        w, v = rand(width), rand(width)
        compare(f"norm {label}", kernels.normalised(x, w, 1e-6), fused.normalised(x, w, 1e-6))
        both = kernels.added_and_normalised(x, y, w, 1e-6), fused.added_and_normalised(x, y, w, 1e-6)
        compare(f"add norm {label}", *both)
        compare(f"mean {label}", kernels.mean_of_norms(x, w, y, v, 1e-6), fused.mean_of_norms(x, w, y, v, 1e-6))
        compare(f"gate {label}", kernels.gated(x, y), fused.gated(x, y))
    for steps in (1, 5):
        parts = rand(batch, steps, 5 + 4 + 4).split([5, 4, 4], -1)
        weights = rand(5), rand(4), rand(4)
        three = kernels.three_normalised(*parts, weights, 1e-6), fused.three_normalised(*parts, weights, 1e-6)
        compare(f"three norms {label}", *three)
        three = [f.three_normalised(*parts, weights, 1e-6, 3) for f in (kernels, fused)]
        assert three[0][0].shape == (batch, steps, 8)
        assert three[0][0][..., 5:].eq(0).all()
        compare(f"three norms {label}", *three)
        compare(
            f"norm {label}",
            kernels.normalised(parts[0], weights[0], 1e-6),
            fused.normalised(parts[0], weights[0], 1e-6),
        )
    assert kernels.normalised(rand(4, 3, 8)[:, :2], rand(8), 1e-6) is None  # rows at unequal distances
    x, y = rand(batch, 7, 150), rand(batch, 7, 150)
    compare(f"gate with gradients {label}", with_gradients(kernels.gated, x, y), with_gradients(fused.gated, x, y))
    wide = rand(batch, 1, 3 * 16 + 2 * 16 + 7)
    q = wide[..., :48].unflatten(2, (3, 16)).transpose(1, 2)
    k = wide[..., 48:80].unflatten(2, (2, 16)).transpose(1, 2)
    for rows in (1, batch):
        angles = torch.randn(rows, 1, 8)
        both = [f.rotated_pair(q, k, angles.cos(), angles.sin()) for f in (kernels, fused)]
        compare(f"rotate {label}", *both)
    for length in (5, 300):
        x = rand(batch, length, 3 * 16 + 7)[..., :48].unflatten(2, (3, 16)).transpose(1, 2)
        for rows in (1, batch):
            angles = torch.randn(rows, length, 8)
            compare(f"rotate {label}", *[f.rotate(x, angles.cos(), angles.sin()) for f in (kernels, fused)])
    channels = 70
    projected = rand(batch, 1, 2 * channels + 3)
    u, z = projected[:, 0, :channels], projected[:, 0, channels + 3 :]
    for taps in (2, 4):
        state, weight = rand(batch, taps - 1, channels), rand(channels, taps)
        for bias, activation in ((None, None), (rand(channels), "silu")):
            want = causal_conv1d_step(state, u, weight, bias, activation=activation)
            ours = kernels.conv_step(state, u, weight, bias, activation=activation, inplace=False)
            compare(f"conv {label}", ours, want)
            place = state.clone()
            ours = kernels.conv_step(place, u, weight, bias, activation=activation, inplace=True)
            assert ours is not None
            assert ours[1] is place
            compare(f"conv in place {label}", ours, want)
    for states in (5, 16):
        state, A_log = torch.randn(batch, channels, states), torch.rand(channels, states)
        B, C = rand(batch, 2 * states).split(states, -1)
        dt = rand(batch, channels) * 8
        dt[0] = -1e4  # padding: no step
        rest = (u, dt, A_log, B, C, rand(channels), z, torch.randn(channels))
        want = selective_ssm._step(state, *rest, inplace=False)
        compare(f"scan {label}", kernels.scan_step(state, *rest, inplace=False), want)
        place = state.clone()
        compare(f"scan in place {label}", kernels.scan_step(place, *rest, inplace=True), want)
        assert place.equal(kernels.scan_step(state, *rest, inplace=False)[1])
        assert place[0].equal(state[0])
    for keys, values in ((16, 16), (20, 48)):
        state = torch.randn(batch, 3, keys, values)
        q, v, beta = rand(batch, 3, keys), rand(batch, 3, values), torch.rand(batch, 3)
        k = torch.nn.functional.normalize(rand(batch, 3, keys), dim=-1)
        want = delta_rule_step(state, q, k, v, beta)
        compare(f"delta {label}", kernels.delta_step(state, q, k, v, beta, inplace=False), want)
        place = state.clone()
        compare(f"delta in place {label}", kernels.delta_step(place, q, k, v, beta, inplace=True), want)
    heads = rand(batch, 9, 3, 24)
    compare(f"unit {label}", kernels.unit(heads), delta_mixer._l2_normalised(heads))
    both = with_gradients(kernels.unit, heads), with_gradients(delta_mixer._l2_normalised, heads)
    compare(f"unit with gradients {label}", *both)


torch.set_default_device(sys.argv[1])
fused.ENABLED = False  # what is compared with must not be the kernels themselves
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    cases(dtype)
print(json.dumps(errors))
